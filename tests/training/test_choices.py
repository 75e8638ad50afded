"""What is left open is chosen from data and device, with its reason; what is set stays."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from bot.config import Training
from training import choices, precision
from training.choices import Chosen, Data, Known, choose
from training.device import Device
from training.memory import Shape, shape_of, training_bytes
from training.targets import lora_size, targets

GB = 1_000_000_000
CPU = Device("cpu", "2 cores", 24 * GB)
GPU = Device("cuda", "a card", 24 * GB, bfloat16=True, float8=True)
OLD_GPU = Device("cuda", "an old card", 12 * GB, bfloat16=False)
SMALL = Shape(layers=28, hidden=1024, inputs=10240, linear=440_000_000, other=155_000_000, vocabulary=151_936)


def chosen(
    settings: Training | None = None, answers: int = 120, rows: int = 80, device: Device = CPU, free: int = 20 * GB,
    going_on: Known | None = None, processes: int = 1, at_once: int | None = None,
) -> Chosen:  # fmt: skip
    given, data = settings or Training(), Data(answers, rows, 500, held_out=True)
    how = precision.chosen(given, device)
    return choose(given, data, SMALL, device, how, free, going_on=going_on, processes=processes, at_once=at_once)


@pytest.mark.parametrize(
    ("answers", "r", "epochs"),
    [(8, 8, 5), (24, 8, 5), (30, 8, 3), (49, 8, 3), (50, 16, 3), (99, 16, 3), (120, 16, 2), (200, 16, 2),
     (4_999, 16, 2), (5_000, 32, 1), (90_000, 32, 1)],
)  # fmt: skip
def test_rank_and_epochs_follow_the_number_of_answers(answers: int, r: int, epochs: float) -> None:
    found = chosen(answers=answers)
    assert (found.settings.r, found.settings.num_train_epochs) == (r, epochs)
    assert found.settings.lora_alpha == 2 * r
    assert f"r = {r}: {answers} answers" in found.reasons


def test_nothing_is_left_open_and_every_choice_has_its_reason() -> None:
    open_before = {n for n, v in Training().model_dump().items() if v in (None, "auto")}
    found = chosen()
    limits = {"base", "max_experts_per_layer", "max_steps", "max_samples", "eval_data_path", "eval_steps", "threads"}
    assert {n for n, v in found.settings.model_dump().items() if v in (None, "auto")} == limits
    told = {reason.split(" = ")[0] for reason in found.reasons}
    assert told == open_before - limits
    assert all(": " in reason for reason in found.reasons)


def test_epochs_that_decide_nothing_are_not_told() -> None:
    found = chosen(Training(max_steps=200))
    assert not [reason for reason in found.reasons if "epochs" in reason]
    assert "gradient_accumulation_steps = 1: 200 optimizer steps" in found.reasons


def test_what_is_set_stays() -> None:
    given = Training(
        r=4, lora_alpha=4, lora_dropout=0.2, learning_rate=1e-3, num_train_epochs=7, per_device_train_batch_size=3,
        gradient_accumulation_steps=5, gradient_checkpointing=True, model_max_length=128, optim="adamw_torch",
        precision="none", compute_dtype="float32", attn_implementation="eager", packing="on",
    )  # fmt: skip
    found = chosen(given)
    assert found.settings == given
    assert found.reasons == ()


def test_alpha_is_twice_a_rank_that_was_set() -> None:
    assert chosen(Training(r=64)).settings.lora_alpha == 128


def test_the_device_decides_precision_window_and_optimizer() -> None:
    on_cpu, on_gpu, on_old = (chosen(device=d).settings for d in (CPU, GPU, OLD_GPU))
    assert chosen(device=replace(CPU, bfloat16=False)).settings.compute_dtype == "float32", "16 bits would be emulated"
    assert (on_cpu.precision, on_cpu.compute_dtype, on_cpu.optim) == ("none", "bfloat16", "adamw_torch_fused")
    assert (on_gpu.precision, on_gpu.compute_dtype, on_gpu.optim) == ("nf4", "bfloat16", "paged_adamw_8bit")
    assert (on_old.precision, on_old.compute_dtype) == ("nf4", "float16")
    assert [s.model_max_length for s in (on_cpu, on_gpu, on_old)] == [512, 2048, 512]
    assert choices.window(Training(model_max_length=99), GPU) == 99


@pytest.mark.parametrize(("device", "dtype", "usable"), [
    (GPU, torch.bfloat16, True), (GPU, torch.float16, True), (GPU, torch.float32, False),
    (OLD_GPU, torch.float16, False), (CPU, torch.bfloat16, False),
])  # fmt: skip
def test_flash_attention_is_for_16_bits_on_newer_cards(device: Device, dtype: torch.dtype, usable: bool) -> None:
    assert choices.flash_attention(device, dtype, installed=True) is usable
    assert not choices.flash_attention(device, dtype, installed=False)


def test_a_batch_fits_in_memory_first_by_recomputing_then_by_being_smaller() -> None:
    plain = SMALL.activation_bytes(4 * 500, recomputed=False)
    recomputed = [SMALL.activation_bytes(n * 500, recomputed=True) for n in (4, 1)]
    assert plain > recomputed[0] > recomputed[1]
    roomy, tight, tightest = (
        chosen(free=int(needed * 2.02)).settings for needed in (plain, recomputed[0], recomputed[1])
    )
    assert (roomy.per_device_train_batch_size, roomy.gradient_checkpointing) == (4, False)
    assert (tight.per_device_train_batch_size, tight.gradient_checkpointing) == (4, True)
    assert (tightest.per_device_train_batch_size, tightest.gradient_checkpointing) == (1, True)


def test_what_is_read_in_passes_needs_room_for_one_pass() -> None:
    one = SMALL.activation_bytes(512, recomputed=False)
    assert one < SMALL.activation_bytes(4 * 500, recomputed=False) / 2
    fits, short = (chosen(free=int(one * share), at_once=512).settings for share in (2.02, 1.98))
    assert (fits.per_device_train_batch_size, fits.gradient_checkpointing) == (4, False)
    assert (short.per_device_train_batch_size, short.gradient_checkpointing) == (4, True)
    # One row that is longer than a pass is what counts, and so are few short ones.
    row = SMALL.activation_bytes(500, recomputed=False)
    assert not chosen(free=int(row * 2.02), at_once=1).settings.gradient_checkpointing
    assert chosen(free=int(row * 1.98), at_once=1).settings.gradient_checkpointing


def test_batches_are_joined_where_enough_steps_are_left() -> None:
    joined = {rows: chosen(rows=rows, answers=rows).settings.gradient_accumulation_steps for rows in (80, 300, 2000)}
    assert joined == {80: 1, 300: 2, 2000: 4}
    small = chosen(Training(per_device_train_batch_size=1), rows=2000, answers=2000).settings
    assert small.gradient_accumulation_steps == 16
    assert chosen(rows=300, answers=300, processes=4).settings.gradient_accumulation_steps == 1


def test_a_lora_that_is_gone_on_with_keeps_its_rank_and_learns_half_as_fast() -> None:
    found = chosen(going_on=Known(r=24, lora_alpha=24, lora_dropout=0.1)).settings
    assert (found.r, found.lora_alpha, found.num_train_epochs, found.learning_rate) == (24, 24, 1, 1e-4)
    assert found.lora_dropout == 0.1


def test_experts_get_no_dropout() -> None:
    assert chosen(Training(moe_scope="expert_only")).settings.lora_dropout == 0
    assert chosen().settings.lora_dropout == 0.05


def test_what_was_chosen_survives_the_run_folder() -> None:
    found = chosen()
    assert Chosen.from_state(found.as_state()) == found
    assert Chosen.from_state({"settings": {"r": "many"}, "reasons": []}) is None
    assert Chosen.from_state(None) is None


def test_qlora_of_an_8b_base_fits_in_24_gb() -> None:
    config = Qwen3Config(
        vocab_size=151_936, hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    shape, trained = shape_of(model), lora_size(model, targets(model, Training()), 16)
    assert shape.linear + shape.other == sum(p.numel() for p in model.parameters())
    assert (trained, shape.linear) == (43_646_976, 6_945_767_424)
    needed = training_bytes(shape, "nf4", trained, 4, 2048, recomputed=True, eight_bit=True)
    assert 6 * GB < shape.weight_bytes("nf4") < 7 * GB
    assert needed < 24 * GB
    assert training_bytes(shape, "none", trained, 4, 2048, recomputed=True, eight_bit=True) - needed > 8 * GB
    # So it is what is chosen, too: the base held, a batch of four windows of 2048 tokens is recomputed.
    data = Data(500, 300, 2048, held_out=True)
    free = 24 * GB - shape.weight_bytes("nf4") - 2 * GB
    found = choose(Training(), data, shape, GPU, precision.chosen(Training(), GPU), free).settings
    assert (found.per_device_train_batch_size, found.gradient_checkpointing) == (4, True)
