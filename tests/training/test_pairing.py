"""training/pairing.py: which message an answer answers."""

import pytest
from chats import FRIEND, ME, OTHER, say

from bot.message import Message
from training.pairing import FEATURES, WEIGHTS, Mode, calls, links

TALK = [
    say(20, FRIEND, "小满 明天几点的火车？"),
    say(30, OTHER, "阿强 打球吗"),
    say(33, OTHER, "阿强 三缺一"),
    say(40, ME, "明天早上八点的火车"),
    say(42, ME, "别迟到"),
]


def answered(messages: list[Message], mode: Mode = "scored") -> list[tuple[str | None, str]]:
    found = links(messages, {m.id for m in messages if m.sender_id == ME}, mode)
    return [(link.to.text if link.to else None, link.by) for link in found]


def test_a_question_by_name_with_shared_words_wins_over_the_message_before() -> None:
    assert answered(TALK) == [("小满 明天几点的火车？", "scored")] * 2


def test_a_quote_goes_first_then_a_mention() -> None:
    quote = say(40, ME, "明天早上八点的火车", reply_to=TALK[1].id)
    assert answered([*TALK[:3], quote]) == [("阿强 打球吗", "quote")]
    mention = say(40, ME, "@小红 明天早上八点的火车", mentions=(OTHER,))
    assert answered([*TALK[:3], mention]) == [("阿强 三缺一", "mention")]


@pytest.mark.parametrize(("mode", "want"), [("previous", "阿强 三缺一"), ("mentioned", None), ("empty", None)])
def test_the_simple_rules_are_there(mode: Mode, want: str | None) -> None:
    assert answered(TALK, mode) == [(want, mode)] * 2
    asked = [say(0, FRIEND, "@小满 在吗", mentions=(ME,)), *TALK[1:]]
    assert answered(asked, "mentioned")[0] == ("@小满 在吗", "mentioned")


def test_a_quote_of_what_comes_later_is_none() -> None:
    quote = say(40, ME, "明天早上八点的火车", reply_to=f"{OTHER}-50")
    assert answered([*TALK[:3], quote, say(50, OTHER, "算了")]) == [("小满 明天几点的火车？", "scored")]


def test_the_persons_own_words_are_nothing_they_answer() -> None:
    said = [say(0, ME, "明天早上八点的火车"), say(100, OTHER, "哦"), say(105, ME, "明天早上八点的火车票")]
    assert answered(said)[1] == ("哦", "scored")


def test_a_bubble_that_follows_goes_on_unless_it_says_otherwise() -> None:
    quoting = say(42, ME, "打的", reply_to=TALK[1].id)
    assert answered([*TALK[:4], quoting, say(43, ME, "下午")]) == [
        ("小满 明天几点的火车？", "scored"), ("阿强 打球吗", "quote"), ("阿强 打球吗", "quote"),
    ]  # fmt: skip


def test_a_bubble_of_somebody_else_does_not_go_on_with_it() -> None:
    said = [*TALK[:4], say(9000, OTHER, "起床了")]
    mine, others = links(said, {said[3].id, said[4].id})
    assert (mine.to, others.to) == (said[0], None)


def test_what_a_model_chose_goes_before_the_rule_and_not_before_a_quote() -> None:
    picks = {TALK[3].id: TALK[1], "q": TALK[1]}
    quote = say(50, ME, "好", id="q", reply_to=TALK[2].id)
    found = links([*TALK[:4], say(45, OTHER, "嗯"), quote], {TALK[3].id, "q"}, picks=picks)
    assert [(link.to, link.by) for link in found] == [(TALK[1], "model"), (TALK[2], "quote")]


@pytest.mark.parametrize(("text", "name", "found"), [
    ("阿强去哪", "阿强", True), ("好的", "好", False), ("ann: hi", "Ann", True), ("Annabel hi", "Ann", False),
    ("my_ann", "Ann", False), ("问ann吧", "Ann", True), ("谁啊", "阿强", False),
])  # fmt: skip
def test_a_name_is_called_as_a_word_of_its_own(text: str, name: str, found: bool) -> None:
    assert calls(text, name) is found


def test_a_mention_wins_over_whatever_scores_better() -> None:
    asked = [say(600 + n, FRIEND, "小满 明天早上八点的火车票买了吗") for n in range(30)]
    words = "@小红 明天早上八点的火车票买了"
    said = [say(0, OTHER, "在吗"), *asked]
    assert answered([*said, say(640, ME, words)])[0][0] == asked[-1].text
    assert answered([*said, say(640, ME, words, mentions=(OTHER,))]) == [("在吗", "mention")]


@pytest.mark.parametrize(("after_s", "found"), [(7000, True), (7300, False)])
def test_what_was_asked_two_hours_ago_is_not_answered_any_more(after_s: int, found: bool) -> None:
    before = [say(-9000 + n, OTHER, f"话{n}") for n in range(40)]
    asked = say(0, FRIEND, "小满 明天早上八点的火车票买了吗")
    assert answered([*before, asked, say(after_s, ME, "明天早上八点的火车票买了")]) == [
        (asked.text if found else None, "scored")
    ]


def test_words_long_after_everything_answer_nothing() -> None:
    (link,) = links([*TALK, say(9000, ME, "起床了")], {f"{ME}-9000"})
    assert (link.to, link.by) == (None, "scored")
    assert 0 < link.score <= 1


def test_words_that_everybody_says_all_the_time_weigh_nothing() -> None:
    same = [say(0, FRIEND, "接龙报名"), say(5, ME, "接龙报名")]
    assert answered(same) == [("接龙报名", "scored")]


def test_every_feature_has_a_weight() -> None:
    assert tuple(WEIGHTS) == FEATURES
