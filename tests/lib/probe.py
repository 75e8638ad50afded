"""A NoneBot app over an adapter alone, run as a child: `python probe.py PORT TOKEN twin|upstream`.

What reaches handlers is printed as JSON lines. A text message `call ACTION {params}` makes it call the API and print
how that ended; `send TEXT` sends TEXT through the transport, as the model's words are sent. `upstream` is the adapter
without our mends: what a test of a mend fails with.
"""

import asyncio
import json
import os
import sys
import time
from typing import Any

import nonebot
from nonebot.adapters.onebot.v11 import Adapter, Bot
from nonebot.adapters.onebot.v11.event import Event

from bot import log
from bot.errors import SendError
from bot.message import Scene
from bot.onebot import OneBotTransport, Outbox, TwinAdapter
from bot.segments import to_segments


def tell(**line: Any) -> None:
    sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
    sys.stdout.flush()


async def obey(words: str, bot: Bot, event: Event) -> None:
    """What a text message asks for."""
    verb, _, rest = words.partition(" ")
    started = time.monotonic()
    try:
        if verb == "call":
            action, _, params = rest.partition(" ")
            result: Any = await bot.call_api(action, **json.loads(params or "{}"))
        elif verb == "send":
            scene = Scene("private", str(event.model_dump()["user_id"]))
            segments = [{**s, "data": {"id": scene.id}} if s["type"] == "poke" else s for s in to_segments(rest, {})]
            result = await OneBotTransport(Outbox(), 20.0).send(bot.self_id, scene, segments)
        else:
            return
        tell(done=words, result=result, after_s=time.monotonic() - started)
    except SendError as e:
        tell(done=words, failure=e.failure.value, after_s=time.monotonic() - started)
    except Exception as e:  # noqa: BLE001 - a probe tells of everything
        tell(done=words, error=type(e).__name__, after_s=time.monotonic() - started)


def main(port: int, token: str, adapter: type[Adapter]) -> None:
    """Serve until killed."""
    nonebot.init(
        _env_file=(os.devnull,), driver="~fastapi+~websockets", host="127.0.0.1", port=port, api_timeout=20.0,
        onebot_access_token=token, log_level="INFO",
    )  # fmt: skip
    log.setup("INFO")
    TwinAdapter.heartbeat_least_s = 1.0
    driver = nonebot.get_driver()
    driver.register_adapter(adapter)
    anything = nonebot.on()
    tasks = set()

    @anything.handle()
    async def _(bot: Bot, event: Event) -> None:
        raw = event.__dict__.get("twin_raw") or event.model_dump()
        words = "".join(str(s.get("data", {}).get("text", "")) for s in raw.get("message", []) if isinstance(s, dict))
        tell(event=type(event).__name__, post_type=event.post_type, text=words, account=bot.self_id)
        task = asyncio.create_task(obey(words, bot, event))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    @driver.on_bot_connect
    async def _(bot: Bot) -> None:
        tell(connected=bot.self_id)

    @driver.on_bot_disconnect
    async def _(bot: Bot) -> None:
        tell(disconnected=bot.self_id)

    nonebot.run(ws_ping_interval=5, ws_ping_timeout=5, access_log=False, log_level="warning")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], {"twin": TwinAdapter, "upstream": Adapter}[sys.argv[3]])
