"""The parts assembled once: handed to NoneBot (`nonebot.init(twin=…)`), to the terminal chat, to tests."""

import asyncio
import math
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from loguru import logger

from bot import base as base_file
from bot.archive import Archive
from bot.commands import Commands
from bot.config import Settings
from bot.engine import AbsentEngine, ReplyEngine
from bot.errors import EngineError, PersonaError, TwinError
from bot.memory import Memory
from bot.message import Message, Origin, Scene
from bot.persona import Persona, Personas
from bot.presence import PERSONA_KIND, Presence, Transport
from bot.reply import Replier
from bot.serving import LlamaEngine

SHIPPED = Path(__file__).resolve().parents[1] / "data" / "demo" / "personas"
"""Personas that come with the project; copied into the data folder at the first start."""


ARCHIVE_BROKEN = "聊天记录现在写不进硬盘（满了或被占用），先留在内存里，能写时会补上。"
ARCHIVE_WELL = "聊天记录又能写了，刚才的都补上了。"
_SAME_WORDS_S = 3600.0


class Twin:
    """Everything the daemon and `twin chat` are made of.

    Args:
        settings: bot.toml and environment.
        archive: the message store.
        engine: the model.
        personas: the persona folders.
        transport: how bubbles leave.
    """

    def __init__(
        self, settings: Settings, archive: Archive, engine: ReplyEngine, personas: Personas, transport: Transport
    ) -> None:
        self.settings = settings
        self.archive = archive
        self.engine = engine
        self.personas = personas
        self.commands = Commands(settings.onebot.command_prefix, settings.onebot.superusers)
        self.memory = Memory(archive, settings, engine.count)
        self.replier = Replier(settings, self.memory, engine)
        self.presence = Presence(settings, archive, self.replier, self.persona_of, transport, self.tell_owner)
        self.owner_lines: Callable[[str], Awaitable[None]] | None = None
        """Sends a line to the owners; set by whoever can reach them."""
        self._loaded: dict[str, tuple[object, Persona]] = {}
        self._complained: set[str] = set()
        self._untold: list[str] = []
        self._told: dict[str, float] = {}
        self._archive_broken = False
        self._archive_stuck = False
        self._telling: set[asyncio.Task[None]] = set()

    @classmethod
    def assemble(cls, settings: Settings, root: Path, transport: Transport, *, only_record: bool = False) -> "Twin":
        """Open the archive, load the base, find the personas.

        Args:
            settings: checked settings.
            root: bot.toml's folder, what relative paths count from.
            transport: how bubbles leave.
            only_record: without a base or persona go on all the same: record, and tell the owner.

        Raises:
            ArchiveError, EngineError, PersonaError: what cannot start, and the remedy.
        """
        install_shipped(settings.data / "personas")
        archive = Archive(settings.archive_url)
        engine: ReplyEngine
        try:
            path = base_file.resolve(settings.engine.base, settings.data, root)
            engine = LlamaEngine(path, settings.engine, base_file.digest(path))
        except EngineError as e:
            if not only_record:
                archive.close()
                raise
            engine = AbsentEngine(str(e), settings.engine.n_ctx)
        personas = Personas(settings.data / "personas", engine.base_sha256 or None)
        twin = cls(settings, archive, engine, personas, transport)
        if isinstance(engine, AbsentEngine):
            twin._complain(f"没有可用的底模，只记录不回话：{engine.reason}")
        try:
            twin.load(settings.chat.persona)
        except PersonaError as e:
            if not only_record:
                raise
            twin._complain(str(e))
        return twin

    async def close(self) -> None:
        """Stop answering, finish what is being sent, free the model, close the archive."""
        await self.presence.close()
        await self.engine.close()
        self.archive.close()

    # -- messages ---------------------------------------------------------------------------------

    def record(self, message: Message) -> bool:
        """Store a message; False when it was stored before (a replay: not to be answered)."""
        known = self.archive.get(message.scene, message.id)
        if known is not None and abs((known.time - message.time).total_seconds()) < 60:
            return False
        if self.commands.is_command(message.text):
            message = replace(message, origin=Origin.SYSTEM)
        self.archive.append([message])
        self._watch_archive()
        return True

    def _watch_archive(self) -> None:
        """Tell the owners once when messages pile up in memory; one alone may be a moment's lock."""
        waiting = self.archive.waiting
        if waiting > 1 and not self._archive_stuck:
            line = f"聊天记录写不进去（磁盘满了，或文件被占用），{waiting} 条先留在内存里；能写了会自动补上。"
            task = asyncio.get_running_loop().create_task(self.tell_owner(line))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)
        self._archive_stuck = waiting > 1

    # -- personas ---------------------------------------------------------------------------------

    def persona_of(self, scene: Scene) -> Persona:
        """Who answers in a scene: the one switched to, else `[chat] persona`.

        Raises:
            PersonaError: neither can be loaded.
        """
        chosen = self.archive.latest(scene, PERSONA_KIND)
        if chosen is not None:
            try:
                return self.load(chosen[0])
            except PersonaError as e:
                self._complain(str(e))
        return self.load(self.settings.chat.persona)

    def load(self, name: str) -> Persona:
        """A persona as its folder stands now; read again only when `current` or persona.toml changed."""
        folder = self.personas.root / name
        stamp = tuple(_stamp(folder / f) for f in ("current", "persona.toml"))
        cached = self._loaded.get(name)
        if cached and cached[0] == stamp and any(stamp):
            return cached[1]
        persona = self.personas.find(name)
        if persona.refused:
            self._complain(persona.refused)
        if cached and persona.version and cached[1].version != persona.version:
            logger.info("persona {} now answers as version {}", persona.name, persona.version.name)
        self._loaded[name] = (stamp, persona)
        return persona

    def switch_persona(self, scene: Scene, wanted: str, now: datetime) -> Persona:
        """Let a persona answer in a scene from now on; raises PersonaError when there is none of that name."""
        persona = self.personas.find(wanted)
        self.archive.note(scene, PERSONA_KIND, persona.name, now)
        return self.load(persona.name)

    # -- the owner --------------------------------------------------------------------------------

    async def greet(self) -> None:
        """A client connected: tell the owners what was wrong before anybody could be told."""
        waiting, self._untold = self._untold, []
        for text in waiting:
            await self.tell_owner(text)

    async def watch_archive(self) -> None:
        """Tell the owners once when the archive cannot be written, and once when it can again."""
        broken = self.archive.waiting > 0
        if broken != self._archive_broken:
            self._archive_broken = broken
            await self.tell_owner(ARCHIVE_BROKEN if broken else ARCHIVE_WELL)

    async def tell_owner(self, text: str) -> None:
        """Tell the owners what needs them, the same words once an hour; without a connection it is only logged."""
        if time.monotonic() - self._told.get(text, -math.inf) < _SAME_WORDS_S:
            return
        self._told[text] = time.monotonic()
        logger.warning("for the owner: {}", text)
        if self.owner_lines is not None:
            try:
                await self.owner_lines(text)
            except TwinError as e:
                logger.warning("the owner could not be told: {}", e)

    def _complain(self, text: str) -> None:
        """Log once what somebody must mend; the owners are told when a client is connected."""
        if text not in self._complained:
            self._complained.add(text)
            self._untold.append(text)
            logger.error("{}", text)


def install_shipped(root: Path, shipped: Path = SHIPPED) -> None:
    """Copy the personas that come with the project into the data folder, each once."""
    for source in sorted(shipped.glob("*/persona.toml")):
        target = root / source.parent.name
        if not target.exists():
            root.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(f".{target.name}.tmp")
            shutil.rmtree(beside, ignore_errors=True)
            shutil.copytree(source.parent, beside)
            beside.rename(target)


def now() -> datetime:
    """The time, aware UTC."""
    return datetime.now(UTC)


def _stamp(path: Path) -> object:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
