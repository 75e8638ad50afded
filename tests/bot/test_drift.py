"""bot/drift.py: the person's own bands, against cases with known values."""

import math
import random

import pytest
from chats import FRIEND, GROUP, ME, OTHER, at, say

from bot import drift
from bot.archive import Decision
from bot.config import Conversation, Retrain
from bot.drift import Answer

BLOCK = 30
SIGMAS = Retrain().drift_sigmas


def answers(n: int, seed: int = 0, *, longer: int = 0, laughs: float = 0.3, bubbles: int = 1) -> list[Answer]:
    """Answers of somebody with habits: length, laughter, number of bubbles."""
    rng = random.Random(seed)
    found = []
    for number in range(n):
        words = "".join(rng.choice("今天我们去哪里吃饭呢好不好呀") for _ in range(rng.randrange(2, 9) + longer))
        laugh = "哈哈" if rng.random() < laughs else ""
        found.append([f"{words}{laugh}{number:03d}", *[f"嗯{number:03d}"] * (rng.randrange(2) + bubbles - 1)])
    return found


def test_the_measures_of_a_block_are_what_they_say() -> None:
    block = [["好。", "哈哈[捂脸]"], ["好。"], ["去"]]
    values = {name: of(block) for name, of in drift.STYLE.items()}
    assert values["log_chars"] == pytest.approx((math.log(3) * 2 + math.log(7) + math.log(2)) / 4)
    assert values["bubbles"] == pytest.approx(math.log(2) / 3)
    assert (values["punctuation"], values["faces"], values["distinct"]) == (2 / 4, 1 / 4, 3 / 4)
    assert values["laughter"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("bubble", "face"),
    [
        ("好[捂脸]", True), ("[动画表情]", True), ("[动画表情:一个很长很长的名字的表情包]", True), ("[表情]", True),
        ("好", False), ("看[图片]", False), ("[图片:一只猫]", False), ("[语音]来了", False), ("[视频]", False),
        ("[文件:a.pdf]", False), ("[手机号]", False), ("[卡片:歌]", False),
    ],
)  # fmt: skip
def test_faces_are_faces_and_stickers_and_no_other_media(bubble: str, face: bool) -> None:
    assert drift.STYLE["faces"]([[bubble]]) == face


def test_the_person_stays_inside_their_own_bands() -> None:
    bands = drift.style_bands(answers(900), BLOCK, SIGMAS)
    assert set(bands) == set(drift.STYLE)
    later = answers(600, seed=7)
    assert [drift.style_outside(later[i : i + BLOCK], bands) for i in range(0, 600, BLOCK)] == [[]] * 20


@pytest.mark.parametrize(
    ("changed", "measure"),
    [({"longer": 20}, "log_chars"), ({"laughs": 1.0}, "laughter"), ({"bubbles": 4}, "bubbles")],
)
def test_a_changed_habit_is_named(changed: dict[str, int], measure: str) -> None:
    bands = drift.style_bands(answers(900), BLOCK, SIGMAS)
    found = drift.style_outside(answers(BLOCK, seed=3, **changed), bands)  # type: ignore[arg-type]
    assert measure in [o.measure for o in found]


def test_a_twin_that_says_one_thing_is_outside() -> None:
    found = drift.style_outside([["好的"]] * BLOCK, drift.style_bands(answers(900), BLOCK, SIGMAS))
    assert "distinct" in [o.measure for o in found]


def test_too_little_of_the_person_gives_no_band() -> None:
    assert drift.style_bands(answers(BLOCK * drift.MIN_BLOCKS - 1), BLOCK, SIGMAS) == {}
    assert drift.rate_band([True, False] * 5, BLOCK, SIGMAS) is None
    band = drift.rate_band([True, False] * (BLOCK * 4), BLOCK, SIGMAS)
    assert band is not None
    assert band.low < band.mean == 0.5 < band.high


@pytest.mark.parametrize(("degrees", "z", "t"), [(7, 4, 8.467), (15, 4, 5.480), (29, 4, 4.670), (7, 3, 4.530)])
def test_a_band_of_few_blocks_is_as_wide_as_students_t_says(degrees: int, z: float, t: float) -> None:
    band = drift.rate_band([k % 2 == 0 for k in range(2 * (degrees + 1))], 2, z)
    assert band is not None
    half = t * math.sqrt(1 + 1 / (degrees + 1)) * 0.02  # blocks all alike: the least spread of a share
    assert band.high - band.mean == pytest.approx(band.mean - band.low) == pytest.approx(half, rel=0.02)


def test_a_band_of_any_width_is_made() -> None:
    band = drift.rate_band([True, False] * 8, 2, 1000.0)
    assert band is not None
    assert math.isfinite(band.high)


def test_only_what_stays_outside_on_one_side_lasts() -> None:
    band = drift.Band(0.5, 0.4, 0.6)
    high, low = drift.left("faces", 0.7, band), drift.left("faces", 0.3, band)
    assert drift.left("faces", 0.6, band) == drift.lasting([]) == []
    assert drift.lasting([high]) == drift.lasting([high, drift.left("faces", 0.9, band)]) == high
    assert drift.lasting([high, low]) == drift.lasting([high, []]) == drift.lasting([[], high]) == []


@pytest.mark.parametrize(("n", "blocks"), [(5, []), (6, ["def", "abc"]), (7, ["efg", "bcd"])])
def test_the_newest_blocks_share_nothing(n: int, blocks: list[str]) -> None:
    assert drift.newest("abcdefg"[:n], 3, 2) == blocks


def test_what_was_learned_is_told_without_the_owners_shifts() -> None:
    terms = {"intercept": -1.0, "log_odds": 1.0, "shift:bias": 30.0, "shift:mention": 2.0}
    assert drift.inclination(Decision(GROUP, "1", at(0), "x", "v", "spoke", {"terms": terms})) == pytest.approx(0.5)
    assert drift.inclination(Decision(GROUP, "1", at(0), "x", "v", "failed: engine")) is None


def test_answers_are_runs_of_ones_own_bubbles() -> None:
    said = [
        say(0, ME, "早"), say(1, ME, "在吗"), say(2, FRIEND, "在"), say(3, ME, ""), say(4, ME, "好"),
        say(5, OTHER, "嗯"),
    ]  # fmt: skip
    found = drift.answers_of(said, lambda m: m.sender_id == ME)
    assert found == [(at(0), ("早", "在吗")), (at(4), ("好",))]


def test_decision_points_are_where_the_person_was_around() -> None:
    rules = Conversation(presence_s=3600)
    said = [
        say(0, FRIEND, "有人吗"), say(60, ME, "有"), say(120, FRIEND, "哦"), say(180, FRIEND, "吃吗"),
        say(185, ME, "吃"), say(9000, FRIEND, "人呢"),
    ]  # fmt: skip
    found = drift.decision_points(said, frozenset([ME]), rules)
    assert found == [(at(0), True), (at(120), False), (at(180), True)]
