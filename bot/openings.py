"""When the person speaks first: what is stored of a scene → how many conversations they open at each hour of a day.

Counted is only what was said while the twin was off there: where it answers, the person need not open anything.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta, tzinfo
from itertools import pairwise

from loguru import logger

from bot.archive import SAID, Archive
from bot.config import Conversation, Settings
from bot.errors import PersonaError
from bot.message import Message, Origin, Scene
from bot.persona import Persona
from bot.prompt import opens, spoken_by

LOOKBACK = timedelta(days=90)
"""How much of a scene counts: habits change."""
_QUIET_DAYS = 7
"""Days without an opening assumed beside those seen: of a scene known for two days little is known."""
_LEAN = 10
"""Openings that weigh as much as the hours in which the person says anything at all."""
Rates = tuple[float, ...]
"""Conversations opened in each hour of a day, on average; 24 of them."""


def learn(
    archive: Archive, persona_of: Callable[[Scene], Persona], settings: Settings, now: datetime
) -> dict[Scene, Rates]:
    """The rates of every scene whose persona opens conversations there; scenes without a persona are left out.

    Raises:
        ArchiveError: the store cannot be read.
    """
    found = {}
    for summary in archive.scenes():
        try:
            people = frozenset(persona_of(summary.scene).spec.people)
        except PersonaError:
            continue
        said, timeline = archive.times(summary.scene, now - LOOKBACK), archive.timeline(summary.scene, "state")
        by_hour = rates(said, timeline, people, settings.conversation, settings.zone)
        if any(by_hour):
            found[summary.scene] = by_hour
    logger.info("openings are learned of {} scenes", len(found))
    return found


def may_open(archive: Archive, scene: Scene, settings: Settings, now: datetime) -> bool:
    """Whether nothing is going on there, no opening of ours stands unanswered, and today's are not used up.

    Raises:
        ArchiveError: the store cannot be read.
    """
    last = archive.window(scene, 1)
    # What was stored before the clock was put back says nothing of now; QQ's clock may be a little ahead of ours.
    newest = archive.last_before(scene, now + timedelta(seconds=settings.chat.stale_after_s))
    goes_on = newest is not None and (now - newest).total_seconds() <= settings.conversation.conversation_gap_s
    if not last or goes_on:
        return False
    said = archive.decision_on(scene, last[-1].id) if last[-1].origin is Origin.TWIN else None
    if said is not None and said.why.get("opening"):
        return False
    midnight = now.astimezone(settings.zone).replace(hour=0, minute=0, second=0, microsecond=0)
    today = archive.decisions_since(midnight, scene)
    opened: int = sum(d.why.get("opening") == "own" and d.outcome in SAID for d in today)
    return opened < settings.opening.per_day


def rates(
    messages: Sequence[Message],
    timeline: Sequence[tuple[datetime, str]],
    people: frozenset[str],
    rules: Conversation,
    zone: tzinfo,
) -> Rates:
    """How often the person opens a conversation in a scene, by local hour.

    Args:
        messages: the scene's, oldest first; texts are not looked at.
        timeline: what the twin was doing there (`Archive.timeline`, kind `state`).
        people: the imitated person's QQ numbers.
        rules: gaps.
        zone: where they live.
    """
    opened, spoke = [0] * 24, [0] * 24
    days: set[str] = set()
    switched = [time for time, _ in timeline]
    for before, message in pairwise([None, *messages]):
        assert message is not None
        place = bisect_right(switched, message.time)
        if place and timeline[place - 1][1] != "off":
            continue
        local = message.time.astimezone(zone)
        days.add(f"{local:%Y%m%d}")
        if message.origin is not Origin.HUMAN or not spoken_by(message, people):
            continue
        spoke[local.hour] += 1
        opened[local.hour] += opens(message, before, people, rules)
    if not any(opened):
        return (0.0,) * 24
    a_day = sum(opened) / (_span_days(days) + _QUIET_DAYS)
    return tuple(
        a_day * (here + _LEAN * words / sum(spoke)) / (sum(opened) + _LEAN)
        for here, words in zip(opened, spoke, strict=True)
    )


def _span_days(days: Iterable[str]) -> int:
    """Days on which anybody spoke, and those between them, less pauses of more than a week."""
    dates = sorted(datetime.strptime(day, "%Y%m%d") for day in days)
    return 1 + sum(min((later - earlier).days, 7) for earlier, later in pairwise(dates))
