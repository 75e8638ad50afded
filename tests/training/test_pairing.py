"""training/pairing.py: which message an answer answers."""

import pytest
from chats import FRIEND, ME, OTHER, say

from bot.message import Message
from training.pairing import FEATURES, WEIGHTS, Mode, links

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


def test_words_long_after_everything_answer_nothing() -> None:
    (link,) = links([*TALK, say(9000, ME, "起床了")], {f"{ME}-9000"})
    assert (link.to, link.by) == (None, "scored")
    assert 0 < link.score <= 1


def test_every_feature_has_a_weight() -> None:
    assert tuple(WEIGHTS) == FEATURES
