"""The parts assembled once: handed to NoneBot (`nonebot.init(twin=…)`), to the terminal chat, to tests."""

import asyncio
import contextlib
import math
import shutil
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from loguru import logger

from bot import base as base_file
from bot import checksum, staging, stickers
from bot.archive import Archive
from bot.commands import Commands
from bot.config import Settings
from bot.engine import AbsentEngine, ReplyEngine
from bot.errors import ArchiveError, EngineError, PersonaError, TwinError
from bot.memory import Memory
from bot.message import Message, Origin, Scene
from bot.persona import Persona, Personas
from bot.presence import Presence, Transport
from bot.remote import RemoteEngine
from bot.reply import Replier
from bot.scenes import PERSONA_KIND
from bot.serving import LlamaEngine
from bot.stickers import Stickers

SHIPPED = Path(__file__).resolve().parents[1] / "data" / "demo" / "personas"
"""Personas that come with the project; copied into the data folder at the first start."""


ARCHIVE_BROKEN = "聊天记录现在写不进硬盘（满了或被占用），先留在内存里，能写时会补上。"
ARCHIVE_WELL = "聊天记录又能写了，刚才的都补上了。"
_SAME_WORDS_S = 3600.0
_UNTOLD_MAX = 50
"""Lines kept for owners who could not be reached; of more, the oldest go."""


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
        self.stickers = Stickers(stickers.folder(settings), settings.stickers)
        self.memory = Memory(archive, settings, self.stickers)
        self.replier = Replier(settings, self.memory, engine)
        self.presence = Presence(settings, archive, self.replier, self.persona_of, transport, self._tell_hourly)
        self.started = now()
        self.odd: Counter[str] = Counter()
        """What came since the start that was not as it should be, by kind: `malformed`, `unknown`, `future`."""
        self.next_night: Callable[[], datetime | None] = lambda: None
        """When the next night starts, as far as it is known; set by whoever plans it."""
        self.owner_lines: Callable[[str], Awaitable[None]] | None = None
        """Sends a line to the owners, TwinError if it reached none; set by whoever can reach them."""
        self.archive_retry_s = 3.0
        """Seconds between two attempts to write what waits in memory."""
        self._loaded: dict[str, tuple[object, Persona]] = {}
        self._complained: set[str] = set()
        self._untold: deque[str] = deque(maxlen=_UNTOLD_MAX)
        self._told: dict[str, float] = {}
        self._watcher: asyncio.Task[None] | None = None

    @classmethod
    def assemble(
        cls, settings: Settings, root: Path, transport: Transport, *, only_record: bool = False,
        engine: ReplyEngine | None = None, spill: Path | None = None,
    ) -> "Twin":  # fmt: skip
        """Open the archive, load the base, find the personas.

        Args:
            settings: checked settings.
            root: bot.toml's folder, what relative paths count from.
            transport: how bubbles leave.
            only_record: without a base or persona go on all the same: record, and tell the owner.
            engine: in place of the one the settings name.
            spill: folder for `[engine] spill_disk_mb`; only the daemon, which is alone, has one.

        Raises:
            ArchiveError, EngineError, PersonaError: what cannot start, and the remedy.
        """
        install_shipped(settings.data / "personas")
        archive = Archive(settings.archive_url)
        try:
            engine = engine or start_engine(settings, root, spill)
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
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        self.archive.close()

    # -- messages ---------------------------------------------------------------------------------

    def record(self, message: Message) -> bool:
        """Store a message; False when it was stored before (a replay: not to be answered).

        Of somebody who opted out or was forgotten only that somebody spoke is kept (bot/optouts.py). While the archive
        cannot be read or written, the message waits in memory; a replay may then pass for new, and
        is stored once all the same.
        """
        heard = message.origin is Origin.HUMAN  # else it is the echo of what we sent
        if self.commands.is_command(message):
            message = replace(message, origin=Origin.SYSTEM)
        if (message.time - now()).total_seconds() > self.settings.chat.stale_after_s:
            # As it is, it would stand behind everything said until then, and be the last word all the while.
            logger.warning("a message from the future is stored with the time it came at")
            self.odd["future"] += 1
            message = replace(message, time=now().replace(microsecond=0))
        kept, _ = self.archive.optouts.kept(message) if heard else (message, None)
        new = True
        try:
            new = kept is None or self.archive.add(kept)
        except ArchiveError as e:
            logger.warning("a message waits in memory: {}", e)
        if new:
            self._watch()
        return new

    def record_own(self, message_id: str, scene: Scene, account: str, text: str) -> None:
        """Store what the program itself said in an account's name: a command's answer, a line to the owners.

        The model never sees it, and no later import of the account's history takes it for the person's words.
        """
        segments = ({"type": "text", "data": {"text": text}},)
        said = Message(message_id, scene, account, "", now(), text, Origin.SYSTEM, segments=segments)
        try:
            self.archive.append([said])
        except ArchiveError as e:
            logger.warning("a line of ours waits in memory: {}", e)

    async def watch_archive(self) -> None:
        """See to it that what waits in memory is written as soon as it can be, and the owners told."""
        self._watch()

    def _watch(self) -> None:
        """Start the one watcher, for as long as the twin lives: bubbles and recalls, too, may have to wait."""
        if self._watcher is None:
            self._watcher = asyncio.get_running_loop().create_task(self._keep_writing())

    async def _keep_writing(self) -> None:
        """Every few seconds write what waits; tell the owners once when it cannot be, and once when it can again."""
        told = False
        while True:
            try:
                if self.archive.behind:
                    self.archive.flush()
                broken = self.archive.behind
                await asyncio.to_thread(self.archive.checkpoint)
            except ArchiveError as e:
                logger.warning("{}", e)
                broken = True
            if broken != told:
                told = broken
                await self.tell_owner(ARCHIVE_BROKEN if broken else ARCHIVE_WELL)
            await asyncio.sleep(self.archive_retry_s)

    # -- personas ---------------------------------------------------------------------------------

    def persona_of(self, scene: Scene) -> Persona:
        """Who answers in a scene: the one switched to, else `[chat] persona`.

        Raises:
            PersonaError: neither can be loaded.
        """
        chosen = self.presence.scenes.persona(scene)
        if chosen != self.settings.chat.persona:
            try:
                return self.load(chosen)
            except PersonaError as e:
                self._complain(str(e))
        return self.load(self.settings.chat.persona)

    def imitated(self) -> frozenset[str]:
        """QQ numbers of everybody a persona imitates; those of a broken persona are left out."""
        found: set[str] = set()
        for name in self.personas.names():
            with contextlib.suppress(PersonaError):
                found.update(self.personas.spec(name).people)
        return frozenset(found)

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
        """Let a persona answer in a scene, or `EVERYWHERE`, from now on; PersonaError if there is none of that name."""
        persona = self.personas.find(wanted)
        self.archive.note(scene, PERSONA_KIND, persona.name, now)
        self.presence.decide_anew(scene)
        return self.load(persona.name)

    # -- the owner --------------------------------------------------------------------------------

    async def greet(self) -> None:
        """A client connected: tell the owners what they could not be told before."""
        self._watch()
        for _ in range(len(self._untold)):
            if self._untold:
                await self._deliver(self._untold.popleft())

    async def tell_owner(self, text: str, *, hourly: bool = False) -> None:
        """Tell the owners what needs them; what does not reach them is told when a client connects.

        Args:
            text: the line.
            hourly: of the same words, one an hour is enough (a fault that comes with every message).
        """
        if hourly:
            if text in self._untold:
                self._untold.remove(text)
            if time.monotonic() - self._told.get(text, -math.inf) < _SAME_WORDS_S:
                return
            self._told[text] = time.monotonic()
        logger.warning("for the owner: {}", text)
        if not await self._deliver(text):
            self._told.pop(text, None)

    async def _tell_hourly(self, text: str) -> None:
        await self.tell_owner(text, hourly=True)

    async def _deliver(self, text: str) -> bool:
        """Send the owners a line; kept for the next client, and False, if it did not reach them."""
        reached = False
        try:
            if self.owner_lines is not None:
                await self.owner_lines(text)
                reached = True
        except TwinError as e:
            logger.warning("the owner could not be told: {}", e)
        finally:
            if not reached:
                self._untold.append(text)
        return reached

    def _complain(self, text: str) -> None:
        """Log once what somebody must mend; the owners are told when a client is connected."""
        if text not in self._complained:
            self._complained.add(text)
            self._untold.append(text)
            logger.error("{}", text)


def start_engine(settings: Settings, root: Path, spill: Path | None = None) -> ReplyEngine:
    """The engine bot.toml names; relative paths count from `root`, `spill` is LlamaEngine's. Raises EngineError."""
    path = base_file.resolve(settings.engine.base, settings.data, root) if settings.engine.reads_base else None
    if settings.engine.backend == "remote":
        return RemoteEngine(settings.engine, path, checksum.digest(path) if path else "")
    assert path is not None
    return LlamaEngine(path, settings.engine, checksum.digest(path), spill)


def install_shipped(root: Path, shipped: Path = SHIPPED) -> None:
    """Copy the personas that come with the project into the data folder, each once and with the notice of its terms."""
    notice = shipped.parent / "NOTICE"
    for source in sorted(shipped.glob("*/persona.toml")):
        target = root / source.parent.name
        if not target.exists():
            root.mkdir(parents=True, exist_ok=True)
            with staging.beside(target) as beside:
                shutil.copytree(source.parent, beside)
                if notice.is_file():
                    shutil.copy2(notice, beside / notice.name)
                if not target.exists():  # nor has another process been faster
                    staging.put(beside, target)


def now() -> datetime:
    """The time, aware UTC."""
    return datetime.now(UTC)


def _stamp(path: Path) -> object:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
