"""bot/openings.py: how often somebody speaks first, from hand-made scenes where that is known."""

import random
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from chats import FRIEND, GROUP, ME, PRIVATE

from bot.archive import Archive
from bot.config import Conversation, Settings
from bot.message import Message, Origin, Scene
from bot.openings import may_open, rates

ZONE = ZoneInfo("Asia/Shanghai")
FIRST = datetime(2026, 8, 1, tzinfo=ZONE)
PEOPLE = frozenset([ME])


def said(day: int, hour: float, who: str, scene: Scene = GROUP, origin: Origin = Origin.HUMAN) -> Message:
    time = FIRST + timedelta(days=day, hours=hour)
    return Message(f"{day}-{hour}-{who}", scene, who, "", time, "", origin)


def learned(messages: list[Message], timeline: list[tuple[datetime, str]] | None = None) -> tuple[float, ...]:
    return rates(sorted(messages, key=lambda m: m.time), timeline or [], PEOPLE, Conversation(), ZONE)


def test_the_rate_is_openings_a_day_at_the_hours_they_are_made() -> None:
    rng = random.Random(0)
    days = range(83)
    opened = [said(d, 9 + rng.random() * 0.9, ME) for d in days] + [said(d, 21 + rng.random() * 0.9, ME) for d in days]
    answers = [said(d, 15.0, FRIEND) for d in days] + [said(d, 15.1, ME) for d in days]
    found = learned([*opened, *answers])
    assert sum(found) == pytest.approx(2 * 83 / 90, rel=0.02), "two a day, and a week in which nothing was seen"
    assert found[9] == pytest.approx(found[21], rel=0.05)
    assert found[9] > 0.85
    assert 0 < found[15] < 0.05, "they talk then, and do not begin"
    assert sum(found[h] for h in range(24) if h not in (9, 15, 21)) == 0


def test_two_openings_are_little_evidence() -> None:
    few = [said(d, 9.5, ME) for d in range(2)]
    assert sum(learned(few)) == pytest.approx(2 / 9)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [said(0, 9, FRIEND), said(1, 9, FRIEND)],
        [said(0, 9, FRIEND), said(0, 9.1, ME)],  # an answer
        [said(0, 9, FRIEND, PRIVATE), said(0, 12, ME, PRIVATE)],  # a late answer in private
        [said(0, 9, ME, origin=Origin.TWIN)],
        [said(0, 9, ME, Scene("private", ME))],  # with their own twin
    ],
)
def test_what_is_no_opening_of_theirs_counts_nothing(messages: list[Message]) -> None:
    assert learned(messages) == (0.0,) * 24


def test_where_the_twin_is_on_nothing_is_learned_from_their_quiet() -> None:
    before = [said(d, 9.5, ME) for d in range(30)]
    after = [said(d, 15.0, FRIEND) for d in range(30, 80)]
    on = [(FIRST + timedelta(days=30), "on")]
    assert learned([*before, *after], on) == learned(before)
    assert sum(learned([*before, *after])) < sum(learned(before)) / 2


@pytest.mark.parametrize(
    ("stored_s", "may"),
    [([-3600], True), ([-3600, 86_400], True), ([86_400], True), ([-60, 86_400], False), ([5], False)],
)
def test_a_clock_put_back_keeps_nobody_from_speaking_first(archive: Archive, stored_s: list[int], may: bool) -> None:
    now = datetime.now(UTC)
    times = [now + timedelta(seconds=s) for s in stored_s]
    archive.append(Message(f"{t}", GROUP, FRIEND, "", t, "嗯") for t in times)
    assert may_open(archive, GROUP, Settings(), now) is may
