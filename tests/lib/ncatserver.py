"""ncatbot5's NapCatMockServer, run as a child: `python ncatserver.py PORT`, a OneBot server the daemon connects to.

A line `{"private": [user, words]}` or `{"group": [group, user, words]}` on its input makes somebody say something; a
call it gets is printed as a JSON line. It has no token: its own check refuses everybody with websockets 14 and later.
"""

import asyncio
import json
import sys
from typing import Any

from ncatbot.utils.testing import NapCatMockServer, get_standard_data


def tell(**line: Any) -> None:
    sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
    sys.stdout.flush()


async def main(port: int) -> None:
    """Serve until its input ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with NapCatMockServer(host="127.0.0.1", port=port, initial_data=get_standard_data()) as server:
        told, connected = 0, 0
        line = asyncio.create_task(reader.readline())
        while True:
            await asyncio.wait([line], timeout=0.05)
            calls = server.get_call_history()
            for call in calls[told:]:
                tell(action=call["action"], params=call["params"])
            told = len(calls)
            if len(server._clients) != connected:
                connected = len(server._clients)
                tell(clients=connected)
            if not line.done():
                continue
            if not (asked := line.result()):
                return
            said = json.loads(asked)
            if "private" in said:
                await server.inject_private_message(*said["private"])
            else:
                await server.inject_group_message(*said["group"])
            line = asyncio.create_task(reader.readline())


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
