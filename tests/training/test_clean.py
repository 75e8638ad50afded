"""training/clean.py: answers that are not trained, and why; merging."""

import pytest
from chats import FRIEND, ME, OTHER, say
from hypothesis import given
from hypothesis import strategies as st

from bot.config import Cleaning
from training.clean import Reason, duplicates, masked, merged

LONG = "今天晚上七点老地方集合记得带上身份证和门票"


@pytest.mark.parametrize(("said", "heard", "rules", "why"), [
    (["我也觉得是"], "在吗", {}, None),
    (["哈哈哈哈哈哈"], "哈哈哈哈哈哈", {}, Reason.REPEAT),
    (["哈哈哈哈哈哈", "哈哈哈哈哈哈"], "哈哈哈哈哈哈", {}, Reason.REPEAT),
    (["哈哈哈哈哈哈", "真的"], "哈哈哈哈哈哈", {}, None),
    (["晚安"], "晚安", {}, None),
    (["哈哈哈哈哈哈"], "哈哈哈哈哈哈", {"drop_repeats": False}, None),
    (["[图片]", "[文件:a.pdf]"], "看看", {}, Reason.MEDIA),
    (["[图片]", "看"], "看看", {}, None),
    (["[动画表情]"], "看看", {}, None),
    (["[图片]"], "看看", {"drop_media": False}, None),
    (["[图片]", "哈哈哈哈哈哈"], "哈哈哈哈哈哈", {}, Reason.REPEAT),
    (["[图片]", "嗯"], "看看", {"min_chars": 2}, Reason.SHORT),
    (["[图片]", "嗯"], "看看", {"min_chars": 2, "drop_media": False}, None),
    (["锟斤拷锟斤拷"], "看看", {}, Reason.MOJIBAKE),
    (["浣犲ソ"], "看看", {}, Reason.MOJIBAKE),
    (["ä½å¥½"], "看看", {}, Reason.MOJIBAKE),
    (["caf\ufffd"], "看看", {}, Reason.MOJIBAKE),
    (["联通", "café"], "看看", {}, None),
    (["好吧（"], "看看", {}, None),
    (["他说：“"], "看看", {}, Reason.CUT_OFF),
    (["看这个[动画表"], "看看", {}, Reason.CUT_OFF),
    (["好" * 59 + "，"], "看看", {}, Reason.CUT_OFF), (["好" * 58 + "，"], "看看", {}, None),
    (["好" * 70 + "，"], "看看", {}, Reason.CUT_OFF),
    (["等我一下，"], "看看", {}, None),
    (["他说：“"], "看看", {"drop_broken": False}, None),
    (["嗯"], "看看", {"min_chars": 2}, Reason.SHORT), (["嗯嗯"], "看看", {"min_chars": 2}, None),
    (["好" * 401], "看看", {}, Reason.LONG), (["好" * 400], "看看", {}, None),
    (["哈哈哈哈哈"], "哈哈哈哈哈", {}, Reason.REPEAT), (["哈哈哈哈"], "哈哈哈哈", {}, None),
    (["[戳一戳]"], "[戳一戳]", {}, None), (["[动画表情:笑]"], "[动画表情:笑]", {}, None),
    (["[doge]" * 4], "[doge]" * 4, {}, None), (["[doge]" * 5], "[doge]" * 5, {}, Reason.REPEAT),
    (["买 vpn 找我"], "看看", {"blocked_words": ("VPN",)}, Reason.BLOCKED),
    (["买 Vpn 找我"], "看看", {"blocked_words": ("vpn",)}, Reason.BLOCKED),
    (["我先说"], None, {}, None),
])  # fmt: skip
def test_why_an_answer_is_not_trained(said: list[str], heard: str | None, rules: dict, why: Reason | None) -> None:  # type: ignore[type-arg]
    assert masked(said, heard, Cleaning(**rules)) is why


def test_near_duplicates_are_capped_and_the_first_ones_stay() -> None:
    same = [LONG, LONG + "！", LONG + "～", "集合" + LONG, LONG, LONG]
    texts = [same[0], "完全不一样的另外一句话说的是别的事情", *same[1:], "哈哈哈", "哈哈哈", "哈哈哈", "哈哈哈"]
    over = duplicates(texts, Cleaning())
    assert over == {4, 5, 6}
    assert duplicates(texts, Cleaning(duplicate_cap=100)) == set()
    assert duplicates(["哈哈哈"] * 50, Cleaning(duplicate_min_chars=2, duplicate_cap=10)) == set(range(10, 50))
    assert duplicates(["嗯"] * 50, Cleaning(duplicate_min_chars=1, duplicate_cap=10)) == set(), (
        "of one there is no pair"
    )


def test_answers_that_begin_alike_and_go_on_differently_are_none() -> None:
    tails = ["".join(chr(0x4E00 + 100 * i + j) for j in range(12)) for i in range(10)]
    assert duplicates([LONG[:13] + tail for tail in tails], Cleaning(duplicate_cap=1)) == set()


@given(
    st.lists(st.sampled_from([LONG, LONG[:-1], "完全不一样的另外一句话说的是别的事情", "短"]), max_size=12),
    st.integers(0, 12),
)
def test_what_comes_later_unmasks_and_masks_nothing_before(texts: list[str], n: int) -> None:
    rules = Cleaning(duplicate_cap=1)
    assert {i for i in duplicates(texts, rules) if i < n} == duplicates(texts[:n], rules)


TALK = [say(0, ME, "我到"), say(5, FRIEND, "在哪"), say(9, OTHER, "快点"), say(20, ME, "楼下了"), say(200, ME, "人呢")]


def test_merging_brings_a_speakers_bubbles_together_at_their_mean_time() -> None:
    found, moved = merged(TALK, Cleaning(merge="bubbles"))
    assert [m.text for m in found] == ["在哪", "快点", "我到", "楼下了", "人呢"]
    assert [(m.time - TALK[0].time).total_seconds() for m in found] == [5, 9, 10, 10, 200]
    assert moved == {TALK[3].id}


def test_merging_as_one_text_joins_with_a_comma() -> None:
    found, _ = merged(TALK, Cleaning(merge="，"))
    assert [m.text for m in found] == ["在哪", "快点", "我到，楼下了", "人呢"]


def test_one_text_quotes_and_mentions_whom_its_parts_did() -> None:
    said = [
        say(0, ME, "好", mentions=(OTHER,)), say(5, FRIEND, "嗯"),
        say(9, ME, "来", mentions=(OTHER, FRIEND), reply_to=f"{FRIEND}-5"),
    ]  # fmt: skip
    found, _ = merged(said, Cleaning(merge="，"))
    assert [(m.text, m.mentions, m.reply_to) for m in found[:1]] == [("好，来", (OTHER, FRIEND), f"{FRIEND}-5")]


def test_bubbles_that_follow_each_other_have_not_moved() -> None:
    said = [say(0, ME, "我到"), say(4, ME, "楼下"), say(8, FRIEND, "在哪"), say(12, ME, "了")]
    assert merged(said, Cleaning(merge="bubbles"))[1] == {said[3].id}


@pytest.mark.parametrize("rules", [{"merge_interleaved": 1}, {"merge_gap_s": 19}])
def test_what_is_too_far_apart_is_not_merged(rules: dict[str, int]) -> None:
    assert merged(TALK, Cleaning(merge="bubbles", **rules)) == (TALK, set())  # type: ignore[arg-type]


def test_unless_asked_for_nothing_is_merged() -> None:
    assert merged(TALK, Cleaning()) == (TALK, set())
