"""A version in the days after it was swapped in: what the archive says of it → whether it must go back.

Judged are the owner's corrections and the live answers (bot/drift.py), each against the version before as well: what
that one did no better is no reason to return to it. Both sides are read as the model sees and learns them
(`bot.shown`, without media alone where those are not trained): pictures are no style it could have learned.
Nothing is changed here.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

from bot import corrections, drift, stickers
from bot.archive import Archive, Decision
from bot.config import Cleaning, Settings
from bot.drift import Answer, Band, Outside
from bot.interval import wilson
from bot.message import Message, Origin, Scene
from bot.persona import Spec
from bot.prompt import media_alone
from bot.shown import shown

MIN_CORRECTED = 4
"""Corrected answers at least: two of two are surely more than a tenth, and still the mood of one evening."""
POINTS = 4
"""Decision points in a block for each answer in one: the rate of 30 moments alone says little."""
RUNNING = 2
"""Disjoint blocks in a row in which a measure must lie outside: a week holds many blocks, and each is looked at."""
_BEFORE = timedelta(days=60)
"""How far back the version before is looked for."""
RATE = {True: "rate_private", False: "rate_group"}
"""Names of the measures of how often it answers, by whether the scene is private."""
_LIVE_MAX = 5000
"""Newest messages of a scene in which a version's answers are looked for."""
_UNDECIDED = ("cancelled", "recalled", "stopped")


@dataclass(frozen=True, slots=True)
class Corrected:
    """Too many answers were corrected: so many of so many, and of the version before."""

    corrected: int
    answers: int
    before: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Person:
    """The person's own bands.

    Args:
        style: by measure.
        rate: by whether the scene is private, None where there is too little history.
    """

    style: dict[str, Band]
    rate: dict[bool, Band | None]


@dataclass(frozen=True, slots=True)
class Live:
    """What one version did: its decisions and its answers, oldest first."""

    decisions: Sequence[Decision]
    answers: Sequence[Answer]


def judge(
    archive: Archive, persona: str, spec: Spec, version: str, settings: Settings, now: datetime,
    person_of: Callable[[datetime], Person],
) -> Corrected | list[Outside] | None:  # fmt: skip
    """Why a version should go back; None if it may stay, or is no longer (or not yet) looked at.

    Args:
        archive: the message store.
        persona: folder name.
        spec: its persona.toml.
        version: the version that serves.
        settings: [retrain] and [conversation].
        now: aware UTC.
        person_of: the person's bands, from what was said before a moment (`person`).

    Raises:
        ArchiveError: the store cannot be read.
    """
    rules = settings.retrain
    decisions = [d for d in archive.decisions_since(now - _BEFORE) if d.persona == persona]
    own = [d for d in decisions if d.version == version]
    if not own or now - own[0].time > timedelta(days=rules.watch_days):
        return None
    since = own[0].time
    before = next((d.version for d in reversed(decisions) if d.time < since and d.version is not None), None)
    kept = corrections.current(archive)
    hits, n = drift.corrected_rate(own, kept, version)
    other = drift.corrected_rate(decisions, kept, before) if before else (0, 0)
    low, _ = wilson(hits, n)
    if hits >= MIN_CORRECTED and low > rules.corrected_max and low > other[0] / max(other[1], 1):
        return Corrected(hits, n, other)
    scenes = {d.scene for d in decisions}
    seen = _Seen.by(settings)
    of = _spoken_for(decisions)

    def said(of_version: str, start: datetime, end: datetime) -> list[Answer]:
        return _answers(archive, scenes, spec, start, end, seen, lambda m: of(m) == of_version)

    now_live = Live(own, said(version, since, now))
    least = rules.watch_answers * RUNNING
    if len(now_live.answers) < least and len(own) < least * POINTS:
        return None
    person = person_of(since)
    found = outside(now_live, person, rules.watch_answers)
    if not found or before is None:
        return found or None
    earlier = [d for d in decisions if d.version == before]
    theirs = Live(earlier, said(before, earlier[0].time, since))
    # One block is enough to doubt that one; of less than a block nobody knows whether it did better.
    was = {o.measure for o in outside(theirs, person, rules.watch_answers, running=1)}
    known = _judged(theirs, person, rules.watch_answers)
    return [o for o in found if o.measure in known - was] or None


def _judged(live: Live, person: Person, block: int) -> set[str]:
    """The measures there is a block of."""
    style = set(person.style) if len(live.answers) >= block else set()
    points = {private: len(_inclined(live, private)) for private in person.rate}
    return style | {RATE[private] for private, n in points.items() if n >= block * POINTS}


def _inclined(live: Live, private: bool) -> list[float]:
    """P(speak) at the decision points of one kind of scene, without the owner's own shifts."""
    final = (d for d in _final(live.decisions) if d.scene.private is private)
    return [p for d in final if (p := drift.inclination(d)) is not None]


def _spoken_for(decisions: Sequence[Decision]) -> Callable[[Message], str | None]:
    """Tells which version said a message: that of the decision in its scene that is nearest in time."""
    by_scene: dict[Scene, list[Decision]] = {}
    for decision in sorted(decisions, key=lambda d: d.time):
        by_scene.setdefault(decision.scene, []).append(decision)
    times = {scene: [d.time for d in found] for scene, found in by_scene.items()}

    def of(message: Message) -> str | None:
        found = by_scene.get(message.scene, [])
        place = bisect_left(times.get(message.scene, []), message.time)
        near = found[max(0, place - 1) : place + 1]
        return min(near, key=lambda d: abs(d.time - message.time)).version if near else None

    return of


def outside(live: Live, person: Person, block: int, running: int = RUNNING) -> list[Outside]:
    """The measures of a version that lie outside the person's bands in all of its newest blocks, valued in the newest.

    Args:
        live: what it did.
        person: the bands, of blocks of that size.
        block: answers in a block.
        running: how many blocks; none is outside where it has fewer.
    """
    blocks = drift.newest(live.answers, block, running)
    found = drift.lasting([drift.style_outside(answers, person.style) for answers in blocks])
    for private, band in person.rate.items():
        if band is None:
            continue
        points = drift.newest(_inclined(live, private), block * POINTS, running)
        found += drift.lasting([drift.left(RATE[private], sum(p) / len(p), band) for p in points])
    return found


def person(archive: Archive, spec: Spec, settings: Settings, until: datetime) -> Person:
    """The person's bands, from everything they said before a moment; reads whole scenes, so not on the event loop.

    Raises:
        ArchiveError: the store cannot be read.
    """
    people, rules, block = frozenset(spec.people), settings.retrain, settings.retrain.watch_answers
    seen = _Seen.by(settings)
    answers: list[tuple[datetime, Answer]] = []
    points: dict[bool, list[tuple[datetime, bool]]] = {True: [], False: []}
    for summary in archive.scenes():
        scene = summary.scene
        if scene.private and scene.id in people:
            continue
        messages = list(shown(archive.history(scene, until), seen.rules, seen.names))
        answers += seen.answers(messages, lambda m: m.origin is Origin.HUMAN and m.sender_id in people)
        off = _before_any_twin(archive, scene, messages)
        points[scene.private] += drift.decision_points(off, people, settings.conversation)
    style = drift.style_bands([a for _, a in sorted(answers)], block, rules.drift_sigmas)
    rate = {
        private: drift.rate_band([spoke for _, spoke in sorted(found)], block * POINTS, rules.drift_sigmas)
        for private, found in points.items()
    }
    return Person(style, rate)


def remembered(read: Callable[[datetime], Person]) -> Callable[[datetime], Person]:
    """The same, read once for a moment: bands are of what was said before a version came, which does not change."""
    return lru_cache(maxsize=1)(read)


@dataclass(frozen=True, slots=True)
class _Seen:
    """How histories are read: [corpus], and the names of the sticker library by key."""

    rules: Cleaning
    names: Mapping[str, str]

    @classmethod
    def by(cls, settings: Settings) -> "_Seen":
        return cls(settings.corpus, stickers.names(settings))

    def answers(
        self, messages: Iterable[Message], wanted: Callable[[Message], bool]
    ) -> list[tuple[datetime, Answer]]:  # fmt: skip
        """Answers among messages as shown, without bubbles that are not learned; such a bubble parts no answer."""
        drop = self.rules.drop_media
        kept = (m for m in messages if not (drop and wanted(m) and media_alone(m.text)))
        return drift.answers_of(kept, wanted)


def _answers(
    archive: Archive, scenes: set[Scene], spec: Spec, since: datetime, until: datetime, seen: _Seen,
    by: Callable[[Message], bool],
) -> list[Answer]:  # fmt: skip
    """What the persona's twin said in scenes within a time, by the version that is asked for, oldest first."""

    def said(message: Message) -> bool:
        ours = message.origin is Origin.TWIN and message.sender_name == spec.display_name
        return ours and since <= message.time + timedelta(seconds=1) and by(message)  # OneBot's seconds are cut

    found: list[tuple[datetime, Answer]] = []
    for scene in scenes:
        lived = archive.window(scene, _LIVE_MAX, since - timedelta(seconds=1))
        found += seen.answers(shown((m for m in lived if m.time <= until), seen.rules, seen.names), said)
    return [answer for _, answer in sorted(found)]


def _final(decisions: Sequence[Decision]) -> list[Decision]:
    """Decisions that were not taken anew: the newest on each message."""
    newest = {(d.scene, d.message_id): d for d in decisions if d.outcome not in _UNDECIDED}
    return list(newest.values())


def _before_any_twin(archive: Archive, scene: Scene, messages: list[Message]) -> list[Message]:
    """What was said there before a twin was first on: afterwards the person's quiet means nothing."""
    on = next((time for time, value in archive.timeline(scene, "state") if value != "off"), None)
    return messages if on is None else [m for m in messages if m.time < on]
