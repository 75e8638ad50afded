"""Thirty days of a chat in a minute: other people's messages replayed to the real presence under a clock that skips.

Nothing waits: the event loop's clock jumps to the next thing that is due. The presence's own modules read that clock,
which is put into them from here. Decisions are the features', fitted on what came before; words are turns the person
really said before, drawn at random: what is measured is when, how often and how much, not what.
"""

import asyncio
import math
import random
import selectors
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bot import config
from bot import presence as presence_module
from bot import scenes as scenes_module
from bot.archive import Archive
from bot.decision import FEATURES, features, moment_of
from bot.engine import Measure, Request, Voice
from bot.memory import Memory
from bot.message import Message, Origin, Scene
from bot.persona import Base, Calibration, Manifest, Persona, Spec, Version
from bot.presence import Presence
from bot.prompt import FORMATS, exchanges, spoken_by
from bot.reply import Replier
from training import evaluate
from training.corpus import Corpus, build

_ACCOUNT = "1"


@dataclass
class Day:
    """What somebody did in those days: their own bubbles, and how each decision point ended."""

    hours: list[int] = field(default_factory=lambda: [0] * 24)
    bubbles: list[int] = field(default_factory=list)
    delays: dict[str, list[float]] = field(default_factory=lambda: {"private": [], "group": []})
    decisions: dict[str, int] = field(default_factory=lambda: {"private": 0, "group": 0})
    answered: dict[str, int] = field(default_factory=lambda: {"private": 0, "group": 0})


class Clock:
    """A moment that moves when asked to."""

    def __init__(self, start: datetime) -> None:
        self._start, self.seconds = start, 0.0

    def now(self, zone: Any = UTC) -> datetime:
        """As `datetime.now`."""
        return (self._start + timedelta(seconds=self.seconds)).astimezone(zone)

    def monotonic(self) -> float:
        """As `time.monotonic`."""
        return self.seconds


class _Skipping(selectors.DefaultSelector):
    """Waits for nothing: where nothing is ready, time moves on to when something is due."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready and timeout:
            self._clock.seconds += timeout
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: Clock) -> None:
        super().__init__(_Skipping(clock))
        self._clock = clock

    def time(self) -> float:
        return self._clock.seconds


class _Words:
    """An engine that says turns of the person's."""

    base_sha256, format = "", FORMATS["gemma"]

    def __init__(self, turns: Sequence[Sequence[str]]) -> None:
        self._turns = turns

    async def measure(self, voice: Voice) -> Measure:
        return Measure(2048, lambda pieces: sum(len(p.text) for p in pieces))

    async def p_silent(self, request: Request) -> float:
        return 0.5

    async def bubbles(self, request: Request) -> AsyncGenerator[str, None]:
        for line in random.Random(request.seed).choice(self._turns):
            yield line

    async def forget(self, wanted: Callable[[str], bool]) -> None:
        """Nothing is held."""

    async def close(self) -> None: ...


class _Wire:
    """Takes every bubble, and notes when."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.sent: list[tuple[Scene, datetime]] = []

    async def send(self, account: str, scene: Scene, segments: list[dict[str, Any]]) -> str:
        self.sent.append((scene, self._clock.now()))
        return f"twin-{len(self.sent)}"

    async def seen(self, account: str, scene: Scene, message_id: str) -> None: ...

    async def typing(self, account: str, scene: Scene) -> None: ...


def compare(history: Archive, people: Sequence[str], days: float) -> tuple[Day, Day]:
    """The person in the last days of a history, and the twin in the same days of the same words of others.

    Args:
        history: the whole of it.
        people: the imitated person's QQ numbers.
        days: how many; what came before is learned from.
    """
    rules = config.Settings()
    told = [m for s in history.scenes() for m in history.history(s.scene)]
    cutoff = max(m.time for m in told) - timedelta(days=days)
    whole = build(history, people, (), rules.conversation)
    learned = build(history, people, (), rules.conversation, until=cutoff)
    known = {part.scene for part in learned.scenes}
    trace = sorted((m for m in told if m.time > cutoff and m.scene in known), key=lambda m: (m.time, m.seq or 0))
    person = _person(whole, known, cutoff)
    clock = Clock(cutoff)
    with tempfile.TemporaryDirectory() as folder, _told_by(clock):
        archive = Archive(f"sqlite:///{folder}/archive.db")
        archive.append([m for m in told if m.time <= cutoff])
        wire = _Wire(clock)
        loop = _Loop(clock)
        try:
            loop.run_until_complete(_live(archive, learned, people, trace, wire, clock))
        finally:
            loop.close()
        twin = _twin(archive, wire, known, cutoff, frozenset(people))
        archive.close()
    return person, twin


@contextmanager
def _told_by(clock: Clock) -> Iterator[None]:
    """The presence reads our clock."""
    modules, names = (presence_module, scenes_module), ("datetime", "time")
    kept = [(m, name, getattr(m, name)) for m in modules for name in names if hasattr(m, name)]
    for module, name, _ in kept:
        setattr(module, name, clock)
    try:
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)


async def _live(
    archive: Archive, learned: Corpus, people: Sequence[str], trace: Sequence[Message], wire: _Wire, clock: Clock
) -> None:
    scenes = tuple(str(part.scene) for part in learned.scenes)
    settings = config.Settings(chat=config.Chat(scenes=scenes))
    manifest = Manifest(
        version="features", created="", base=Base(file="", sha256="", architecture=""), format="gemma",
        system_prompt="", files={}, calibration=calibration(learned), pacing=evaluate.pacing(learned),
    )  # fmt: skip
    persona = Persona("me", Path(), Spec(display_name="我", people=tuple(people)), Version(Path(), manifest))
    turns = [
        [m.text for m in e.said] for part in learned.scenes for e in part.exchanges if e.said and e.heard
    ]  # fmt: skip

    async def ignore(_: str) -> None: ...

    replier = Replier(settings, Memory(archive, settings), _Words(turns))
    presence = Presence(settings, archive, replier, lambda _: persona, wire, ignore, random.Random(0))
    for message in trace:
        await asyncio.sleep(max(0.0, (message.time - clock.now()).total_seconds()))
        if not spoken_by(message, frozenset(people)):
            archive.append([message])
            presence.heard(message, _ACCOUNT)
    await asyncio.sleep(600)
    await presence.close()


def calibration(learned: Corpus) -> Calibration:
    """The decision by features alone, fitted on every decision point before the days that are simulated."""
    from sklearn.linear_model import LogisticRegression

    names = [n for n in FEATURES if n != "log_odds"]
    rows, spoke = [], []
    for part in learned.scenes:
        for place, exchange in enumerate(part.exchanges):
            if not exchange.heard or not (exchange.said or part.counted_silence[place]):
                continue
            moment = moment_of(
                exchange, last_spoke=part.last_spoke[place], ids=learned.ids, names=(), quoted=part.quoted,
                ours=lambda m: spoken_by(m, learned.people), zone=learned.zone,
            )  # fmt: skip
            values = features(moment)
            rows.append([values[n] for n in names])
            spoke.append(bool(exchange.said))
    fit = LogisticRegression(max_iter=1000).fit(rows, spoke)
    return Calibration(
        intercept=float(fit.intercept_[0]), weights=dict(zip(names, map(float, fit.coef_[0]), strict=True))
    )  # fmt: skip


def _person(whole: Corpus, known: set[Scene], cutoff: datetime) -> Day:
    day = Day()
    for part in (p for p in whole.scenes if p.scene in known):
        kind = part.scene.kind
        for place, exchange in enumerate(part.exchanges):
            if exchange.decided_at <= cutoff:
                continue
            _count(day, kind, exchange.said, whole.zone)
            if exchange.heard and (exchange.said or part.counted_silence[place]):
                day.decisions[kind] += 1
                day.answered[kind] += bool(exchange.said)
                if exchange.said:
                    day.delays[kind].append((exchange.said[0].time - exchange.heard[-1].time).total_seconds())
    return day


def _twin(archive: Archive, wire: _Wire, known: set[Scene], cutoff: datetime, people: frozenset[str]) -> Day:
    """What the twin did; the wire tells when bubbles left: the archive keeps them in the place of what they answer."""
    day, rules, zone = Day(), config.Settings().conversation, config.Settings().zone
    left = {f"twin-{n}": at for n, (_, at) in enumerate(wire.sent, 1)}
    for scene in known:
        for exchange in exchanges(archive.history(scene), people, rules):
            if exchange.decided_at <= cutoff or not exchange.heard:
                continue
            said = [m for m in exchange.said if m.origin is Origin.TWIN]
            day.decisions[scene.kind] += 1
            day.answered[scene.kind] += bool(said)
            _count(day, scene.kind, said, zone, [left[m.id] for m in said])
            if said:
                day.delays[scene.kind].append((left[said[0].id] - exchange.heard[-1].time).total_seconds())
    return day


def _count(
    day: Day, kind: str, said: Sequence[Message], zone: Any, at: Sequence[datetime] | None = None
) -> None:  # fmt: skip
    if said:
        day.bubbles.append(len(said))
    for time in at if at is not None else [m.time for m in said]:
        day.hours[time.astimezone(zone).hour] += 1


def overlap(one: Sequence[int], other: Sequence[int]) -> float:
    """How much two histograms share, 0 to 1: one less the total variation distance of their distributions."""
    a, b = max(1, sum(one)), max(1, sum(other))
    return math.fsum(min(x / a, y / b) for x, y in zip(one, other, strict=True))
