"""A run under way: memory that runs out, numbers that run out, signals, packing, early stops, and going on."""

import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import talks
import tinymodel
import torch
from loguru import logger
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

from bot.cli.training import _ended
from bot.config import Training
from bot.errors import TrainingError
from training import dryrun, known, precision
from training.batches import IGNORED, collate, pack, rows_of, wide
from training.device import Device
from training.loss import teach_sparse_loss
from training.precision import Precision
from training.qlora import Options, train
from training.runs import Run
from training.samples import Split, Window
from training.selection import Extra, select
from training.watch import Progress

SETTINGS = Training(
    r=4, lora_alpha=8, learning_rate=5e-3, num_train_epochs=1, per_device_train_batch_size=8, model_max_length=160,
    gradient_accumulation_steps=1, logging_steps=1, lora_dropout=0.0, threads=1, compute_dtype="float32",
)  # fmt: skip

UNBOUNDED = 10**9
"""Tokens at once: whole batches."""


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 checkpoint."""
    return tinymodel.build(tmp_path_factory.mktemp("tiny"), "qwen3").hf


@pytest.fixture(scope="session")
def samples(base: Path) -> list[Window]:
    """Forty conversations."""
    return talks.samples(base)


def told_by(work: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What work gives, and what it logs."""
    lines: list[str] = []
    sink = logger.add(lambda m: lines.append(m.record["message"]), level="INFO")
    try:
        return work(), lines
    finally:
        logger.remove(sink)


def lora(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.peft / "adapter_model.safetensors")


def with_(settings: Training, **change: Any) -> Training:
    return settings.model_copy(update=change)


# -- memory ---------------------------------------------------------------------------------------


def holds(tokens: int, asked: list[int]) -> Callable[[int], None]:
    """An allocator with room for so many tokens."""

    def admit(wanted: int) -> None:
        asked.append(wanted)
        if wanted > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    return admit


@pytest.mark.parametrize("packing", ["off", "on"])
def test_a_batch_that_does_not_fit_is_halved_and_teaches_the_same(
    packing: Any, base: Path, samples: list[Window], tmp_path: Path
) -> None:
    settings, asked = with_(SETTINGS, max_steps=3, packing=packing), list[int]()
    whole = train(samples, base, tmp_path / "whole", settings, options=Options(at_once=UNBOUNDED))
    longest = wide(max(len(r.ids) for r in rows_of(samples, Split.TRAIN)))
    options = Options(admit=holds(longest * 3, asked), at_once=UNBOUNDED)
    halved, lines = told_by(lambda: train(samples, base, tmp_path / "halved", settings, options=options))
    assert [line for line in lines if "memory ran out" in line] == [
        "memory ran out over 8 rows; goes on with 4 at a time", "memory ran out over 4 rows; goes on with 2 at a time",
    ]  # fmt: skip
    assert max(asked[3:]) <= longest * 3
    assert (whole.record["batch_parts"], halved.record["batch_parts"]) == (1, 4)
    assert halved.record["steps"] == 3
    for name, tensor in lora(whole).items():
        torch.testing.assert_close(lora(halved)[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_base_whose_forward_takes_nothing_more_learns_by_the_same_loss(
    base: Path, samples: list[Window], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = with_(SETTINGS, max_steps=2, logging_steps=1)
    longest = wide(max(len(r.ids) for r in rows_of(samples, Split.TRAIN)))
    usual = train(samples, base, tmp_path / "usual", settings, options=Options(at_once=UNBOUNDED))
    # What transformers takes from a signature without **kwargs, as custom code has.
    monkeypatch.setattr(Qwen3ForCausalLM, "accepts_loss_kwargs", False, raising=False)
    passes = train(samples, base, tmp_path / "passes", settings, options=Options(at_once=2 * longest))
    assert [x["loss"] for x in passes.record["loss"]] == pytest.approx(
        [x["loss"] for x in usual.record["loss"]], rel=1e-3
    )


@pytest.mark.parametrize("packing", ["off", "on"])
def test_a_batch_is_read_in_passes_on_a_processor_and_teaches_the_same(
    packing: Any, base: Path, samples: list[Window], tmp_path: Path
) -> None:
    settings, asked = with_(SETTINGS, max_steps=3, packing=packing), list[int]()
    whole = train(samples, base, tmp_path / "whole", settings, options=Options(at_once=UNBOUNDED))
    rows = rows_of(samples, Split.TRAIN)
    longest = wide(max(len(r.ids) for r in rows))
    options = Options(admit=asked.append, at_once=2 * longest)
    passes = train(samples, base, tmp_path / "passes", settings, options=options)
    assert max(asked) <= 2 * longest
    assert len(asked) >= 3 * 8 // 4 > 3
    assert (passes.record["batch_parts"], passes.record["steps"]) == (1, 3)
    for name, tensor in lora(whole).items():
        torch.testing.assert_close(lora(passes)[name], tensor, rtol=1e-3, atol=1e-4)
    # A row that is longer than a pass is read alone.
    asked.clear()
    alone = train(samples, base, tmp_path / "alone", settings, options=Options(admit=asked.append, at_once=1))
    assert len(asked) == 3 * 8
    # What is packed is not padded.
    assert set(asked) <= {len(r.ids) if packing == "on" else wide(len(r.ids)) for r in rows}
    for name, tensor in lora(whole).items():
        torch.testing.assert_close(lora(alone)[name], tensor, rtol=1e-3, atol=1e-4)


def test_passes_that_do_not_fit_are_halved_from_what_they_were(
    base: Path, samples: list[Window], tmp_path: Path
) -> None:
    longest = wide(max(len(r.ids) for r in rows_of(samples, Split.TRAIN)))
    options = Options(admit=holds(longest, []), at_once=4 * longest)
    run, lines = told_by(lambda: train(samples, base, tmp_path / "run", with_(SETTINGS, max_steps=1), options=options))
    assert [line for line in lines if "memory ran out" in line] == [
        "memory ran out over 4 rows; goes on with 2 at a time", "memory ran out over 2 rows; goes on with 1 at a time",
    ]  # fmt: skip
    assert run.record["batch_parts"] == 8


def test_half_a_gradient_of_a_pass_that_failed_is_forgotten(base: Path, samples: list[Window], tmp_path: Path) -> None:
    # The second of two accumulated passes fails, then the second half of it: the first pass must count once, and the
    # first half not twice.
    settings = with_(SETTINGS, max_steps=2, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    whole = train(samples, base, tmp_path / "whole", settings)
    passes = iter(range(10**6))

    def admit(_: int) -> None:
        if next(passes) in (1, 3):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")

    run = train(samples, base, tmp_path / "cut", settings, options=Options(admit=admit, at_once=UNBOUNDED))
    assert run.record["batch_parts"] == 4
    for name, tensor in lora(whole).items():
        torch.testing.assert_close(lora(run)[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_single_row_that_does_not_fit_is_told_with_a_remedy(
    base: Path, samples: list[Window], tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"memory ran out over 1 of 8 rows.*model_max_length"):
        train(samples, base, tmp_path / "run", SETTINGS, options=Options(admit=holds(5, [])))


def test_once_memory_ran_out_held_out_rows_are_read_alone(base: Path, samples: list[Window], tmp_path: Path) -> None:
    together: set[int] = set()

    def look(module: torch.nn.Module, given: Any) -> None:
        if isinstance(module, torch.nn.Embedding) and not module.training:
            together.add(len(given[0]))

    longest = wide(max(len(r.ids) for r in rows_of(samples, Split.TRAIN)))
    options = Options(admit=holds(longest * 3, []), at_once=UNBOUNDED)
    handle = register_module_forward_pre_hook(look)
    try:
        train(samples, base, tmp_path / "run", with_(SETTINGS, max_steps=1), options=options)
    finally:
        handle.remove()
    assert together == {1}


def test_memory_that_runs_out_beside_the_passes_is_told_with_a_remedy(
    base: Path, samples: list[Window], tmp_path: Path
) -> None:
    def no_room(_: Progress) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    with pytest.raises(TrainingError, match=r"^memory ran out beside the passes .*smaller base$"):
        train(samples, base, tmp_path / "run", SETTINGS, no_room)


def test_another_fault_of_the_runtime_is_not_taken_for_memory(
    base: Path, samples: list[Window], tmp_path: Path
) -> None:
    def admit(_: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        train(samples, base, tmp_path / "run", SETTINGS, options=Options(admit=admit))


# -- numbers --------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_all_tokens_of_a_step_however_it_is_read(
    base: Path, samples: list[Window], tmp_path: Path
) -> None:
    rows = rows_of(samples, Split.TRAIN)
    model, total = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), 0.0
    with torch.no_grad():  # one by one: without padding, accumulation or packing
        for row in rows:
            logits, targets = model(input_ids=torch.tensor([row.ids])).logits[0], torch.tensor(row.targets)
            total += float(functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum"))
    lines = []
    for passes, packing in ((1, "off"), (4, "off"), (4, "on")):
        settings = with_(
            SETTINGS, max_steps=1, per_device_train_batch_size=math.ceil(len(rows) / passes),
            gradient_accumulation_steps=passes, packing=packing,
        )  # fmt: skip
        run = train(samples, base, tmp_path / f"{passes}{packing}", settings, options=Options(at_once=UNBOUNDED))
        lines.append(json.loads((run.folder / "metrics.jsonl").read_text("utf-8")))
    mean = total / sum(r.labels for r in rows)
    assert [line["loss"] for line in lines] == pytest.approx([mean] * 3, rel=1e-3)
    assert [line["grad_norm"] for line in lines] == pytest.approx([lines[0]["grad_norm"]] * 3, rel=1e-3)


def test_a_loss_that_float16_cannot_hold_goes_on_in_float32_and_says_so(
    base: Path, samples: list[Window], tmp_path: Path
) -> None:
    loud = tmp_path / "loud"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():  # beyond 65504 within a layer, which the next norm takes back
        for layer in model.model.layers:
            layer.mlp.up_proj.weight.mul_(3e5)
    model.save_pretrained(loud)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (loud / file).write_bytes((base / file).read_bytes())
    settings = with_(SETTINGS, compute_dtype="float16", max_steps=2)
    run, lines = told_by(lambda: train(samples, loud, tmp_path / "run", settings))
    assert any("the loss of the bare base is nan" in line and "anew in float32" in line for line in lines)
    assert (run.record["compute_dtype"], run.record["settings"]["compute_dtype"]) == ("float32", "float32")
    assert run.record["steps"] == 2
    assert all(torch.isfinite(t).all() for t in lora(run).values())


def test_a_run_that_diverges_in_float32_is_told_with_a_remedy(
    base: Path, samples: list[Window], tmp_path: Path
) -> None:
    wild = with_(SETTINGS, learning_rate=1e30, max_grad_norm=1e30, max_steps=20)
    with pytest.raises(TrainingError, match=r"the loss became nan at step \d+; lower \[training\] learning_rate"):
        train(samples, base, tmp_path / "run", wild)
    assert not (tmp_path / "run" / "peft").exists()
    # Its last step, after which only the held-out loss is measured.
    with pytest.raises(TrainingError, match=r"the loss became nan at step 2; lower \[training\] learning_rate"):
        train(samples, base, tmp_path / "last", with_(wild, max_steps=2))


@pytest.mark.parametrize("weights", ["int8", "fp8", "nf4"])
def test_small_weights_train_and_the_base_stays_as_it_was(
    weights: Any, base: Path, samples: list[Window], tmp_path: Path
) -> None:
    before = {p.name: p.read_bytes() for p in base.iterdir()}
    settings = with_(SETTINGS, precision=weights, compute_dtype="bfloat16", max_steps=6)
    run = train(samples, base, tmp_path / "run", settings)
    losses = [x["loss"] for x in run.record["loss"]]
    assert losses[-1] < losses[0] - 0.5
    assert run.record["precision"] == weights
    assert all(t.dtype == torch.float32 for t in lora(run).values())
    assert {p.name: p.read_bytes() for p in base.iterdir()} == before


def test_8_bit_floats_are_within_rounding_of_the_layer() -> None:
    from training.fp8 import Fp8Linear

    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 32)
    x, y = (torch.randn(5, 64) for _ in range(2))
    ours, theirs = x.requires_grad_(), y.copy_(x.detach()).requires_grad_()
    small = Fp8Linear(layer)
    out = small(ours)
    torch.testing.assert_close(out, layer(theirs), rtol=0.1, atol=0.06)
    out.square().sum().backward()
    layer(theirs).square().sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert float((ours.grad - theirs.grad).norm() / theirs.grad.norm()) < 0.05
    assert small.weight.dtype == torch.float8_e4m3fn


def test_a_driver_too_old_and_a_card_too_old_are_told_with_a_remedy() -> None:
    card = Device("cuda", "an old card", 8_000_000_000, bfloat16=False)

    def fails(_: Precision, __: Device) -> None:
        raise RuntimeError(
            "CUDA Setup failed despite GPU being available. libcudart.so\nPlease run python -m bitsandbytes"
        )

    with pytest.raises(TrainingError, match=r"'nf4' on an old card \(CUDA Setup failed.*driver.*precision = 'none'"):
        precision.require(precision.chosen(Training(), card), card, fails)
    with pytest.raises(TrainingError, match=r"'fp8' needs a GPU of compute capability 8\.9.*'nf4' or 'int8'"):
        precision.chosen(Training(precision="fp8"), card)
    here = Device("cpu", "2 cores", 8_000_000_000)
    for weights in ("nf4", "int8", "none", "fp8"):
        precision.require(precision.chosen(Training(precision=weights), here), here)


# -- packing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gemma3", "qwen3", "llama"])
def test_packed_windows_do_not_see_each_other(architecture: Any, tmp_path: Path) -> None:
    tiny = tinymodel.build(tmp_path, architecture)
    rows = [{"input_ids": r.ids, "labels": r.targets} for r in rows_of(talks.samples(tiny.hf), Split.TRAIN)[:4]]
    model: Any = _tuned(tiny.hf)
    teach_sparse_loss(model, packed=True)
    padded, packed = collate(rows), pack(rows)
    assert packed["input_ids"].shape == (1, sum(len(r["input_ids"]) for r in rows))
    with torch.no_grad():
        one = model(input_ids=padded["input_ids"], targets=padded["labels"])
        other = model(input_ids=packed["input_ids"], position_ids=packed["position_ids"], targets=packed["labels"])
        mixed = model(input_ids=packed["input_ids"], targets=packed["labels"])
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
    assert abs(float(mixed) - float(one)) > 0.01
    assert int((packed["labels"] != IGNORED).sum()) == int((padded["labels"] != IGNORED).sum())


def test_a_base_that_looks_across_packed_windows_is_refused(tmp_path: Path) -> None:
    model = _tuned(tinymodel.build(tmp_path, "lfm2").hf)
    with pytest.raises(TrainingError, match=r"mixes packed windows.*packing = 'off'"):
        teach_sparse_loss(model, packed=True)


def _tuned(base: Path) -> Any:
    from peft import get_peft_model

    from training.targets import lora_config, targets

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = Training(r=4, lora_alpha=8, lora_dropout=0.0)
    return get_peft_model(model, lora_config(settings, targets(model, settings), model)).eval()


# -- when it ends ---------------------------------------------------------------------------------


def test_a_run_that_gets_no_better_ends_early_and_keeps_the_best(
    base: Path, samples: list[Window], tmp_path: Path
) -> None:
    # A rate so high that it gets worse after its best.
    wild = with_(SETTINGS, learning_rate=1.0, num_train_epochs=30, eval_steps=1, early_stopping_patience=3)
    run = train(samples, base, tmp_path / "run", wild)
    tune = [x["loss"] for x in run.record["tune"]]
    best = min(range(len(tune)), key=tune.__getitem__)
    assert len(tune) == best + 1 + 3 == run.record["steps"]
    assert run.record["best_step"] == best + 1
    whole = train(samples, base, tmp_path / "whole", with_(wild, early_stopping_patience=None, max_steps=len(tune) + 2))
    assert whole.record["steps"] == len(tune) + 2


def test_metrics_and_what_was_chosen_lie_in_the_run_folder(base: Path, samples: list[Window], tmp_path: Path) -> None:
    told: list[str] = []
    settings = Training(model_max_length=160, logging_steps=1, threads=1, max_steps=3)
    run = train(samples, base, tmp_path / "run", settings, options=Options(tell=told.append))
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [x["step"] for x in lines] == [1, 2, 3]
    assert all({"loss", "learning_rate", "grad_norm", "trained_tokens_per_s"} <= set(x) for x in lines)
    assert told[0].startswith("no GPU is found: it trains on the processor")
    assert "r = 8: 29 answers" in told
    assert run.record["reasons"] == told[1:-2]
    assert (run.record["settings"]["r"], run.record["answers"]) == (8, 29)
    trained, total = run.record["trainable_parameters"], run.record["total_parameters"]
    assert told[-1] == f"trainable {trained:,} of {total:,} parameters ({100 * trained / total:.3f} %)"
    assert trained == sum(t.numel() for t in lora(run).values())


def test_tensorboards_events_stay_in_the_run_folder_and_those_of_a_run_that_goes_on_are_behind_them(
    base: Path, samples: list[Window], tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = with_(SETTINGS, per_device_train_batch_size=4, save_steps=4, eval_steps=2, early_stopping_patience=None)

    def die(progress: Progress) -> None:
        if progress.step == 7:
            raise KeyError

    with pytest.raises(KeyError):
        train(samples, base, tmp_path / "run", settings, die)
    run = train(samples, base, tmp_path / "run", settings)
    assert run.record["resumed_at"] == 4
    assert not (run.folder / "checkpoints").exists()
    read = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    shown = {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    assert set(shown) == {"tune/loss", *(f"train/{x}" for x in ("loss", "learning_rate", "grad_norm",
                                                              "trained_tokens_per_s"))}  # fmt: skip
    lines = [json.loads(x) for x in (run.folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [step for step, _ in shown["train/loss"]] == list(range(1, run.record["steps"] + 1))
    assert shown["train/loss"] == [(x["step"], pytest.approx(x["loss"])) for x in lines]
    assert sorted(shown["tune/loss"]) == [(x["step"], pytest.approx(x["loss"])) for x in run.record["tune"]]
    train(samples, base, tmp_path / "run", with_(settings, max_steps=1))
    assert len(list((run.folder / "tensorboard").iterdir())) == 1, "another run's are gone"


def test_sigterm_leaves_a_checkpoint_and_the_run_goes_on_to_the_same_end(
    base: Path, samples: list[Window], tmp_path: Path
) -> None:
    settings = with_(SETTINGS, per_device_train_batch_size=4, num_train_epochs=3, save_steps=1000)
    whole = train(samples, base, tmp_path / "whole", settings)

    def stop(progress: Progress) -> None:
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        train(samples, base, tmp_path / "cut", settings, stop)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert [p.name for p in (tmp_path / "cut" / "checkpoints").iterdir()] == ["checkpoint-6"]
    run = train(samples, base, tmp_path / "cut", settings)
    assert run.record["resumed_at"] == 6
    one, two = ([x["loss"] for x in r.record["loss"]][-3:] for r in (whole, run))
    assert one == pytest.approx(two, abs=1e-4)
    assert [x["loss"] for x in whole.record["tune"]] == pytest.approx([x["loss"] for x in run.record["tune"]], abs=1e-4)
    steps = [json.loads(x)["step"] for x in (tmp_path / "cut" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert steps == list(range(1, run.record["steps"] + 1))


def test_sigterm_during_the_last_measurement_ends_it_too(base: Path, samples: list[Window], tmp_path: Path) -> None:
    passes: list[bool] = []

    def stop(module: torch.nn.Module, _: Any) -> None:
        if isinstance(module, PeftModel):
            passes.append(module.training)
            if passes[-2:] == [True, False]:  # from training to measuring
                os.kill(os.getpid(), signal.SIGTERM)

    handle = register_module_forward_pre_hook(stop)
    try:
        with pytest.raises(SystemExit) as ended:
            train(samples, base, tmp_path / "run", with_(SETTINGS, max_steps=1))
    finally:
        handle.remove()
    assert ended.value.code == 143
    run = train(samples, base, tmp_path / "run", with_(SETTINGS, max_steps=1))
    assert run.record["resumed_at"] == 0, "it was finished"


def test_a_run_killed_while_its_result_was_put_in_place_keeps_the_best(
    base: Path, samples: list[Window], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    wild = with_(SETTINGS, learning_rate=1.0, max_steps=30, eval_steps=1, early_stopping_patience=3, save_steps=1)

    def block(_: Progress) -> None:
        (folder / ".train.json.tmp").mkdir(exist_ok=True)

    with pytest.raises(IsADirectoryError):
        train(samples, base, folder, wild, block)
    best = load_file(folder / "peft" / "adapter_model.safetensors")
    (folder / ".train.json.tmp").rmdir()
    run = train(samples, base, folder, wild)
    assert run.record["best_step"] < run.record["steps"]
    assert all(torch.equal(best[name], weight) for name, weight in lora(run).items())


def test_checkpoints_are_no_more_than_the_limit(base: Path, samples: list[Window], tmp_path: Path) -> None:
    seen: list[int] = []
    folder = tmp_path / "run" / "checkpoints"
    settings = with_(SETTINGS, per_device_train_batch_size=4, save_steps=1, save_total_limit=3)
    train(samples, base, tmp_path / "run", settings, lambda _: seen.append(len(list(folder.glob("checkpoint-*")))))
    assert max(seen) == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(
    base: Path, samples: list[Window], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    settings = with_(SETTINGS, per_device_train_batch_size=4, save_steps=2)

    def fill(progress: Progress) -> None:
        if progress.step == 3:
            (folder / "metrics.jsonl").unlink()
            (folder / "metrics.jsonl").symlink_to("/dev/full")

    with pytest.raises(TrainingError, match=r"the disk is full.*make room and start it again"):
        train(samples, base, folder, settings, fill)
    (folder / "metrics.jsonl").unlink()
    assert not (folder / "peft").exists()
    run = train(samples, base, folder, settings)
    assert run.record["resumed_at"] == 2


@pytest.mark.parametrize(
    ("change", "warm"),
    [
        ({"max_steps": 10, "warmup_ratio": 0.2}, 2),
        ({"num_train_epochs": 2, "gradient_accumulation_steps": 2, "warmup_ratio": 0.3}, 3),
        ({"max_steps": 6, "warmup_ratio": 0.0}, 0),
    ],
)
def test_the_learning_rate_rises_and_falls_as_a_cosine_and_every_weight_decays(
    change: dict[str, Any], warm: int, base: Path, samples: list[Window], tmp_path: Path
) -> None:
    used: list[list[dict[str, Any]]] = []

    def look(optimizer: Any, *_: Any) -> None:
        used.append([dict(group) for group in optimizer.param_groups])

    settings = with_(
        SETTINGS, per_device_train_batch_size=4, weight_decay=0.03, early_stopping_patience=None, **change
    )  # fmt: skip
    handle = register_optimizer_step_pre_hook(look)
    try:
        run = train(samples, base, tmp_path / "run", settings)
    finally:
        handle.remove()
    total = run.record["steps"]
    falls = [0.5 * (1 + math.cos(math.pi * n / (total - warm))) for n in range(total - warm)]
    parts = [*(n / warm for n in range(warm)), *falls]
    assert all(len({g["lr"] for g in groups}) == 1 for groups in used)
    rates = [groups[0]["lr"] for groups in used]
    assert rates == pytest.approx([5e-3 * part for part in parts])
    assert max(rates) == pytest.approx(5e-3)
    decays = [(g["weight_decay"], len(g["params"])) for g in used[0] if g["params"]]
    assert decays == [(0.03, len(lora(run)))]


def test_python_of_a_checkpoint_runs_only_where_it_is_trusted(
    base: Path, samples: list[Window], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    own, ran = shutil.copytree(base, tmp_path / "own"), tmp_path / "ran"
    (own / "own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import Qwen3Config, Qwen3ForCausalLM\n"
        f"Path({str(ran)!r}).touch()\n"
        "class OwnConfig(Qwen3Config):\n    model_type = 'own'\n"
        "class Own(Qwen3ForCausalLM):\n    config_class = OwnConfig\n",
        "utf-8",
    )
    config = json.loads((own / "config.json").read_text("utf-8"))
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
    (own / "config.json").write_text(json.dumps(config), "utf-8")
    few = with_(SETTINGS, max_steps=1)
    for work in (lambda: train(samples, own, tmp_path / "run", few), lambda: dryrun.lines(own, few)):
        with pytest.raises(TrainingError, match=r"'own' needs Python .*trust_remote_code = true if you trust"):
            work()
    assert not ran.exists()
    trusted = with_(few, trust_remote_code=True)
    assert dryrun.lines(own, trusted)
    assert ran.exists()
    assert train(samples, own, tmp_path / "run", trusted).record["steps"] == 1


# -- going on -------------------------------------------------------------------------------------


def test_a_night_that_goes_on_reads_what_is_new_and_some_of_the_old(base: Path, samples: list[Window]) -> None:
    since = talks.START + 30 * talks.A_DAY
    fresh, going_on = (select(samples, SETTINGS, e) for e in (Extra(), Extra(since=since)))
    assert all(row in fresh.train for row in going_on.train)
    new = [r for w in samples if w.newest and w.newest > since for r in rows_of([w], Split.TRAIN)]
    assert going_on.counts["new"] == len(new) > 0
    assert all(row in going_on.train for row in new)
    old = len(fresh.train) - len(new)
    assert 0 < going_on.counts["replayed"] < old
    assert select(samples, with_(SETTINGS, replay=0.0), Extra(since=since)).counts["replayed"] == 0
    assert select(samples, with_(SETTINGS, replay=1.0), Extra(since=since)).counts["replayed"] == old
    # Another night replays others.
    later = select(samples, SETTINGS, Extra(since=since.replace(microsecond=7)))
    assert later.train != going_on.train


def test_general_chat_is_a_share_and_is_never_held_out(base: Path, samples: list[Window]) -> None:
    few, others = samples[:10], samples[10:]
    found = select(few, with_(SETTINGS, general_share=0.5), Extra(general=others))
    assert found.counts["general"] == found.counts["new"]
    assert found.tune == tuple(rows_of(few, Split.TUNE))
    assert select(few, with_(SETTINGS, general_share=0.1), Extra(general=others)).counts["general"] <= 1
    assert found.answers == select(few, SETTINGS, Extra()).answers
    held_out = select(few, SETTINGS, Extra(held_out=others[:3]))
    assert 0 < len(held_out.tune) <= 3


def test_the_newest_windows_are_kept_where_samples_are_limited(base: Path, samples: list[Window]) -> None:
    every = select(samples, SETTINGS, Extra()).train
    kept = select(samples, with_(SETTINGS, max_samples=5), Extra()).train
    assert kept == every[-5:]


def test_a_lora_is_gone_on_with_from_where_it_was(base: Path, samples: list[Window], tmp_path: Path) -> None:
    first = train(samples, base, tmp_path / "first", with_(SETTINGS, num_train_epochs=4))
    short = with_(SETTINGS, max_steps=1, r=None, lora_alpha=None, learning_rate=None)
    second = train(samples, base, tmp_path / "second", short, options=Options(going_on=first.peft))
    assert second.record["loss"][0]["loss"] < first.record["loss"][0]["loss"] - 1
    assert (second.record["settings"]["r"], second.record["settings"]["learning_rate"]) == (4, 1e-4)
    assert second.record["going_on"] == "first"
    assert set(lora(second)) == set(lora(first))


def test_a_lora_that_every_step_makes_worse_is_kept_as_it_was_and_that_is_told(
    base: Path, samples: list[Window], tmp_path: Path
) -> None:
    first = train(samples, base, tmp_path / "first", with_(SETTINGS, num_train_epochs=4))
    options = Options(going_on=first.peft)
    wild = with_(SETTINGS, learning_rate=1.0, max_steps=5, eval_steps=1, save_steps=2, early_stopping_patience=None)

    def die(progress: Progress) -> None:
        if progress.step == 4:
            raise KeyError

    with pytest.raises(KeyError):
        train(samples, base, tmp_path / "run", wild, die, options)
    run, lines = told_by(lambda: train(samples, base, tmp_path / "run", wild, options=options))
    assert run.record["resumed_at"] == 2
    tune = run.record["tune"]
    assert [x["step"] for x in tune] == [0, 1, 2, 3, 4, 5]
    assert tune[0]["loss"] == pytest.approx(first.record["tune"][-1]["loss"], rel=1e-4)
    assert (run.record["best_step"], min(x["loss"] for x in tune)) == (0, tune[0]["loss"])
    assert all(torch.equal(weight, lora(first)[name]) for name, weight in lora(run).items())
    (told,) = [line for line in lines if "kept as it was gone on with" in line]
    assert f"({', '.join(format(x['loss'], '.3f') for x in tune)})" in told
    assert _ended(run.folder, "xiaoman")[0] == (
        f"held-out loss: {tune[0]['loss']:.3f} nats per token at step 0 of 5: no step made it better, the LoRA is the "
        "one it went on from"
    )
    # The first that is worse counts for the early stop; without anything held out nothing is compared.
    few = train(samples, base, tmp_path / "few", with_(wild, early_stopping_patience=1), options=options)
    assert (few.record["steps"], few.record["best_step"]) == (1, 0)
    blind = Options(going_on=first.peft, extra=Extra(held_out=()))
    assert train(samples, base, tmp_path / "blind", with_(wild, max_steps=2), options=blind).record["best_step"] == 2


def test_a_lora_of_another_base_or_rank_is_refused(base: Path, samples: list[Window], tmp_path: Path) -> None:
    first = train(samples, base, tmp_path / "first", with_(SETTINGS, max_steps=1))
    for name, layers, hidden in (("deeper", 3, 64), ("wider", 2, 96)):
        other = tinymodel.build(tmp_path / name, "qwen3", layers=layers, hidden=hidden).hf
        with pytest.raises(TrainingError, match=r"it is of another base; set \[training\] start = 'fresh'"):
            train(talks.samples(other), other, tmp_path / f"run-{name}", SETTINGS, options=Options(going_on=first.peft))
        assert not (tmp_path / f"run-{name}" / "peft").exists()
    with pytest.raises(TrainingError, match=r"r = 8, and the LoRA to go on with has r = 4"):
        known.known(first.peft, with_(SETTINGS, r=8))
    with pytest.raises(TrainingError, match=r"no readable adapter_config\.json"):
        known.known(tmp_path, SETTINGS)


@pytest.mark.parametrize("change", [
    {"r": 8}, {"lora_alpha": 4}, {"lora_dropout": 0.1}, {"use_rslora": True}, {"use_dora": True},
])  # fmt: skip
def test_a_lora_is_gone_on_with_as_it_is_or_not_at_all(change: dict[str, Any], tmp_path: Path) -> None:
    has = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "use_rslora": False, "use_dora": False}
    (tmp_path / "adapter_config.json").write_text(json.dumps(has), "utf-8")
    assert known.known(tmp_path, SETTINGS).lora_alpha == 8
    assert known.known(tmp_path, Training()).r == 4
    ((name, value),) = change.items()
    with pytest.raises(TrainingError, match=rf"{name} = {value}, and .* has {name} = {has[name]}; "):
        known.known(tmp_path, with_(SETTINGS, **change))


def test_a_lora_that_lies_on_other_layers_stays_on_them_and_says_so_or_is_refused(
    base: Path, samples: list[Window], tmp_path: Path
) -> None:
    few = with_(SETTINGS, max_steps=1, target_modules=("q_proj", "v_proj"))
    first, told = train(samples, base, tmp_path / "first", few), list[str]()
    options = Options(going_on=first.peft, tell=told.append)
    run = train(samples, base, tmp_path / "run", with_(SETTINGS, max_steps=1), options=options)
    words = "target_modules = q_proj, v_proj: of the LoRA that is gone on with, on which it stays; others need start ="
    assert [line for line in told if line.startswith("target_modules")] == [f"{words} 'fresh'"]
    assert set(lora(run)) == set(lora(first))
    assert run.record["settings"]["target_modules"] == ["q_proj", "v_proj"]
    told.clear()
    again = train(samples, base, tmp_path / "again", few, options=options)
    assert [line for line in told if line.startswith("target_modules")] == []
    assert again.record["settings"]["target_modules"] == ["q_proj", "v_proj"]
    others = with_(few, target_modules=("q_proj", "k_proj"))
    with pytest.raises(TrainingError, match=r"\['q_proj', 'k_proj'\] .* lies on, q_proj, v_proj; leave both out"):
        train(samples, base, tmp_path / "others", others, options=options)
    assert not (tmp_path / "others" / "peft").exists()


# -- bad input ------------------------------------------------------------------------------------


def test_too_few_samples_and_no_such_layer_are_one_line_each_and_leave_nothing(
    base: Path, samples: list[Window], tmp_path: Path
) -> None:
    window = next(w for w in samples if sum(x.split is Split.TRAIN and bool(x.trained) for x in w.labels) >= 2)
    label = next(x for x in window.labels if x.split is Split.TRAIN and x.trained)
    alone = replace(window, labels=(label,))
    silences = [replace(w, labels=tuple(x for x in w.labels if x.silence)) for w in samples]
    assert sum(x.split is Split.TRAIN and bool(x.trained) for w in silences for x in w.labels) > 2
    faults: list[tuple[list[Window], Training, str]] = [
        ([], SETTINGS, r"none of 0 windows.*twin import"),
        ([alone], SETTINGS, r"there is one sample, and two are the least.*twin import"),
        (silences, SETTINGS, rf"none of {len(silences)} windows holds a word of the person.*twin import"),
        (samples, with_(SETTINGS, target_modules=("nothing",)), r"'nothing', and the base has no such linear layer"),
        (samples, with_(SETTINGS, moe_scope="all"), r"has no experts"),
        (samples, with_(SETTINGS, use_liger_kernel=True), r"liger-kernel, which is not installed"),
    ]
    for windows, settings, words in faults:
        with pytest.raises(TrainingError, match=words) as told:
            train(windows, base, tmp_path / "run", settings)
        assert "\n" not in str(told.value)
        assert not (tmp_path / "run" / "peft").exists()
        assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_history_of_nothing_but_long_messages_names_the_window(base: Path) -> None:
    with pytest.raises(TrainingError, match=r"all \d+ exchanges are longer than a window of 8 tokens.*model_max_len"):
        talks.samples(base, length=8)
