"""Programs of others: our test client drives an aiocqhttp application, the daemon connects to ncatbot5's mock NapCat.

Both run as children, unchanged: what they take for OneBot v11 is what they take from any client and any bot.
"""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from daemon import OWNER, Daemon, free_port, persona, settings
from napcat import ACCOUNT, NapCat
from websockets.exceptions import InvalidStatus

from bot.message import Origin

LIB = Path(__file__).parents[1] / "lib"
TOKEN = "peer-token-31"


class Child:
    """A peer: what it prints, line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []

    async def until(self, within_s: float = 20.0, **wanted: Any) -> dict[str, Any]:
        """The next line that has these values."""
        assert self.process.stdout is not None
        async with asyncio.timeout(within_s):
            while True:
                raw = await self.process.stdout.readline()
                assert raw, f"the peer ended; it told {self.lines}"
                try:
                    line = json.loads(raw)
                except ValueError:
                    continue
                if not isinstance(line, dict):
                    continue
                self.lines.append(line)
                if all(line.get(k) == v for k, v in wanted.items()):
                    return line

    async def tell(self, **line: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(line).encode() + b"\n")
        await self.process.stdin.drain()


@asynccontextmanager
async def child(script: str, *words: str) -> AsyncIterator[Child]:
    with tempfile.TemporaryDirectory() as folder:  # ncatbot writes logs/ where it runs
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(LIB / script), *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL, env=os.environ, cwd=folder,
        )  # fmt: skip
        try:
            yield Child(process)
        finally:
            process.kill()
            await process.wait()


async def listening(port: int, within_s: float = 30.0) -> None:
    async with asyncio.timeout(within_s):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            await writer.wait_closed()
            return


async def test_our_client_drives_an_aiocqhttp_application() -> None:
    port = free_port()
    async with child("cqapp.py", str(port), TOKEN) as app:
        await listening(port)
        async with NapCat(f"ws://127.0.0.1:{port}/ws/", TOKEN, passed_over=frozenset(["self_id"])) as client:
            await app.until(event="meta_event.lifecycle.connect")
            await app.until(event="meta_event.heartbeat")
            said = await client.say("在吗", user=101)
            heard = await app.until(event="message.private.friend")
            assert (heard["words"], heard["user"], heard["id"]) == ("在吗", 101, said)
            assert heard["self"] == int(ACCOUNT)
            (answer,) = await client.expect(1)
            assert (answer.scene, answer.text) == ("private:101", "你说在吗")
            assert answer.segments[1] == {"type": "face", "data": {"id": "14"}}
            assert (await app.until(sent=answer.id))["sent"] == answer.id, "it read our answer to its call"
            await client.say("两句", group=201)
            assert [b.text for b in await client.expect(2)] == ["一", "二"]
            await client.say("谁", user=101)
            assert (await app.until(who={"user_id": int(ACCOUNT), "nickname": "本人"}))["who"]
            await client.recall(said)
            assert (await app.until(event="notice.friend_recall"))["user"] == 101


async def test_aiocqhttp_refuses_our_client_without_its_token() -> None:
    port = free_port()
    async with child("cqapp.py", str(port), TOKEN):
        await listening(port)
        with pytest.raises(InvalidStatus, match="HTTP 403"):
            await NapCat(f"ws://127.0.0.1:{port}/ws/", "another-token").open()


async def test_the_daemon_connects_to_ncatbots_mock_napcat(tmp_path: Path) -> None:
    port = free_port()
    onebot = {"superusers": [str(OWNER)], "ws_urls": [f"ws://127.0.0.1:{port}/"], "access_token": ""}
    daemon = Daemon(tmp_path, settings(tmp_path / "none.gguf", onebot=onebot))
    persona(daemon.data / "personas" / "xiaoman", "小满", [ACCOUNT])
    with daemon:
        for number in range(2):
            async with child("ncatserver.py", str(port)) as server:
                await server.until(clients=1)
                await server.tell(private=[OWNER, "/about"])
                answer = await server.until(action="send_private_msg")
                while "小满" not in str(answer["params"]["message"]):
                    answer = await server.until(action="send_private_msg")
                assert int(answer["params"]["user_id"]) == OWNER
                assert answer["params"]["message"][0]["type"] == "text"
                await server.tell(group=[201, 101, f"大家好{number}"])
                await asyncio.to_thread(daemon.wait, lambda n=number: len(daemon.stored("group:201")) == n + 1)
        daemon.end()
        assert [(m.text, m.origin) for m in daemon.stored("group:201")] == [
            ("大家好0", Origin.HUMAN), ("大家好1", Origin.HUMAN),
        ]  # fmt: skip
