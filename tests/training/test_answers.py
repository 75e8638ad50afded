"""Held-out questions: what of them is asked when not all of it fits, and that it is then answered."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import tinymodel
from chats import FRIEND, ME, PRIVATE, say

from bot.archive import Archive
from bot.checksum import sha256
from bot.config import Conversation, Engine
from bot.llama import Model
from bot.persona import Sampling
from bot.prompt import FORMATS, Piece, encode
from bot.serving import LlamaEngine
from training import corpus
from training.answers import Question, Said, answer, questions
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


@pytest.fixture
def talk(tmp_path: Path) -> list[Question]:
    """Every moment of a chat of 24 exchanges, each said something about."""
    archive = Archive(f"sqlite:///{tmp_path / 'talk.db'}")
    for i in range(24):
        archive.append([say(60 * i, FRIEND, f"问{i}", PRIVATE), say(60 * i + 5, ME, f"答{i}", PRIVATE)])
    learned = corpus.build(archive, [ME], ["小满"], Conversation())
    archive.close()
    found = [q for split in Split for q in questions(learned, GEMMA, "你是小满。", split)]
    assert len(found) == 24
    return sorted(found, key=lambda q: int(q.heard[1:]))


def test_moments_in_a_row_are_asked_with_windows_that_begin_alike(talk: list[Question]) -> None:
    prompts = [asked(q, ROOM) for q in talk]
    alike = sum(b.startswith(a) for a, b in pairwise(prompts))
    assert alike == 21, "the window begins anew after 13 and 19 exchanges, and in a conversation there is one header"
    assert {len(q.history) for q in talk[14:]} == {9, 10, 11, 12, 13, 14}


def test_what_does_not_fit_goes_six_exchanges_at_a_time(talk: list[Question]) -> None:
    whole = asked(talk[12], ROOM)
    cut = asked(talk[12], len(whole) - 1)
    assert [words for words in ("问5", "答5") if words in cut] == []
    assert "问6" in cut


def test_moments_in_a_row_cost_their_new_tokens_and_each_is_answered(
    talk: list[Question], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = tinymodel.build(tmp_path / "tiny")
    settings = Engine(n_ctx=512, kv_tokens=1024, n_threads=1, n_gpu_layers=0, n_parallel=2)
    read = []
    close = LlamaEngine.close

    async def counted(engine: LlamaEngine) -> None:
        read.append(engine.base.batcher.evaluated)
        await close(engine)

    monkeypatch.setattr(LlamaEngine, "close", counted)
    told: list[tuple[int, int]] = []

    def ask(some: list[Question]) -> list[Said]:
        return answer(tiny.gguf, sha256(tiny.gguf), None, GEMMA, some, Sampling(max_tokens=1), settings,
                      progress=lambda done, of: told.append((done, of)))  # fmt: skip

    every = ask(talk)
    model = Model(tiny.gguf, 0, vocab_only=True)
    whole = [len(encode(q.pieces(characters, ROOM), model)[0]) for q in talk]
    model.close()
    assert read[0] < sum(whole) / 2, "the words they share are read once"
    assert told == [(n, 24) for n in range(1, 25)]
    for number in (0, 7, 13, 23):
        (alone,) = ask([talk[number]])
        assert every[number].p_silent == pytest.approx(alone.p_silent, abs=1e-3), "in the order asked"


def test_a_question_longer_than_the_context_is_answered_by_the_engine(question: Question, tmp_path: Path) -> None:
    tiny = tinymodel.build(tmp_path / "tiny")
    settings = Engine(n_ctx=512, kv_tokens=512, n_threads=1, n_gpu_layers=0)
    (said,) = answer(tiny.gguf, sha256(tiny.gguf), None, GEMMA, [question], Sampling(max_tokens=8), settings)
    assert 0 < said.p_silent < 1
