"""A preference pass over a LoRA that a tiny model has learned: what was wanted becomes likelier, the rest stays."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import living
import pytest
import tinymodel
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import AutoModelForCausalLM
from trl.trainer.dpo_trainer import DPOTrainer

from bot.checksum import sha256
from bot.config import Training
from bot.decision import Moment
from training import aligning
from training.batches import Row, rows_of
from training.device import Device
from training.hf import HFTokenizer
from training.precision import Precision
from training.preferences import Pair
from training.qlora import train
from training.samples import Label, Split, Window

SETTINGS = Training(
    precision="none", r=32, lora_alpha=64, lora_dropout=0.0, learning_rate=5e-3, num_train_epochs=25, threads=1,
    per_device_train_batch_size=4, model_max_length=160, preference_min_pairs=8, preference_learning_rate=2e-3,
    preference_epochs=4,
)  # fmt: skip
WORDS = {"吃什么": "吃面", "早": "早呀", "在吗": "在的", "晚安": "晚安"}
"""What is learned first."""
WANTED = {"吃什么": "不吃", "在吗": ""}
"""What is corrected: another answer, and silence."""


class Lesson:
    """A tiny base and how its prompts are made."""

    def __init__(self, folder: Path) -> None:
        self.base = tinymodel.build(folder, hidden=128).hf
        self.tokenizer = HFTokenizer(self.base)

    def prompt(self, heard: str, number: int) -> tuple[int, ...]:
        fmt, t = self.tokenizer.format, self.tokenizer
        ids = [t.bos] if t.bos is not None else []
        ids += t.tokens(fmt.system_open, True) + t.tokens(f"你是小满{number}。", False)
        ids += t.tokens(fmt.system_close + fmt.first_user_open, True) + t.tokens(heard, False)
        return (*ids, *t.tokens(fmt.user_close, True), *t.tokens(fmt.assistant_open, True))

    def answer(self, said: str) -> tuple[int, ...]:
        end = self.tokenizer.tokens(self.tokenizer.format.end, True)
        return (*(self.tokenizer.tokens(said, False) if said else []), *end)

    def window(self, heard: str, number: int, split: Split) -> Window:
        prompt, said = self.prompt(heard, number), self.answer(WORDS[heard])
        trained = tuple(range(len(prompt), len(prompt) + len(said)))
        moment = Moment(None, None, True, False, False, False, 1, 12.0)
        label = Label(
            len(prompt), len(prompt) + len(said), trained, False, True, split, "private:1", f"{heard}{number}", moment
        )
        return Window("private:1", (*prompt, *said), (label,))

    def pairs(self, split: Split = Split.TRAIN, n: int = 6) -> list[Pair]:
        return [
            Pair(self.prompt(heard, number), self.answer(wanted), self.answer(WORDS[heard]), split)
            for heard, wanted in WANTED.items()
            for number in range(n)
        ]

    def log_p(self, peft: Path, prompt: tuple[int, ...], said: tuple[int, ...]) -> float:
        """Log p of an answer by transformers' own logits."""
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32), peft)
        ids = torch.tensor([[*prompt, *said]])
        with torch.no_grad():
            logits = model.eval()(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
        return -float(functional.cross_entropy(logits, torch.tensor(said), reduction="sum"))


@pytest.fixture(scope="session")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    return Lesson(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def learned(lesson: Lesson, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a LoRA that answers as it was taught."""
    windows = [lesson.window(heard, number, Split.TRAIN) for heard in WORDS for number in range(20)]
    folder = tmp_path_factory.mktemp("run")
    train(windows, lesson.base, folder, SETTINGS)
    return folder


@pytest.fixture
def run(learned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(learned, tmp_path / "run"))


def others(lesson: Lesson) -> list[Row]:
    """Held-out answers that nobody corrected."""
    found = []
    for heard in ("早", "晚安"):
        for number in range(30, 34):
            window = lesson.window(heard, number, Split.TUNE)
            start = window.labels[0].start
            found.append(Row(list(window.ids[:-1]), [-100] * (start - 1) + list(window.ids[start:])))
    return found


def replayed(lesson: Lesson) -> list[Row]:
    """What the history says of prompts that nobody corrected."""
    return rows_of([lesson.window(heard, n, Split.TRAIN) for heard in ("早", "晚安") for n in range(20)], Split.TRAIN)


def test_the_kl_term_of_kto_reads_answers_to_other_prompts(lesson: Lesson, tmp_path: Path) -> None:
    # The second was only hushed: rows are odd in number, and pairs of unlike length.
    first, second = lesson.pairs(n=1)
    pairs, read = [first, replace(second, chosen=None)], set()

    def look(module: torch.nn.Module, given: Any) -> None:
        if isinstance(module, torch.nn.Embedding):
            read.update(" ".join(map(str, row)) for row in given[0].tolist())

    def was_read(pair: Pair, answer: Sequence[int]) -> bool:
        return any(" ".join(map(str, (*pair.prompt, *answer))) in row for row in read)

    peft = tinymodel.random_lora(tinymodel.Tiny(lesson.base, lesson.base), tmp_path / "peft")
    settings = SETTINGS.model_copy(
        update={"preference_loss": "kto", "preference_min_pairs": 1, "preference_epochs": 1.0}
    )
    handle = register_module_forward_pre_hook(look)
    try:
        aligning.align(pairs, [], [], lesson.base, tmp_path, peft, settings)
    finally:
        handle.remove()
    assert was_read(first, first.rejected)
    assert was_read(first, second.rejected)
    assert was_read(second, first.chosen or ())


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_what_was_wanted_becomes_likelier_than_what_was_rejected(lesson: Lesson, run: Path, loss: str) -> None:
    peft, base = run / "peft", sha256(lesson.base / "model.safetensors")
    unseen = [lesson.prompt(heard, 25) for heard in WANTED]

    def figures() -> list[tuple[float, float]]:
        return [
            (lesson.log_p(peft, p, lesson.answer(w)), lesson.log_p(peft, p, lesson.answer(WORDS[h])))
            for p, (h, w) in zip(unseen, WANTED.items(), strict=True)
        ]

    before = figures()
    assert all(wanted < rejected for wanted, rejected in before), "it says what it was taught"
    settings = SETTINGS.model_copy(update={"preference_loss": loss})
    record = aligning.align(lesson.pairs(), replayed(lesson), others(lesson), lesson.base, run, peft, settings)
    assert (record["outcome"], record["pairs"]) == ("kept", 12), record
    after = figures()
    assert all(wanted > rejected for wanted, rejected in after)
    assert after[1][0] > before[1][0] + 1, "P(silent) rises where silence was wanted"
    assert record["after"]["margin"] > 0 > record["before"]["margin"]
    assert record["after"]["tune"] <= record["before"]["tune"] + aligning.RISE_MAX
    assert all(lesson.log_p(peft, lesson.prompt(h, 25), lesson.answer(WORDS[h])) > -0.7 for h in ("早", "晚安"))
    assert sha256(lesson.base / "model.safetensors") == base
    assert json.loads((peft / "adapter_config.json").read_text("utf-8"))["r"] == 32


def test_the_margin_told_is_the_models_own(lesson: Lesson, run: Path) -> None:
    pairs = lesson.pairs(n=4)
    own = [
        lesson.log_p(run / "peft", p.prompt, p.chosen or ()) - lesson.log_p(run / "peft", p.prompt, p.rejected)
        for p in pairs
    ]
    record = aligning.align(pairs, [], [], lesson.base, run, run / "peft", SETTINGS)
    assert record["before"]["margin"] == pytest.approx(sum(own) / len(own), rel=0.05)  # trained in bf16


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda lesson: lesson.pairs(n=3), "six are fewer than eight"),
        (lambda lesson: lesson.pairs(Split.TEST), "held out for the gate"),
        (lambda lesson: [Pair(p.prompt, None, p.rejected, p.split) for p in lesson.pairs()], "dpo needs both"),
    ],
)
def test_with_too_few_pairs_nothing_is_trained(
    lesson: Lesson, run: Path, made: Callable[[Lesson], list[Pair]], why: str
) -> None:
    before = sha256(run / "peft" / "adapter_model.safetensors")
    record = aligning.align(made(lesson), [], [], lesson.base, run, run / "peft", SETTINGS)
    assert record["outcome"] == "too few", why
    assert sha256(run / "peft" / "adapter_model.safetensors") == before


def test_a_pass_that_costs_what_was_learned_is_undone(lesson: Lesson, run: Path) -> None:
    before = sha256(run / "peft" / "adapter_model.safetensors")
    (run / ".aligning-killed").mkdir()
    wild = SETTINGS.model_copy(update={"preference_learning_rate": 0.05})
    record = aligning.align(lesson.pairs(), [], others(lesson), lesson.base, run, run / "peft", wild)
    assert record["outcome"] == "undone"
    assert record["after"]["tune"] > record["before"]["tune"] + aligning.RISE_MAX
    assert sha256(run / "peft" / "adapter_model.safetensors") == before
    assert [p.name for p in run.iterdir() if p.name.startswith(".")] == [], "nothing half-made is left"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_a_pass_that_finds_no_memory_leaves_what_was_trained(
    lesson: Lesson, run: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    before = sha256(run / "peft" / "adapter_model.safetensors")

    def full(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(DPOTrainer, "training_step", full)
        record = aligning.align(lesson.pairs(), [], [], lesson.base, run, run / "peft", SETTINGS)
    assert (record["outcome"], record["pairs"]) == ("no memory", len(lesson.pairs()))
    assert sha256(run / "peft" / "adapter_model.safetensors") == before
    assert [p.name for p in run.iterdir() if p.name.startswith(".")] == [], "nothing half-made is left"


def test_a_model_that_learned_preferences_leaves_memory(lesson: Lesson, run: Path) -> None:
    few = SETTINGS.model_copy(update={"preference_epochs": 1})
    with living.seen() as models:
        aligning.align(lesson.pairs(n=4), [], [], lesson.base, run, run / "peft", few)
        assert models
        assert all(model() is None for model in models)


def test_of_a_pass_that_goes_too_far_a_part_is_kept(lesson: Lesson, run: Path) -> None:
    # A quarter of the way costs a quarter of what is allowed: processors differ.
    far = SETTINGS.model_copy(update={"preference_learning_rate": 1e-3})
    record = aligning.align(lesson.pairs(), [], others(lesson), lesson.base, run, run / "peft", far)
    assert record["outcome"] == "kept"
    assert record["part"] < 1
    assert record["before"]["margin"] < record["after"]["margin"]
    assert record["after"]["tune"] <= record["before"]["tune"] + aligning.RISE_MAX


def test_a_gpus_float16_scales_the_loss_of_the_pass_too(lesson: Lesson, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(lesson.base)

    def scaled(kind: Literal["cuda", "cpu"], dtype: torch.dtype) -> bool:
        where = Device(kind, "a card", 16_000_000_000)
        return bool(aligning._arguments(model, tmp_path, SETTINGS, Precision("none", dtype), where)["fp16"])

    assert scaled("cuda", torch.float16)
    assert not any(scaled(*x) for x in (("cuda", torch.float32), ("cuda", torch.bfloat16), ("cpu", torch.float16)))


def test_a_pass_is_run_once_and_anew_over_another_lora_or_other_pairs(lesson: Lesson, run: Path) -> None:
    peft, sft = run / "peft", load_file(run / "peft" / "adapter_model.safetensors")
    first = aligning.align(lesson.pairs(), [], [], lesson.base, run, peft, SETTINGS)
    done = (peft / "adapter_model.safetensors").stat().st_mtime_ns
    assert aligning.align(lesson.pairs(), [], [], lesson.base, run, peft, SETTINGS) == first
    assert (peft / "adapter_model.safetensors").stat().st_mtime_ns == done
    again = aligning.align(lesson.pairs(n=7), [], [], lesson.base, run, peft, SETTINGS)
    assert again["pairs"] == 14
    assert again["before"]["margin"] == pytest.approx(first["after"]["margin"], abs=1.0), "it went on from the first"
    changed = load_file(peft / "adapter_model.safetensors")
    assert set(changed) == set(sft)
    assert all(torch.isfinite(t).all() for t in changed.values())
