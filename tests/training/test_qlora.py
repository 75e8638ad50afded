"""A tiny model learns: only the person's tokens, reproducibly, and through interruptions."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import living
import pytest
import talks
import tinymodel
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from bot.config import Training
from bot.errors import TrainingError
from training.base import load
from training.batches import IGNORED, ByLength, Row, collate, rows_of
from training.loss import sparse_nll
from training.precision import Precision
from training.qlora import train
from training.samples import Split, Window
from training.watch import Progress

PLAIN = Precision("none", torch.bfloat16)
SETTINGS = Training(
    r=4, lora_alpha=8, learning_rate=5e-3, num_train_epochs=3, per_device_train_batch_size=4, model_max_length=160,
    logging_steps=1, lora_dropout=0.1, threads=1, save_steps=2,
)  # fmt: skip


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 3 checkpoint."""
    return tinymodel.build(tmp_path_factory.mktemp("tiny")).hf


@pytest.fixture(scope="session")
def samples(base: Path) -> list[Window]:
    """Windows of forty conversations: an answer, a silence, a turn of the twin."""
    return talks.samples(base)


def lora(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_only_the_persons_tokens_are_targets(base: Path, samples: list[Window]) -> None:
    from tokenizers import Tokenizer

    words = Tokenizer.from_file(str(base / "tokenizer.json"))
    rows = rows_of(samples, Split.TRAIN)
    assert len(rows) > 8
    for row in rows:
        trained = [t for t in row.targets if t != IGNORED]
        text = words.decode(trained, skip_special_tokens=False)
        assert set(text.split("<end_of_turn>")) == {"好耶！我也要去", ""}
        assert row.targets[-1] != IGNORED


def test_the_sparse_loss_equals_the_full_one_at_trained_positions(base: Path, samples: list[Window]) -> None:
    rows = rows_of(samples, Split.TRAIN)[:6]
    batch = collate([{"input_ids": r.ids, "labels": r.targets} for r in rows])
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    full = torch.zeros(())
    for row in rows:  # one by one: without padding
        logits = model(input_ids=torch.tensor([row.ids])).logits[0]
        full = full + functional.cross_entropy(logits, torch.tensor(row.targets), ignore_index=IGNORED, reduction="sum")
    hidden = model.model(input_ids=batch["input_ids"]).last_hidden_state
    sparse = sparse_nll(hidden, model.lm_head.weight, batch["labels"], None, chunk=7)
    torch.testing.assert_close(sparse, full, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_sparse_gradient_equals_autograds(softcap: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 9, 16, generator=generator, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator)
    targets = torch.randint(0, 50, (2, 9), generator=generator)
    targets[0, :5] = IGNORED
    logits = hidden @ weight.T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    full = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    (wanted,) = torch.autograd.grad(full, hidden)
    sparse = sparse_nll(hidden, weight, targets, softcap, chunk=4)
    (got,) = torch.autograd.grad(sparse, hidden)
    torch.testing.assert_close(sparse, full)
    torch.testing.assert_close(got, wanted)


def test_logits_are_held_a_chunk_at_a_time_and_the_gradient_is_autograds() -> None:
    # In float32 a few rows of a chunk at a time, here 59 of 150.
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            made = [x for x in (found if isinstance(found, tuple | list) else [found]) if isinstance(x, torch.Tensor)]
            self.elements = max(self.elements, *(x.numel() for x in made), 0)
            return found

    generator = torch.Generator().manual_seed(0)
    words, positions = 70_000, 200
    hidden = torch.randn(1, positions, 4, generator=generator, requires_grad=True)
    weight = torch.randn(words, 4, generator=generator)
    targets = torch.randint(0, words, (1, positions), generator=generator)
    full = functional.cross_entropy((hidden @ weight.T)[0], targets[0], reduction="sum")
    (wanted,) = torch.autograd.grad(full, hidden)
    with Largest() as largest:
        sparse = sparse_nll(hidden, weight, targets, None, chunk=150)
        (got,) = torch.autograd.grad(sparse, hidden)
    torch.testing.assert_close(sparse, full)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert largest.elements == 150 * words


def test_without_any_target_the_loss_is_zero_and_still_has_a_gradient() -> None:
    hidden = torch.ones(1, 3, 4, requires_grad=True)
    loss = sparse_nll(hidden, torch.ones(5, 4), torch.full((1, 3), IGNORED), None, chunk=2)
    loss.backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert (float(loss.detach()), float(hidden.grad.abs().sum())) == (0.0, 0.0)


def test_batches_have_similar_lengths_and_an_order_of_seed_and_epoch() -> None:
    lengths = [(i * 37) % 100 + 1 for i in range(103)]
    order = ByLength(lengths, 4, seed=1)
    first = list(order)
    assert sorted(first) == list(range(103))
    assert first == list(ByLength(lengths, 4, seed=1))
    order.set_epoch(1)
    assert list(order) != first
    spread = [max(b) - min(b) for b in ([lengths[i] for i in first[k : k + 4]] for k in range(0, 100, 4))]
    assert sum(spread) / len(spread) < 15


def test_training_lowers_the_loss_and_leaves_a_lora_with_its_record(
    base: Path, samples: list[Window], tmp_path: Path
) -> None:
    told: list[Progress] = []
    run = train(samples, base, tmp_path / "run", SETTINGS, told.append)
    assert told[-1].step == told[-1].steps == run.record["steps"]
    assert told[-1].loss < told[0].loss - 1
    assert told[-1].tokens_per_s > 0
    tune = [x["loss"] for x in run.record["tune"]]
    assert tune[-1] < tune[0]
    weights = lora(run.peft)
    assert len(weights) == 2 * 7 * 2  # two layers, seven linear layers each, A and B
    assert all(w.dtype == torch.float32 for w in weights.values())
    assert all("lm_head" not in n and "embed" not in n for n in weights)
    config = json.loads((run.peft / "adapter_config.json").read_text("utf-8"))
    assert (config["r"], config["base_model_name_or_path"]) == (4, base.name)
    written = json.loads((tmp_path / "run" / "train.json").read_text("utf-8"))
    assert written == json.loads(json.dumps(run.record))
    assert written["settings"]["r"] == 4
    assert written["peak_rss_bytes"] > 1e8
    assert (tmp_path / "run" / "loss.png").stat().st_size > 1000


def test_a_model_that_is_trained_leaves_memory(base: Path, samples: list[Window], tmp_path: Path) -> None:
    with living.seen() as models:
        train(samples, base, tmp_path / "run", SETTINGS.model_copy(update={"max_steps": 1}))
        (model,) = models
        assert model() is None, "the night goes on beside it"


def test_the_kept_lora_has_the_tune_loss_of_its_record(base: Path, samples: list[Window], tmp_path: Path) -> None:
    run = train(samples, base, tmp_path / "run", SETTINGS)
    model = PeftModel.from_pretrained(load(base, PLAIN), run.peft).eval()
    rows = rows_of(samples, Split.TUNE)
    total = 0.0
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=torch.tensor([row.ids])).logits[0].float()
            targets = torch.tensor(row.targets)
            total += float(functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum"))
    best = min(x["loss"] for x in run.record["tune"])
    assert total / sum(r.labels for r in rows) == pytest.approx(best, rel=0.03)


def test_the_same_seed_gives_the_same_lora_and_another_seed_another(
    base: Path, samples: list[Window], tmp_path: Path
) -> None:
    few = SETTINGS.model_copy(update={"max_steps": 4})
    one, two = (lora(train(samples, base, tmp_path / n, few).peft) for n in "ab")
    other = lora(train(samples, base, tmp_path / "c", few.model_copy(update={"seed": 7})).peft)
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert any(not torch.equal(one[n], other[n]) for n in one)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_the_peak_is_this_processs_and_not_the_one_that_started_it() -> None:
    fat = bytearray(600_000_000)
    told = subprocess.run(
        [sys.executable, "-c", "from training.watch import peak_bytes; print(peak_bytes()['peak_rss_bytes'])"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    import resource

    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 5e7 < int(told.stdout.splitlines()[-1]) < own - len(fat) / 2


class Killed(Exception):
    """Stands for the machine going down."""


def kill_at(step: int) -> Callable[[Progress], None]:
    def told(progress: Progress) -> None:
        if progress.step >= step:
            raise Killed

    return told


def test_an_interrupted_run_goes_on_and_ends_as_if_nothing_had_happened(
    base: Path, samples: list[Window], tmp_path: Path
) -> None:
    whole = train(samples, base, tmp_path / "whole", SETTINGS)
    with pytest.raises(Killed):
        train(samples, base, tmp_path / "cut", SETTINGS, kill_at(7))
    newest = tmp_path / "cut" / "checkpoints" / "checkpoint-6"
    assert newest.is_dir()
    # And the next checkpoint was half written.
    shutil.copytree(newest, newest.with_name("checkpoint-8"))
    (newest.with_name("checkpoint-8") / "trainer_state.json").unlink()
    resumed = train(samples, base, tmp_path / "cut", SETTINGS)
    assert resumed.record["resumed_at"] == 6
    assert resumed.record["steps"] == whole.record["steps"]
    one, two = lora(whole.peft), lora(resumed.peft)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)
    assert not (tmp_path / "cut" / "checkpoints").exists()


def test_a_finished_run_is_given_back_and_other_settings_begin_anew(
    base: Path, samples: list[Window], tmp_path: Path
) -> None:
    few = SETTINGS.model_copy(update={"max_steps": 2})
    first = train(samples, base, tmp_path / "run", few)
    again = train(samples, base, tmp_path / "run", few, kill_at(0))
    assert again.record["seconds"] == first.record["seconds"]
    more = train(samples, base, tmp_path / "run", few.model_copy(update={"max_steps": 3}))
    assert more.record["steps"] == 3


def test_four_bit_weights_train_on_a_cpu(base: Path, samples: list[Window], tmp_path: Path) -> None:
    few = SETTINGS.model_copy(update={"max_steps": 2, "precision": "nf4"})
    run = train(samples, base, tmp_path / "run", few)
    assert (run.record["precision"], run.record["steps"]) == ("nf4", 2)
    assert all(w.dtype == torch.float32 for w in lora(run.peft).values())


def test_accumulated_steps_learn_like_one_large_batch(base: Path, samples: list[Window], tmp_path: Path) -> None:
    still = SETTINGS.model_copy(update={"max_steps": 2, "lora_dropout": 0.0, "learning_rate": 1e-4})
    parts = still.model_copy(update={"per_device_train_batch_size": 1, "gradient_accumulation_steps": len(samples)})
    whole = still.model_copy(update={"per_device_train_batch_size": len(samples)})
    losses = [
        train(samples, base, tmp_path / name, s).record["loss"][0]["loss"]
        for name, s in (("parts", parts), ("whole", whole))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_nothing_to_learn_is_refused_with_a_remedy(base: Path, samples: list[Window], tmp_path: Path) -> None:
    mute = [Window(w.scene, w.ids, ()) for w in samples]
    with pytest.raises(TrainingError, match=r"too few .*twin import"):
        train(mute, base, tmp_path / "run", SETTINGS)


def test_rows_end_with_their_last_label() -> None:
    assert Row([1, 2, 3], [IGNORED, IGNORED, 9]).labels == 1
