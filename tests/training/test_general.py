"""General chat: every answer of it is trained, nobody else's word, and no more of it than its share."""

import json
from pathlib import Path

import pytest
import talks
import tinymodel
from tokenizers import Tokenizer

from bot.config import Cleaning, Conversation, Training
from bot.errors import TrainingError
from training import general
from training.batches import IGNORED, Row, row_of
from training.hf import HFTokenizer
from training.samples import Split, Window
from training.selection import Extra, select

LENGTH = 160


def dialogue(n: int, system: str | None = None) -> dict[str, object]:
    """Two questions and two answers."""
    turns = [("user", f"问题{n}"), ("assistant", f"回答{n}"), ("user", f"再问{n}"), ("assistant", f"再答{n}")]
    told = [] if system is None else [("system", system)]
    return {"messages": [{"role": role, "content": text} for role, text in (*told, *turns)]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 checkpoint that knows the words."""
    texts = [*tinymodel.TEXTS, "你是助手。", *(json.dumps(dialogue(n), ensure_ascii=False) for n in range(40))]
    return tinymodel.build(tmp_path_factory.mktemp("tiny"), "qwen3", texts=texts).hf


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Forty dialogues; the first brings a system prompt."""
    file = tmp_path / "general.jsonl"
    lines = [dialogue(n, "你是助手。" if n == 0 else None) for n in range(40)]
    file.write_text("\n".join(json.dumps(x, ensure_ascii=False) for x in lines), "utf-8")
    return file


def windows(files: list[Path], base: Path, prompt: str = "") -> list[Window]:
    return general.windows(files, HFTokenizer(base), prompt, LENGTH, Conversation(), Cleaning())


def trained(row: Row, base: Path) -> str:
    words = Tokenizer.from_file(str(base / "tokenizer.json"))
    return words.decode([t for t in row.targets if t != IGNORED], skip_special_tokens=False)


def test_every_answer_is_trained_and_nobody_elses_word(base: Path, file: Path) -> None:
    found = windows([file], base)
    rows = [row for w in found if (row := row_of(w, None))]
    assert len(rows) == len(found) > 0
    answers = [part for row in rows for part in trained(row, base).split("<|im_end|>") if part.strip()]
    assert sorted(answers) == sorted(f"{what}{n}" for n in range(40) for what in ("回答", "再答"))
    words = Tokenizer.from_file(str(base / "tokenizer.json"))
    read = "".join(words.decode(w.ids, skip_special_tokens=False) for w in found)
    assert all(f"{what}{n}" in read for n in range(40) for what in ("问题", "再问"))
    assert read.count("你是助手。") == 1
    told = windows([file], base, "你是小满。")
    read = [words.decode(w.ids, skip_special_tokens=False) for w in told]
    assert [("你是助手。" in text) + ("你是小满。" in text) for text in read] == [1] * len(read)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.4])
def test_its_share_of_the_windows_is_kept_whatever_there_is_of_it(share: float, base: Path, file: Path) -> None:
    own, extra = talks.samples(base), Extra(general=windows([file], base))
    settings = Training(general_share=share)
    found = select(own, settings, extra)
    rows = [row for w in extra.general if (row := row_of(w, None))]
    mine = [row for w in own if (row := row_of(w, Split.TRAIN))]
    assert found.train[: len(mine)] == tuple(mine)
    chat = found.train[len(mine) :]
    assert found.counts == {"new": len(mine), "replayed": 0, "general": len(chat)}
    assert len(chat) / len(found.train) == pytest.approx(share, abs=0.5 / len(mine))
    assert all(row in rows for row in chat)
    assert found == select(own, settings, extra)
    assert chat != select(own, settings.model_copy(update={"seed": 7}), extra).train[len(mine) :]
    few = select(own, settings, Extra(general=extra.general[:1]))
    assert few.counts["general"] == 1


def test_what_cannot_be_read_is_told_by_its_name(base: Path, tmp_path: Path) -> None:
    assert windows([], base) == []
    with pytest.raises(TrainingError, match=r"\[training\] names 'gone\.jsonl', which cannot be read as a train"):
        windows([tmp_path / "gone.jsonl"], base)
    (tmp_path / "talk.jsonl").write_text("nothing of the kind", "utf-8")
    with pytest.raises(TrainingError, match=r"\[training\] names talk\.jsonl, which hold no dialogue to read"):
        windows([tmp_path / "talk.jsonl"], base)
