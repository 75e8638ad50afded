"""What is trained is what is said: labels in every format, and eight samples learned by heart, said by llama.cpp."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import tinymodel
from tokenizers import Tokenizer

from bot.checksum import sha256
from bot.config import Conversation, Training
from bot.message import Message, Scene
from bot.persona import Base
from bot.prompt import FORMATS, ChatFormat, exchanges
from bot.scorer import Scorer
from export.lora import export
from training.batches import IGNORED, rows_of
from training.corpus import Corpus, SceneCorpus
from training.hf import HFTokenizer
from training.qlora import train
from training.samples import Split, Window, split_of, windows

# peft 0.21 asks transformers 5.23 for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ME, FRIEND = "10001", "20001"
RULES = Conversation()
EIGHT = [
    ("早", ["早呀"]), ("吃什么", ["吃面", "加个蛋", "不要香菜"]), ("在吗", ["在的"]), ("去爬山吗", ["好耶！我也要去"]),
    ("哈哈哈", []), ("晚安", ["晚安，明天见"]), ("转发一下", []), ("作业写完了吗", ["还没有呢，明天再说吧"]),
]  # fmt: skip
"""What is heard, and what is said to it: two silences, and a turn of three bubbles."""


def eight(tokenizer: Any, fmt: ChatFormat) -> list[Window]:
    """Each in a chat of its own, all of the train split."""
    parts = []
    for number, (heard, said) in enumerate(EIGHT):
        for trial in range(100):
            scene, first = Scene("private", f"2{number:02}{trial:02}"), f"{number}-{trial}"
            if split_of(scene, first) is Split.TRAIN:
                break
        start = datetime(2026, 3, 2, 4, number, tzinfo=UTC)
        messages = [Message(first, scene, scene.id, "阿泽", start, heard)]
        messages += [
            Message(f"{first}-{i}", scene, ME, "小满", start + timedelta(seconds=5 + i), text)
            for i, text in enumerate(said)
        ]
        cut = exchanges(messages, frozenset([ME]), RULES)
        parts.append(SceneCorpus(scene, "阿泽", cut, [not e.said for e in cut], [True], [None], [first], {}))
    corpus = Corpus(frozenset([ME]), (), frozenset([ME]), parts, RULES, ZoneInfo(RULES.timezone), "")
    return windows(corpus, tokenizer, fmt, "你是小满。", 128)


FORMAT_BASES = {"gemma": "gemma3", "chatml": "llama", "qwen3": "qwen3", "llama3": "llama3"}


@pytest.mark.parametrize("name", FORMAT_BASES)
def test_the_trained_ids_are_the_persons_bubbles_and_ends_of_turn_in_every_format(name: str, tmp_path: Path) -> None:
    assert set(FORMAT_BASES) == set(FORMATS)
    architecture: Any = FORMAT_BASES[name]
    tiny = tinymodel.build(tmp_path, "llama" if name == "llama3" else architecture)
    words = Tokenizer.from_file(str(tiny.hf / "tokenizer.json"))
    if name == "llama3":  # its markers, in the same vocabulary
        words.add_special_tokens(["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin_of_text|>"])
        words.save(str(tiny.hf / "tokenizer.json"))
    tokenizer, fmt = HFTokenizer(tiny.hf), FORMATS[name]
    found = eight(tokenizer, fmt)
    rows = rows_of(found, Split.TRAIN)
    assert len(rows) == 8
    for row, (heard, said) in zip(rows, EIGHT, strict=True):
        trained = [t for t in row.targets if t != IGNORED]
        assert words.decode(trained, skip_special_tokens=False) == "\n".join(said) + fmt.end
        # They are the very next ids, and what stands before them is the open header.
        at = [i for i, t in enumerate(row.targets) if t != IGNORED]
        assert at == list(range(at[0], len(row.ids)))
        assert [*row.ids[at[0] + 1 :]] == trained[:-1]
        before = words.decode(row.ids[: at[0] + 1], skip_special_tokens=False)
        assert before.endswith(f"{heard}{fmt.user_close}{fmt.assistant_open}")


def test_eight_samples_learned_by_heart_are_said_by_llama_cpp(tmp_path: Path) -> None:
    tiny = tinymodel.build(tmp_path, hidden=128)
    tokenizer = HFTokenizer(tiny.hf)
    found = eight(tokenizer, tokenizer.format)
    settings = Training(
        r=16, lora_alpha=32, lora_dropout=0.0, learning_rate=1e-2, max_steps=60, per_device_train_batch_size=8,
        gradient_accumulation_steps=1, model_max_length=128, threads=1, save_steps=1000, compute_dtype="float32",
    )  # fmt: skip
    run = train(found, tiny.hf, tmp_path / "run", settings)
    base = Base(file=tiny.gguf.name, sha256=sha256(tiny.gguf), architecture="gemma3")
    lora = export(run.peft, tiny.hf, base, tmp_path / "lora.gguf").path
    vocabulary = Tokenizer.from_file(str(tiny.hf / "tokenizer.json")).get_vocab_size()
    with_lora, without = (_said(tiny.gguf, found, vocabulary, file) for file in (lora, None))
    assert with_lora == [tuple(w.ids[i] for i in w.labels[0].trained) for w in found]
    assert sum(a == b for a, b in zip(with_lora, without, strict=True)) == 0


def _said(gguf: Path, found: list[Window], vocabulary: int, lora: Path | None) -> list[tuple[int, ...]]:
    """The likeliest token at each trained place, which, where all are right, is the greedy answer."""
    scorer = Scorer(gguf, lora, 128, n_threads=1)
    said = []
    for window in found:
        places = window.labels[0].trained
        scores = scorer.log_probs(window.ids, [(at, token) for at in places for token in range(vocabulary)])
        said.append(tuple(int(row.argmax()) for row in scores.reshape(len(places), vocabulary)))
    scorer.close()
    return said
