"""`twin chat`: the persona in a terminal, from its own small archive; nothing said here is ever learned."""

import asyncio
import random
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import FrameType
from typing import Any

from rich.console import Console
from rich.markup import escape

from bot.decision import in_words
from bot.errors import EngineError, PersonaError
from bot.message import Message, Origin, Scene
from bot.persona import Persona
from bot.reply import Look
from bot.scenes import PERSONA_KIND
from bot.twin import Twin

ME, ACCOUNT = "1", "2"
"""Numbers of the two ends of the terminal; no QQ number is that short."""
SCENE = Scene("private", ME)
HELP = "/persona [名字] /why /clear /quit"


class NoTransport:
    """The terminal prints bubbles itself."""

    async def seen(self, account: str, scene: Scene, message_id: str) -> None:
        """Nothing to show."""

    async def typing(self, account: str, scene: Scene) -> None:
        """Nothing to show."""

    async def send(self, account: str, scene: Scene, segments: list[dict[str, Any]]) -> str:
        """Never called: nothing is sent from here."""
        raise AssertionError("the terminal sends nothing")


@dataclass(slots=True)
class Terminal:
    """A conversation.

    Args:
        twin: assembled over a terminal archive.
        console: where answers are printed.
        read: gives the next line typed; EOFError ends.
        name: what the person at the keyboard is called.
    """

    twin: Twin
    console: Console
    read: Callable[[], str]
    name: str = "你"
    rng: random.Random = field(default_factory=random.Random)
    by_hand: Callable[[Persona], Persona] = lambda persona: persona
    """What the command line changes of a persona."""
    _last: Look | None = None
    _count: int = 0

    async def run(self) -> None:
        """Read and answer until /quit, /exit, end of input or SIGINT; SIGINT during an answer ends the answer alone."""
        persona = self._persona()
        version = persona.version.name if persona.version else "未训练的底模"
        self.console.print(f"[bold]{escape(persona.spec.display_name)}[/] [dim]{version} · {HELP}[/]")
        while True:
            try:
                # asyncio's own handler would wait for the end of the line.
                with _on_sigint(signal.default_int_handler):
                    # Bytes that are no UTF-8 come as lone surrogates, which nothing can store.
                    line = self.read().encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip()
            except (EOFError, KeyboardInterrupt):
                self.console.print()
                return
            if line in ("/quit", "/exit"):
                return
            try:
                if line.startswith("/"):
                    self._command(line.split())
                elif line:
                    await self._until_sigint(self._answer(line))
            except (EngineError, PersonaError) as e:
                self.console.print(f"[red]{escape(str(e))}[/]", highlight=False)

    async def _until_sigint(self, answer: Coroutine[Any, Any, None]) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(answer)
        with _on_sigint(lambda *_: loop.call_soon_threadsafe(task.cancel)):
            await asyncio.wait([task])
        if task.cancelled():
            self.console.print("[dim]（打断了。）[/]")
        else:
            task.result()

    def _persona(self) -> Persona:
        return self.by_hand(self.twin.persona_of(SCENE))

    def _command(self, words: list[str]) -> None:
        match words:
            case ["/clear"]:
                self.twin.memory.clear(SCENE, datetime.now(UTC))
                self._last = None
                self.console.print("[dim]好，刚才聊的不记得了。[/]")
            case ["/why"]:
                self.console.print(f"[dim]{escape(self._why())}[/]", highlight=False)
            case ["/persona"] | ["/persona", "list"]:
                here = self._persona().name
                names = " ".join(f"[bold]{n}[/]" if n == here else n for n in self.twin.personas.names())
                self.console.print(names)
            case ["/persona", *rest]:
                persona = self.twin.switch_persona(SCENE, rest[-1], datetime.now(UTC))
                self.console.print(f"[dim]现在是 {escape(persona.spec.display_name)}。[/]")
            case _:
                self.console.print(f"[dim]{HELP}[/]")

    def _why(self) -> str:
        if self._last is None:
            return "还没有做过决定。"
        v, m = self._last.verdict, self._last.moment
        silent = "—" if m.p_silent is None else f"{m.p_silent:.0%}"
        return f"开口概率 {v.p_speak:.0%}，随机数 {v.draw:.2f}；模型认为沉默的概率 {silent}；{in_words(v.terms)}"

    async def _answer(self, line: str) -> None:
        self._store(ME, self.name, line, Origin.HUMAN)
        persona = self._persona()
        # Halved: who opens a terminal came to talk. What is likelier than not is always said, the rest twice as often.
        draw = self.rng.random() / 2
        look = await self.twin.replier.look(SCENE, persona, ACCOUNT, lambda _: draw)
        self._last = look
        if look is None:
            return
        if not look.verdict.speaks:
            self.console.print("[dim]（看到了，没回。/why 看原因）[/]")
            return
        said = False
        async for bubble in self.twin.replier.bubbles(look):
            said = True
            if not look.segments(bubble):
                self.console.print(f"[dim]（想发 {escape(bubble)}，没有可发的，QQ 里不会发出去）[/]")
                continue
            self.console.print(f"[cyan]{escape(persona.spec.display_name)}[/] ", end="")
            self.console.print(bubble.replace("↵", "\n"), markup=False, emoji=False, highlight=False)
            self._store(ACCOUNT, persona.spec.display_name, bubble, Origin.TWIN)
        if not said:
            self.console.print("[dim]（想说，没想出词。）[/]")

    def _store(self, sender_id: str, name: str, text: str, origin: Origin) -> None:
        self._count += 1
        now = datetime.now(UTC)
        message_id = f"{int(now.timestamp() * 1000)}-{self._count}"
        self.twin.archive.append([Message(message_id, SCENE, sender_id, name, now, text, origin)])


@contextmanager
def _on_sigint(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def choose(twin: Twin, wanted: str | None) -> None:
    """Let a persona answer in the terminal; None keeps the configured one.

    Raises:
        PersonaError: there is none of that name.
    """
    name = twin.personas.find(wanted or twin.settings.chat.persona).name
    twin.archive.note(SCENE, PERSONA_KIND, name, datetime.now(UTC))
