"""Linear layers held as 8-bit floats (e4m3) with a scale a row, computed in the type of what comes in.

Half of bf16's memory without bitsandbytes. The backward pass makes the weight anew instead of keeping it, so that no
more than one layer is held as computed at any moment.
"""

from typing import Any

import torch
from torch import Tensor, nn

_LARGEST = float(torch.finfo(torch.float8_e4m3fn).max)


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return x @ (weight.to(x.dtype) * scale.to(x.dtype)).T

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        weight, scale = ctx.saved_tensors
        (above,) = upstream
        return above @ (weight.to(above.dtype) * scale.to(above.dtype)), None, None


class Fp8Linear(nn.Linear):
    """A frozen linear layer, y = x Wᵀ + b, whose W is float8.

    Args:
        layer: what it replaces; its weight is let go.
    """

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight = layer.weight.detach().float()
        scale = (weight.abs().amax(1, keepdim=True) / _LARGEST).clamp(min=1e-12)
        self.weight = nn.Parameter((weight / scale).to(torch.float8_e4m3fn), requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        y: Tensor = _Multiply.apply(x, self.weight, self.scale)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)


def shrink(model: Any) -> None:
    """Hold all linear layers but the output layer as float8."""
    output = model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and layer is not output:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, Fp8Linear(layer))
