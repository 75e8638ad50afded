"""When the person speaks first: what is stored of a scene → how many conversations they open at each hour of a day.

Counted is only what was said while the twin was off there: where it answers, the person need not open anything.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, tzinfo
from itertools import pairwise

from bot.config import Conversation
from bot.message import Message, Origin
from bot.prompt import opens, spoken_by

LOOKBACK = timedelta(days=90)
"""How much of a scene counts: habits change."""
_QUIET_DAYS = 7
"""Days without an opening assumed beside those seen: of a scene known for two days little is known."""
_LEAN = 10
"""Openings that weigh as much as the hours in which the person says anything at all."""
Rates = tuple[float, ...]
"""Conversations opened in each hour of a day, on average; 24 of them."""


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
