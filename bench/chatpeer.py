"""A NoneBot app to be flooded, run as a child: `python -m bench.chatpeer PORT twin|empty`.

twin: our adapter, recorder and chat plugin on a real archive, with an engine that costs nothing. empty: the adapter as
it is published, and the same kinds of matchers with nothing in them. Both count what they have handled and print, for
every `done` asked of them, how many messages, in how long, and how late each was.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import nonebot
from nonebot.adapters.onebot.v11 import Adapter
from nonebot.adapters.onebot.v11.event import Event
from nonebot.message import event_postprocessor, event_preprocessor

from bot import config, log
from bot.archive import Archive
from bot.daemon import settle
from bot.engine import Measure, Request, Voice
from bot.onebot import OneBotTransport, Outbox, TwinAdapter, raw_event
from bot.persona import Personas, new_persona
from bot.prompt import FORMATS
from bot.twin import Twin

GROUPS = 20
SENT_AT, DONE = "bench_sent_at", "bench_done"


class Silent:
    """An engine whose model would always be silent, at no cost."""

    base_sha256, format = "", FORMATS["gemma"]

    async def measure(self, voice: Voice) -> Measure:
        """A window of 2,048 tokens, a character each."""
        return Measure(2048, lambda pieces: sum(len(p.text) for p in pieces))

    async def p_silent(self, request: Request) -> float:
        """Nearly sure."""
        return 0.999

    async def bubbles(self, request: Request) -> AsyncGenerator[str, None]:
        """Nothing."""
        nothing: tuple[str, ...] = ()
        for line in nothing:
            yield line

    async def forget(self, wanted: Callable[[str], bool]) -> None:
        """Nothing is held."""

    async def close(self) -> None:
        """Nothing to free."""


def main(port: int, kind: str, folder: Path) -> None:
    """Serve until killed."""
    scenes = tuple(f"group:{n}" for n in range(1, GROUPS + 1))
    settings = config.Settings(
        paths=config.Paths(data=folder), chat=config.Chat(scenes=scenes),
        retrain=config.Retrain(enabled=False),
    )  # fmt: skip
    outbox = Outbox()
    transport = OneBotTransport(outbox, 20.0)
    parts: dict[str, Any] = {}
    if kind == "twin":
        personas = Personas(folder / "personas")
        new_persona(personas.root, "xiaoman", "小满", ("1",))
        twin = Twin(settings, Archive(settings.archive_url), Silent(), personas, transport)
        parts = {"twin": twin, "outbox": outbox, "transport": transport, "config_path": Path("bot.toml")}
    nonebot.init(
        _env_file=(os.devnull,), driver="~fastapi+~websockets", host="127.0.0.1", port=port, log_level="WARNING",
        onebot_access_token="bench", **parts,
    )  # fmt: skip
    log.setup("WARNING")
    nonebot.get_driver().register_adapter(TwinAdapter if kind == "twin" else Adapter)
    if kind == "twin":
        for name in ("recorder", "chat"):
            assert nonebot.load_plugin(f"plugins.{name}") is not None
    else:
        _empty()
    late: list[float] = []

    @event_postprocessor
    async def _(event: Event) -> None:
        raw = raw_event(event)
        if (sent_at := raw.get(SENT_AT)) is not None:
            late.append(time.monotonic() - sent_at)
        if raw.get(DONE) is not None and len(late) >= raw[DONE]:
            sys.stdout.write(json.dumps({"now": time.monotonic(), "late_s": late}) + "\n")
            sys.stdout.flush()
            late.clear()

    if kind == "twin":
        settle()
    nonebot.run(access_log=False, log_level="warning")


def _empty() -> None:
    """What our plugins register, with nothing in it."""

    @event_preprocessor
    async def _(event: Event) -> None:
        return

    for kind, priority in (("message", 10), ("message_sent", 10), ("message_sent", 99), ("notice", 10)):
        matcher = nonebot.on(kind, priority=priority, block=False)

        @matcher.handle()
        async def _(event: Event) -> None:
            return


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        main(int(sys.argv[1]), sys.argv[2], Path(made))
