"""bot/pacing.py: the person's own tempo, and a budget that keeps the account alive."""

import math
import random
from datetime import time as dtime
from typing import Any

import pytest
from chats import GROUP, PRIVATE
from hypothesis import given
from hypothesis import strategies as st

from bot.config import Chat
from bot.errors import SendFailure
from bot.hours import in_hours
from bot.message import Scene
from bot.pacing import DEFAULT_DELAY_S, DEFAULT_GAP_S, Budget, Pace, quantile, situations
from bot.persona import Pacing, Tempo

LEARNED = Pacing(private_delay_s=(1, 2, 3), group_delay_s=(10, 20, 30), bubble_gap_s=(4, 4, 4))


@pytest.mark.parametrize(
    ("u", "value"), [(0, 1.0), (0.25, 2.0), (0.5, 3.0), (0.75, 6.5), (1, 10.0), (-1, 1.0), (2, 10.0)]
)
def test_a_quantile_lies_between_its_neighbours(u: float, value: float) -> None:
    assert quantile((1, 3, 10), u) == pytest.approx(value)


def test_one_measured_value_is_every_quantile() -> None:
    assert quantile((7.0,), 0.3) == 7.0


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=20).map(sorted), st.floats(0, 1), st.floats(0, 1))
def test_quantiles_rise_and_stay_within_what_was_measured(values: list[float], a: float, b: float) -> None:
    low, high = quantile(values, min(a, b)), quantile(values, max(a, b))
    assert low <= high or low == pytest.approx(high)
    assert values[0] <= low
    assert high <= values[-1] or high == pytest.approx(values[-1])


def pace(pacing: Pacing, chat: Chat, seed: int, private: bool = False, cold: bool = False, heard: str = "") -> Pace:
    return Pace(pacing, chat, random.Random(seed), situations(private=private, cold=cold, hour=13.5), heard)


def test_delays_are_drawn_from_the_persons_own_for_the_kind_of_scene() -> None:
    private = [pace(LEARNED, Chat(), n, private=True).first_s("好") for n in range(200)]
    group = [pace(LEARNED, Chat(), n).first_s("好") for n in range(200)]
    assert 1 <= min(private) < 1.2 < 2.8 < max(private) <= 3
    assert 10 <= min(group) < 12 < 28 < max(group) <= 30


def test_delays_are_scaled_and_capped() -> None:
    assert pace(LEARNED, Chat(delay_scale=0), 0).first_s("好") == 0
    assert max(pace(LEARNED, Chat(delay_cap_s=12), n).first_s("好") for n in range(50)) == 12
    assert pace(LEARNED, Chat(delay_scale=0.5), 0).next_s("好") == 2


def test_without_measurements_the_defaults_serve() -> None:
    delays = [pace(Pacing(), Chat(), n).first_s("好") for n in range(500)]
    assert DEFAULT_DELAY_S[0] <= min(delays)
    assert max(delays) <= Chat().delay_cap_s
    one = pace(Pacing(), Chat(), 0)
    gaps = [one.next_s("好") for _ in range(500)]
    assert DEFAULT_GAP_S[0] <= min(gaps)
    assert max(gaps) == 8


TEMPO = Tempo(
    answer_s={"private": (5,), "private cold": (20,), "private cold 12": (30,), "group": (7,)},
    gap_s=(2,), read_s_per_char=0.1, type_s_per_char=0.5,
)  # fmt: skip


@pytest.mark.parametrize(
    ("how", "seconds"),
    [
        ({"private": True}, 5), ({"private": True, "cold": True}, 30), ({}, 7), ({"cold": True}, 7),
        ({"private": True, "heard": "一二三四五六七八九十"}, 6),
    ],
)  # fmt: skip
def test_an_answer_takes_what_its_situation_reading_and_typing_take(how: dict[str, Any], seconds: float) -> None:
    found = pace(Pacing(private_delay_s=(99,), group_delay_s=(99,), tempo=TEMPO), Chat(), 0, **how)
    assert found.first_s("好呀") == pytest.approx(seconds + 1.0)
    assert found.next_s("一二三四") == pytest.approx(2 + 2.0)
    assert [found.typing_s("好呀"), found.typing_s("好" * 100)] == [1.0, 5.0]
    assert pace(Pacing(tempo=TEMPO), Chat(delay_cap_s=4, delay_scale=2), 0, **how).first_s("好") == 4


def test_the_night_is_another_situation_than_the_evening() -> None:
    names = {situations(private=True, cold=False, hour=h)[-1] for h in (0, 5.99, 6, 12, 18, 23.9, 24)}
    assert names == {"private mid 0", "private mid 6", "private mid 12", "private mid 18"}


def test_a_scene_is_full_after_its_minute_and_free_again_later() -> None:
    budget = Budget(Chat(scene_per_minute=3, account_per_minute=100))
    for second in range(3):
        assert budget.hindrance(GROUP, second) is None
        budget.spend(GROUP, second)
    assert budget.hindrance(GROUP, 59) == "budget"
    assert budget.hindrance(PRIVATE, 59) is None
    assert budget.hindrance(GROUP, 60.5) is None


ASKED = ["00:00", "06:59", "07:00", "08:59", "09:00", "17:29", "17:30", "23:29", "23:30"]


def test_hours_and_days_are_full_too() -> None:
    budget = Budget(Chat(scene_per_minute=2, scene_per_hour=3, scene_per_day=5, account_per_day=6))
    sent = [n for n in range(0, 80_000, 10) if budget.hindrance(GROUP, n) is None and budget.spend(GROUP, n) is None]
    assert sent == [0, 10, 70, 3610, 3620]
    assert budget.left(GROUP, 80_000) == 0
    assert budget.left(PRIVATE, 80_000) == 1
    assert budget.left(GROUP, 86_405) == 1, "the first was sent more than a day ago"


def test_bubbles_of_the_account_are_spread() -> None:
    budget = Budget(Chat(account_gap_s=0.5))
    assert [budget.wait_s(10.0), budget.wait_s(10.1), budget.wait_s(10.2), budget.wait_s(20.0)] == pytest.approx(
        [0.0, 0.4, 0.8, 0.0]
    )


@pytest.mark.parametrize(
    ("hours", "quiet"),
    [
        ("", []), ("09:00-17:30", ["09:00", "17:29"]), ("23:30-07:00", ["23:30", "00:00", "06:59"]),
        ("12:00-12:00", ASKED),
    ],
)  # fmt: skip
def test_hours_may_run_over_midnight(hours: str, quiet: list[str]) -> None:
    assert [t for t in ASKED if in_hours(hours, dtime.fromisoformat(t))] == sorted(quiet)


def test_the_account_is_full_whatever_the_scene() -> None:
    budget = Budget(Chat(scene_per_minute=3, account_per_minute=4))
    scenes = [Scene("group", str(i)) for i in range(4)]
    for scene in scenes:
        assert budget.hindrance(scene, 0) is None
        budget.spend(scene, 0)
    assert {budget.hindrance(s, 30) for s in [*scenes, PRIVATE]} == {"budget"}
    assert budget.hindrance(PRIVATE, 61) is None


def test_every_refusal_halves_a_scenes_budget_for_ten_minutes() -> None:
    budget = Budget(Chat(scene_per_minute=4, account_per_minute=100))

    def left(now: float) -> int:
        count = 0
        while budget.hindrance(GROUP, now) is None:
            budget.spend(GROUP, now)
            count += 1
        return count

    assert left(0) == 4
    budget.failed(GROUP, 100, SendFailure.REFUSED)
    assert left(100) == 2
    budget.failed(GROUP, 200, SendFailure.REFUSED)
    budget.failed(GROUP, 200, SendFailure.REFUSED)
    assert left(300) == 0
    assert left(701) == 1
    assert left(900) == 4
    assert budget.hindrance(PRIVATE, 900) is None


@pytest.mark.parametrize(
    ("failure", "left"),
    [(SendFailure.REFUSED, 2), (SendFailure.UNKNOWN, 2), (SendFailure.OFFLINE, 4), (SendFailure.BUG, 4)],
)
def test_what_never_reached_qq_costs_no_budget(failure: SendFailure, left: int) -> None:
    budget = Budget(Chat(scene_per_minute=4))
    budget.failed(GROUP, 0, failure)
    for _ in range(left):
        assert budget.hindrance(GROUP, 0) is None
        budget.spend(GROUP, 0)
    assert budget.hindrance(GROUP, 0) == "budget"


def test_a_message_never_confirmed_pauses_the_whole_account() -> None:
    budget = Budget(Chat(shadowed_pause_s=300))
    budget.failed(GROUP, 100, SendFailure.SHADOWED)
    assert [budget.hindrance(s, 399) for s in (GROUP, PRIVATE)] == ["paused", "paused"]
    assert [budget.hindrance(s, 401) for s in (GROUP, PRIVATE)] == [None, None]


def test_a_mute_holds_for_its_group_alone_until_it_ends_or_is_lifted() -> None:
    budget = Budget(Chat())
    budget.mute(GROUP, 60)
    assert [budget.hindrance(GROUP, 59), budget.hindrance(PRIVATE, 59), budget.hindrance(GROUP, 61)] == [
        "muted", None, None,
    ]  # fmt: skip
    budget.mute(GROUP, math.inf)
    assert budget.hindrance(GROUP, 1e9) == "muted"
    budget.mute(GROUP, 0)
    assert budget.hindrance(GROUP, 1) is None
