import pytest

from bot.reply import tidy, uncounted


@pytest.mark.parametrize(
    ("made", "sent"),
    [
        ("  好呀 ", "好呀"),
        ("红\x1b[31m字\x07", "红[31m字"),
        ("一\x00二\x0b三", "一二三"),
        ("一家人👨‍👩‍👧", "一家人👨‍👩‍👧"),
        ("\x0b\x1c ", ""),
        ("哈" * 600, "哈" * 500),
    ],
)
def test_a_bubble_is_sent_without_control_characters_or_endless_text(made: str, sent: str) -> None:
    assert tidy(made) == sent


@pytest.mark.parametrize(
    ("one", "other", "loop"),
    [
        ("我数到3了", "我数到14了", True), ("3", "2", False), ("10:30", "10:40", False), ("第1次", "第2回", False),
        ("好耶", "好耶", False),
    ],
)  # fmt: skip
def test_bubbles_that_only_count_on_are_told_from_counting(one: str, other: str, loop: bool) -> None:
    assert (uncounted(one) == uncounted(other) and uncounted(one) != one) is loop
