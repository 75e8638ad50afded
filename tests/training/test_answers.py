"""Held-out questions: what of them is asked when not all of it fits, and that it is then answered."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import tinymodel
from chats import FRIEND, ME, PRIVATE, say

from bot.archive import Archive
from bot.checksum import sha256
from bot.config import Conversation, Engine
from bot.persona import Sampling
from bot.prompt import FORMATS, Piece
from training import corpus
from training.answers import Question, answer, questions
from training.samples import Split

GEMMA = FORMATS["gemma"]
ROOM = 10**6
FIRST, SECOND = "甲" * 300, "乙" * 300 + "尾"


@pytest.fixture
def question(tmp_path: Path) -> Question:
    """Two exchanges and a third to answer, of two long bubbles."""
    archive = Archive(f"sqlite:///{tmp_path / 'archive.db'}")
    said = [
        say(0, FRIEND, "最早", PRIVATE), say(5, ME, "早的答", PRIVATE), say(60, FRIEND, "后来", PRIVATE),
        say(65, ME, "后的答", PRIVATE), say(120, FRIEND, FIRST, PRIVATE), say(121, FRIEND, SECOND, PRIVATE),
        say(130, ME, "真的答", PRIVATE),
    ]  # fmt: skip
    archive.append(said)
    learned = corpus.build(archive, [ME], ["小满"], Conversation())
    archive.close()
    asked = [q for split in Split for q in questions(learned, GEMMA, "你是小满。", split)]
    assert len(asked) == 3
    return asked[-1]


def characters(pieces: Sequence[Piece]) -> int:
    """Every character a token."""
    return sum(len(p.text) for p in pieces)


def asked(question: Question, budget: int) -> str:
    """The prompt within a budget of characters."""
    pieces = question.pieces(characters, budget)
    assert characters(pieces) <= budget
    return "".join(p.text for p in pieces)


def test_a_question_that_fits_is_asked_whole_and_without_its_answer(question: Question) -> None:
    whole = asked(question, ROOM)
    assert [whole.count(words) for words in ("最早", "早的答", "后来", "后的答", FIRST, SECOND)] == [1] * 6
    assert "真的答" not in whole
    assert asked(question, len(whole)) == whole
    assert whole.endswith(f"{SECOND}{GEMMA.user_close}{GEMMA.assistant_open}")


@pytest.mark.parametrize(("less", "gone", "kept"), [
    (1, ["最早", "早的答"], ["后来", "后的答", FIRST, SECOND]),
    (90, ["最早", "早的答", "后来", "后的答"], [FIRST, SECOND]),
    (200, ["最早", "后来", FIRST], [SECOND]),
    (500, ["最早", "后来", FIRST, SECOND], ["乙尾"]),
])  # fmt: skip
def test_of_a_question_longer_than_the_context_the_oldest_goes_first(
    question: Question, less: int, gone: list[str], kept: list[str]
) -> None:
    cut = asked(question, len(asked(question, ROOM)) - less)
    assert [words for words in gone if words in cut] == []
    assert [words for words in kept if words not in cut] == []
    assert "你是小满。" in cut
    assert cut.endswith(f"尾{GEMMA.user_close}{GEMMA.assistant_open}")


def test_a_question_longer_than_the_context_is_answered_by_the_engine(question: Question, tmp_path: Path) -> None:
    tiny = tinymodel.build(tmp_path / "tiny")
    settings = Engine(n_ctx=512, kv_tokens=512, n_threads=1, n_gpu_layers=0)
    (said,) = answer(tiny.gguf, sha256(tiny.gguf), None, GEMMA, [question], Sampling(max_tokens=8), settings)
    assert 0 < said.p_silent < 1
