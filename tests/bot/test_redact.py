"""bot/redact.py: what identifies or unlocks becomes a placeholder, what only looks like it stays."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.redact import PLACEHOLDERS, placeholders, redact
from bot.segments import to_segments
from training.stats import REDACTION, REDACTION_UNSEEN, Rates

TABLE = Path(__file__).resolve().parents[1] / "data" / "redaction.txt"
MARK = re.compile(r"⟨([^|⟩]+)\|([^⟩]+)⟩")
UNSEEN = "written after the rules"


def table() -> Iterator[tuple[str, str, bool]]:
    """(bubble, what it should read as, whether it was written after the rules)."""
    unseen = False
    for line in TABLE.read_text("utf-8").splitlines():
        unseen = unseen or UNSEEN in line
        if not line.startswith("# "):
            yield MARK.sub(r"\2", line), MARK.sub(r"[\1]", line), unseen


def rates(rows: list[tuple[str, str, bool]]) -> Rates:
    """Misses and false alarms by counting placeholders."""
    marked = missed = clean = alarms = 0
    for text, want, _ in rows:
        wanted, got = placeholders(want), placeholders(redact(text))
        marked, missed = marked + wanted.total(), missed + (wanted - got).total()
        clean, alarms = clean + (not wanted), alarms + (got - wanted).total()
    return Rates(marked, missed, clean, alarms)


def test_the_rates_that_corpus_stats_tells_are_those_of_the_table() -> None:
    rows = list(table())
    assert len(rows) > 450
    assert rates(rows) == REDACTION
    assert rates([r for r in rows if r[2]]) == REDACTION_UNSEEN


def test_every_kind_is_found_in_the_table() -> None:
    found = placeholders(" ".join(redact(text) for text, _, _ in table()))
    assert set(found) == set(PLACEHOLDERS)


@pytest.mark.parametrize(("text", "want"), [
    ("卡 6222000000000000004", "卡 [银行卡号]"), ("卡 6222000000000000005", "卡 6222000000000000005"),
    ("110101190001010014", "[身份证号]"), ("110101190001010015", "110101190001010015"),
    ("110101199013010012", "110101199013010012"),  # its check digit fits, and no year has a 13th month
    ("https://a.example/a-long-name-of-an-article-2", "https://a.example/a-long-name-of-an-article-2"),
    ("加我QQ 13800001111", "加我QQ [手机号]"), ("加我QQ 23800001", "加我QQ [QQ号]"),
    ("密码是a1b2c3.", "密码是[密码]."), ("看https://a.example/?token=abc123!", "看[链接]!"),
    ("密码：a1b2c3，别外传", "密码：[密码]，别外传"), ("我１３８００００１１１１", "我[手机号]"),
    ("全角２３３３３３", "全角２３３３３３"), ("见13800001111/13900002222", "见[手机号]/[手机号]"),
])  # fmt: skip
def test_check_digits_decide_and_the_words_around_stay(text: str, want: str) -> None:
    assert redact(text) == want


def test_the_twin_says_placeholders_as_plain_text() -> None:
    said = to_segments("".join(PLACEHOLDERS), {})
    assert said == [{"type": "text", "data": {"text": "".join(PLACEHOLDERS)}}]


def test_redacting_twice_changes_nothing_more() -> None:
    rows = list(table())
    assert [redact(redact(text)) for text, _, _ in rows] == [redact(text) for text, _, _ in rows]


@given(st.text(st.sampled_from("密码是微信QQ号wx路12345678901@.:/-?token= 我好区栋")))
def test_anything_can_be_redacted_and_redacting_twice_changes_nothing_more(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


@given(
    st.text(
        st.characters(
            codec="utf-8", exclude_categories=["Nd", "Cs"], exclude_characters=":@.路街巷弄道同码令信WwPpXxVv"
        )
    )
)
def test_without_digits_and_signs_nothing_is_touched(text: str) -> None:
    assert redact(re.sub("[A-Za-z]", "", text)) == re.sub("[A-Za-z]", "", text)


@pytest.mark.parametrize("text", [
    "好" * 50_000 + "路1", "北京市朝阳区" * 9_000 + "路1", "1" * 50_000, "http://" + "a" * 50_000,
    "http://" + ":" * 50_000,
    "a@" * 25_000 + "1234.", "密码" * 25_000, "密码" + " " * 50_000 + "1", "小区" * 25_000 + "花园A1", "1-" * 25_000,
    "http://a.b/" + "&a" * 25_000, "微信" + "号" * 50_000,
])  # fmt: skip
def test_long_texts_take_linear_time(text: str) -> None:
    began = time.process_time()
    redact(text)
    assert time.process_time() - began < 5, "a quadratic pattern takes a minute"
