"""A presence with a scripted engine and a transport that records, for the tests of bot/presence.py."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from chats import ACCOUNT, FRIEND, GROUP, ME

from bot.archive import Archive
from bot.config import Chat, OneBot, Settings
from bot.engine import Measure, Request, Voice
from bot.errors import SendError, SendFailure
from bot.memory import Memory
from bot.message import Message, Scene
from bot.persona import Persona, ReplyPolicy, Spec
from bot.presence import Presence
from bot.prompt import FORMATS
from bot.reply import Replier

DEBOUNCE_S = 0.05
OWNER = Scene("private", ME)


class Script:
    """A reply engine that says what it is told, and remembers what it was asked."""

    base_sha256, format = "b" * 64, FORMATS["gemma"]

    def __init__(self) -> None:
        self.lines: list[str] = ["好呀"]
        self.asked: list[Request] = []
        self.closed = 0
        self.before_line: Callable[[int], Any] | None = None

    async def measure(self, voice: Voice) -> Measure:
        return Measure(2048, lambda pieces: sum(len(p.text) for p in pieces))

    async def p_silent(self, request: Request) -> float:
        return 0.01

    async def bubbles(self, request: Request) -> AsyncGenerator[str, None]:
        self.asked.append(request)
        try:
            for number, line in enumerate(self.lines):
                if self.before_line is not None:
                    await self.before_line(number)
                yield line
        finally:
            self.closed += 1

    async def close(self) -> None: ...

    def heard(self, n: int = -1) -> str:
        """The last user turn of what it was asked."""
        text = "".join(p.text for p in self.asked[n].pieces)
        return text.rsplit("<start_of_turn>user\n", 1)[1].split("<end_of_turn>")[0]

    def lines_heard(self, n: int) -> list[str]:
        """The bubbles of that turn."""
        return [line for line in self.heard(n).split("\n") if line.startswith("阿强：")]


class Wire:
    """A transport that records, and fails as it is told."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Scene, str]] = []
        self.quotes: list[str | None] = []
        self.segments: list[list[dict[str, Any]]] = []
        self.shown: list[tuple[str, Scene, str | None]] = []
        self.tried = 0
        self.failures: list[SendFailure] = []
        self.gate: asyncio.Event | None = None

    async def seen(self, account: str, scene: Scene, message_id: str) -> None:
        self.shown.append((account, scene, message_id))

    async def typing(self, account: str, scene: Scene) -> None:
        self.shown.append((account, scene, None))

    async def send(self, account: str, scene: Scene, segments: list[dict[str, Any]]) -> str:
        self.tried += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.failures:
            raise SendError(self.failures.pop(0), "told to")
        text = "".join(s["data"].get("text", "") for s in segments)
        self.sent.append((account, scene, text))
        self.segments.append(segments)
        self.quotes.append(segments[0]["data"]["id"] if segments[0]["type"] == "reply" else None)
        return f"sent-{len(self.sent)}"


class Draws(random.Random):
    """Random numbers 0.001, 0.002, …: every draw can be told apart, and all of them speak."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def random(self) -> float:
        self.count += 1
        return self.count / 1000


class Stage:
    """A presence with its parts, and a clock for messages."""

    def __init__(self, archive: Archive, **chat: Any) -> None:
        values = {"debounce_s": DEBOUNCE_S, "delay_scale": 0.0, "account_gap_s": 0.0, "scenes": (str(GROUP),)} | chat
        self.settings = Settings(chat=Chat(**values), onebot=OneBot(superusers=(ME,)))
        self.archive, self.engine, self.wire, self.draws = archive, Script(), Wire(), Draws()
        self.told: list[str] = []
        self.skew = timedelta()
        self.persona = Persona("xiaoman", Path(), Spec(display_name="小满", reply=ReplyPolicy(bias=50)), None)
        self._seq = 0
        self.restart()

    def restart(self) -> None:
        memory = Memory(self.archive, self.settings)
        replier = Replier(self.settings, memory, self.engine)
        self.presence = Presence(
            self.settings, self.archive, replier, lambda _: self.persona, self.wire, self._tell, self.draws
        )

    async def _tell(self, text: str) -> None:
        self.told.append(text)

    def hear(
        self, text: str, scene: Scene = GROUP, sender: str = FRIEND, age_s: float = 0.0, **changed: Any
    ) -> Message:
        """A message arrives: stored, then told to the presence, as the recorder and the listener do."""
        self._seq += 1
        time = datetime.now(UTC) + self.skew - timedelta(seconds=age_s)
        message = Message(f"m{self._seq}", scene, sender, "阿强", time, text, **changed)
        self.archive.append([message])
        if sender == ACCOUNT:
            self.presence.own_words(message)
        else:
            self.presence.heard(message, ACCOUNT)
        return message

    @property
    def said(self) -> list[str]:
        return [text for _, _, text in self.wire.sent]

    def outcomes(self, scene: Scene = GROUP) -> list[str]:
        return [d.outcome for d in reversed(self.archive.decisions(scene, 20))]

    async def quiet(self, wait_s: float = 5.0) -> None:
        """Until no scene has anything going on."""
        async with asyncio.timeout(wait_s):
            turns, begun = self.presence._turns.values(), self.presence._background
            while begun or any(t.task and not t.task.done() for t in turns):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def until(condition: Callable[[], bool], wait_s: float = 5.0) -> None:
    async with asyncio.timeout(wait_s):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)
