"""What the runs share: a tiny base that knows ten exchanges by heart, and daemons on it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import lessons
import pytest
import tinymodel
import torch
from daemon import Daemon, persona, settings
from napcat import ACCOUNT
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from bot.archive import Archive
from bot.config import Conversation
from bot.persona import Spec
from training import corpus, history, samples
from training.hf import HFTokenizer


@pytest.fixture(scope="session")
def learned_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GGUF that says what 小满 says, without any LoRA."""
    return _base(tmp_path_factory.mktemp("learned"), steps=240, shuffled=False)


@pytest.fixture(scope="session")
def unlearned_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GGUF that knows the words, and answers anything with any of them."""
    return _base(tmp_path_factory.mktemp("unlearned"), steps=120, shuffled=True)


def _base(folder: Path, *, steps: int, shuffled: bool) -> Path:
    """All weights trained on the history as it is rendered, on one thread: few cores, and the same sums everywhere."""
    torch.set_num_threads(1)
    lessons.write(folder / "history.jsonl", rounds=12, shuffled=shuffled)
    archive = Archive(f"sqlite:///{folder / 'archive.db'}")
    history.load(folder / "history.jsonl", archive)
    learned = corpus.build(archive, [ACCOUNT], [lessons.NAME], Conversation())
    archive.close()
    tiny = tinymodel.build(folder / "model", texts=[*tinymodel.TEXTS, *lessons.words()], vocabulary=600, hidden=128)
    tokenizer = HFTokenizer(tiny.hf)
    prompt = Spec(display_name=lessons.NAME).system_prompt
    windows = samples.windows(learned, tokenizer, tokenizer.format, prompt, 160)
    _pretrain(tiny, [w.ids for w in windows], steps)
    return tiny.gguf


def _pretrain(tiny: tinymodel.Tiny, sequences: Sequence[Sequence[int]], steps: int) -> None:
    """Train all weights on token sequences, eight in a step; checkpoint and GGUF are written anew."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny.hf, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    for _ in range(steps):
        rows = [torch.tensor(sequences[i]) for i in torch.randperm(len(sequences))[:8].tolist()]
        ids = pad_sequence(rows, batch_first=True)
        labels = pad_sequence(rows, batch_first=True, padding_value=-100)
        # Padding on the right needs no mask: attention looks back only.
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    tinymodel.round_weights(model)
    model.save_pretrained(tiny.hf)
    tinymodel.write_gguf(tiny.hf, tiny.gguf, f32=False)


@pytest.fixture(scope="module")
def daemon(learned_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A running daemon with two personas: 小满 always answers, 石头 never does."""
    found = Daemon(tmp_path_factory.mktemp("daemon"), settings(learned_base))
    persona(found.data / "personas" / "xiaoman", lessons.NAME, [ACCOUNT], bias=30)
    persona(found.data / "personas" / "shitou", "石头", [ACCOUNT], bias=-30)
    with found:
        yield found
        found.end()
