"""A PEFT model → the same model, whose forward pass keeps less for the backward pass.

The same numbers come out; what differs is what lies in memory in between. Beside a frozen bf16 layer PEFT keeps, for
every LoRA, the layer's input once more in float32, and with dropout what was dropped and the mask, 12 bytes an input in
all. A norm computes in float32 and keeps that. Here a LoRA keeps the input as it came, which q, k and v share, and a
byte a mask; norms are computed anew, which multiplies no matrices.

Gemma 3 270M, bytes a token of a layer: PEFT's 59.4 KB (84.0 with dropout), with LoRAs and norms from here 33.2.
"""

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

_LAYERS = ("Linear", "Linear4bit", "Linear8bitLt")
"""PEFT's LoRAs that add to what a linear layer gives; those on bare parameters change the weight instead."""


class _LowRank(torch.autograd.Function):
    """y = result + scaling · B A dropout(x), as PEFT computes it, out of x in the type it has."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, result: Tensor, a: Tensor, b: Tensor, scaling: float, p: float) -> Tensor:
        mask = torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - p) if p else None
        low = _dropped(x, a.dtype, mask, p) @ a.T
        ctx.save_for_backward(x, a, b, low, mask)
        ctx.scaling, ctx.p = scaling, p
        return (low @ b.T).mul_(scaling).add_(result).to(result.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        x, a, b, low, mask = ctx.saved_tensors
        (above,) = upstream
        scaled = above.to(a.dtype) * ctx.scaling
        for_low = scaled @ b
        for_b = scaled.flatten(0, -2).T @ low.flatten(0, -2)
        for_a = for_low.flatten(0, -2).T @ _dropped(x, a.dtype, mask, ctx.p).flatten(0, -2)
        for_x = _drop(for_low @ a, mask, ctx.p).to(x.dtype) if ctx.needs_input_grad[0] else None
        return for_x, above, for_a, for_b, None, None


def _dropped(x: Tensor, dtype: torch.dtype, mask: Tensor | None, p: float) -> Tensor:
    wide = x.to(dtype)
    # In place only on a copy.
    return wide if mask is None else _drop(wide.clone() if wide is x else wide, mask, p)


def _drop(x: Tensor, mask: Tensor | None, p: float) -> Tensor:
    return x if mask is None else x.mul_(mask.to(x.dtype).div_(1 - p))


class _Again(torch.autograd.Function):
    """work(x), of which x alone is kept; the backward pass does the work again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, work: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.work = work
        return work(x)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        (kept,), (above,) = ctx.saved_tensors, upstream
        x = kept.detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.work(x)
        return *torch.autograd.grad(y, x, above), None


def slim(model: Any) -> int:
    """Let a PEFT model's LoRAs on linear layers and its frozen norms keep less; what is otherwise stays as it is.

    Args:
        model: the PEFT model, changed.

    Returns:
        How many modules keep less now.
    """
    changed = 0
    for module in list(model.modules()):
        if _is_lora(module):
            module.forward = _lora(module, module.forward)
        elif _is_norm(module):
            module.forward = _norm(module.forward)
        else:
            continue
        changed += 1
    return changed


def _is_lora(module: nn.Module) -> bool:
    return isinstance(module, LoraLayer) and type(module).__name__ in _LAYERS


def _is_norm(module: nn.Module) -> bool:
    """A root-mean-square norm of any architecture, frozen."""
    return type(module).__name__.endswith("RMSNorm") and not any(p.requires_grad for p in module.parameters())


def _lora(module: Any, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = _alone(module)
        # Under autocast PEFT computes in what autocast says.
        if name is None or args or kwargs or torch.is_autocast_enabled(x.device.type):
            return plain(x, *args, **kwargs)
        dropout = module.lora_dropout[name]
        p = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
        result = module.base_layer(x)
        a, b = module.lora_A[name].weight, module.lora_B[name].weight
        y: Tensor = _LowRank.apply(x, result, a, b, module.scaling[name], p)  # type: ignore[no-untyped-call]
        return y

    return forward


def _alone(module: Any) -> str | None:
    """The LoRA of a layer, where it is one plain LoRA beside the base; None: several, merged, off, DoRA, or biased."""
    active = [name for name in module.active_adapters if name in module.lora_A]
    if len(active) != 1 or module.disable_adapters or module.merged or active[0] in module.lora_variant:
        return None
    return None if module.lora_bias[active[0]] else active[0]


def _norm(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or not (torch.is_grad_enabled() and x.requires_grad):
            return plain(x, *args, **kwargs)
        y: Tensor = _Again.apply(x, plain)  # type: ignore[no-untyped-call]
        return y

    return forward
