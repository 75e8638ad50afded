"""bot.copies.py: what several of our accounts hear in a group is one message."""

import pytest
from chats import FRIEND, GROUP, OTHER, PRIVATE, say

from bot.copies import Copies
from bot.message import Message

A, B = "40001", "40002"


def heard(
    account: str, number: int, words: str = "早", sender: str = FRIEND, seq: int | None = 5, at: float = 0
) -> Message:
    """A message as an account hears it, under its own id."""
    segments = ({"type": "text", "data": {"text": words}},)
    return say(at, sender, words, id=f"{account}-{number}", seq=seq, segments=segments)


@pytest.mark.parametrize("seq", [5, None])
def test_what_another_account_told_is_a_copy_and_a_replay_is_not(seq: int | None) -> None:
    copies = Copies()
    assert not copies.told(heard(A, 1, seq=seq), A)
    assert copies.told(heard(B, 1, seq=seq), B)
    assert copies.told(heard(B, 1, seq=seq), B), "the same event again"
    assert not copies.told(heard(A, 1, seq=seq), A), "a replay is told by its id, elsewhere"
    assert copies.stands_as(GROUP, f"{B}-1") == f"{A}-1"
    assert copies.stands_as(GROUP, "other") == "other"
    assert copies.stands_as(GROUP, None) is None


def test_numbers_tell_equal_words_apart_and_unequal_ones_together() -> None:
    copies = Copies()
    assert [copies.told(heard(A, n, "哈哈", seq=n), A) for n in (1, 2)] == [False, False]
    assert [copies.told(heard(B, n, "哈哈", seq=n), B) for n in (2, 1, 3)] == [True, True, False]
    assert copies.stands_as(GROUP, f"{B}-2") == f"{A}-2"
    assert copies.told(heard(B, 9, "@旧名", seq=1), B) is False, "B told number 1 already, under another id"


def test_without_numbers_each_of_two_equal_bubbles_counts() -> None:
    copies = Copies()
    assert [copies.told(heard(A, n, "哈哈", seq=None), A) for n in (1, 2)] == [False, False]
    assert [copies.told(heard(B, n, "哈哈", seq=None, at=1), B) for n in (1, 2, 3)] == [True, True, False]


def test_other_people_scenes_and_moments_are_no_copies() -> None:
    copies = Copies()
    copies.told(heard(A, 1, seq=None), A)
    assert not copies.told(heard(B, 2, sender=OTHER, seq=None), B)
    assert not copies.told(heard(B, 3, seq=None, at=5), B)
    assert not copies.told(heard(B, 4, "晚", seq=None), B)
    private = say(0, FRIEND, "早", PRIVATE, id="p")
    assert not copies.told(private, A)
    assert not copies.told(private, B), "each account has its own private chats"
