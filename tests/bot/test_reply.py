import pytest

from bot.reply import tidy


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
