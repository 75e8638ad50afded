"""A forward pass keeps less for the backward pass, and the numbers stay PEFT's."""

from pathlib import Path
from typing import Any

import pytest
import talks
import tinymodel
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from bot.config import Training
from training.base import load
from training.batches import collate, rows_of
from training.lean import slim
from training.loss import teach_sparse_loss
from training.precision import Precision
from training.samples import Split
from training.targets import lora_config, targets


def tuned(base: Path, weights: Any = "none", dtype: torch.dtype = torch.bfloat16, **change: Any) -> Any:
    """A PEFT model whose B is not zero, as after some steps; LoRAs in float32 as in a run."""
    settings = Training(r=4, lora_alpha=8, lora_dropout=0.0).model_copy(update=change)
    model = load(base, Precision(weights, dtype))
    torch.manual_seed(1)
    model = get_peft_model(model, lora_config(settings, targets(model, settings), model))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            if "lora_B" in name:
                parameter.data.normal_(std=0.05)
    teach_sparse_loss(model)
    return model.train()


def learned(
    model: Any, batch: dict[str, torch.Tensor], dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Loss and gradients of one pass, and bytes that autograd kept for it (of one dtype), each storage once."""
    model.zero_grad()
    torch.manual_seed(2)
    seen: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)  # else an address comes twice
        if dtype in (None, tensor.dtype):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=batch["input_ids"], targets=batch["labels"])
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, sum(seen.values())


@pytest.fixture(scope="module", params=["gemma3", "qwen3"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodel.build(tmp_path_factory.mktemp("tiny"), request.param).hf


def batch_of(base: Path) -> dict[str, torch.Tensor]:
    rows = rows_of(talks.samples(base), Split.TRAIN)[:3]
    return collate([{"input_ids": r.ids, "labels": r.targets} for r in rows])


@pytest.mark.parametrize(
    ("dtype", "dropout"), [(torch.bfloat16, 0.0), (torch.bfloat16, 0.3), (torch.float32, 0.3)]
)  # fmt: skip
def test_loss_and_gradients_are_pefts_and_less_is_kept(base: Path, dtype: torch.dtype, dropout: float) -> None:
    model, batch = tuned(base, dtype=dtype, lora_dropout=dropout), batch_of(base)
    loss, gradients, plain = learned(model, batch, torch.float32)
    assert slim(model) == 2 * 7 + sum("norm" in type(m).__name__.lower() for m in model.modules())
    ours, our_gradients, lean = learned(model, batch, torch.float32)
    torch.testing.assert_close(ours, loss, rtol=1e-5, atol=1e-5)
    assert our_gradients.keys() == gradients.keys()
    assert len(gradients) == 2 * 7 * 2
    for name, gradient in gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-3, atol=1e-3 * scale)
    if dtype == torch.bfloat16:
        assert lean < 0.25 * plain


@pytest.mark.parametrize("weights", ["nf4", "int8"])
def test_a_lora_on_small_weights_learns_the_same(base: Path, weights: str) -> None:
    model, batch = tuned(base, weights), batch_of(base)
    loss, gradients, _ = learned(model, batch)
    slim(model)
    ours, our_gradients, _ = learned(model, batch)
    assert float(ours) == pytest.approx(float(loss), rel=0.01)
    for name, gradient in gradients.items():
        assert float((our_gradients[name] - gradient).norm() / gradient.norm()) < 0.1


def test_recomputed_layers_learn_the_same(base: Path) -> None:
    model, batch = tuned(base, dtype=torch.float32, lora_dropout=0.3), batch_of(base)
    slim(model)
    loss, gradients, whole = learned(model, batch)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again, again_gradients, recomputed = learned(model, batch)
    torch.testing.assert_close(again, loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(again_gradients[name], gradient)
    assert recomputed < whole / 2


def test_what_is_no_plain_lora_beside_the_base_stays_pefts(base: Path) -> None:
    batch = batch_of(base)
    model = tuned(base, dtype=torch.float32, use_dora=True)
    loss, gradients, _ = learned(model, batch)
    slim(model)
    ours, our_gradients, _ = learned(model, batch)
    torch.testing.assert_close(ours, loss)
    assert any("magnitude" in name for name in gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient)
    model = tuned(base, dtype=torch.float32)
    slim(model)
    bare = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        theirs = bare(input_ids=batch["input_ids"]).logits
        with model.disable_adapter():
            torch.testing.assert_close(model(input_ids=batch["input_ids"]).logits, theirs)
        assert not torch.allclose(model(input_ids=batch["input_ids"]).logits, theirs, atol=0.1)
        model.merge_adapter()
        merged = model(input_ids=batch["input_ids"]).logits
        model.unmerge_adapter()
        torch.testing.assert_close(model(input_ids=batch["input_ids"]).logits, merged, rtol=1e-3, atol=1e-3)
