"""bot/pacing.py: the person's own tempo."""

import random
from datetime import time as dtime
from typing import Any

import pytest
from chats import FRIEND, OTHER, say
from hypothesis import given
from hypothesis import strategies as st

from bot.config import Chat
from bot.hours import in_hours
from bot.message import Message
from bot.pacing import DEFAULT_DELAY_S, DEFAULT_GAP_S, Pace, quantile, rhythms_s, situations
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


ASKED = ["00:00", "06:59", "07:00", "08:59", "09:00", "17:29", "17:30", "23:29", "23:30"]


@pytest.mark.parametrize(
    ("hours", "quiet"),
    [
        ("", []), ("09:00-17:30", ["09:00", "17:29"]), ("23:30-07:00", ["23:30", "00:00", "06:59"]),
        ("12:00-12:00", ASKED),
    ],
)  # fmt: skip
def test_hours_may_run_over_midnight(hours: str, quiet: list[str]) -> None:
    assert [t for t in ASKED if in_hours(hours, dtime.fromisoformat(t))] == sorted(quiet)


def bubbles(*gaps_s: float, who: str = FRIEND) -> list[Message]:
    """Bubbles of one speaker with these gaps between them."""
    return [say(sum(gaps_s[:n]), who, "嗯") for n in range(len(gaps_s) + 1)]


def test_a_rhythm_is_the_time_in_which_four_of_five_further_bubbles_come() -> None:
    assert rhythms_s(bubbles(1, 2, 3, 4, 5, 6))[FRIEND] == pytest.approx(5.0)
    assert OTHER not in rhythms_s(bubbles(1, 2, 3, 4, 5, 6))


def test_of_few_gaps_no_rhythm_is_told() -> None:
    assert FRIEND not in rhythms_s(bubbles(4, 4, 4, 4))
    assert rhythms_s(bubbles(4, 4, 4, 4, 4))[FRIEND] == 4.0


def test_what_comes_after_a_burst_is_no_part_of_a_rhythm() -> None:
    assert rhythms_s(bubbles(4, 4, 4, 4, 4, 300, 400, 500))[FRIEND] == 4.0


def test_somebody_elses_words_between_are_no_part_of_a_rhythm() -> None:
    talk = [say(2.0 * n, FRIEND if n % 2 else OTHER, "嗯") for n in range(20)]
    assert rhythms_s(talk) == {}
