"""PEFT LoRA on a mixture's fused expert parameters → one A and B a projection, as llama.cpp's mixtures are laid out.

transformers holds a layer's experts as `mlp.experts.gate_up_proj` (E, 2·ff, d) and `mlp.experts.down_proj` (E, d, ff);
PEFT (`target_parameters`) wraps one inside the other, so their LoRAs lie under `mlp.experts` and
`mlp.experts.base_layer`, which is which by shape alone. A is (E·r, in), the expert the slow axis; B is (out, r·E), the
expert the *fast* one. Gate and up share A and halve B. Observed with peft 0.21; parity is tested.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from export.tensors import Array, Stored

_PARAMETERS = ("gate_up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Projection:
    """One projection of all experts.

    Args:
        name: gate_proj, up_proj or down_proj.
        a: reads A, (experts, r, in).
        b: reads B, (experts, out, r).
        shapes: of A and B.
        weights: the checkpoint's, one an expert.
    """

    name: str
    a: Callable[[], Array]
    b: Callable[[], Array]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    weights: tuple[Stored, ...]


def is_fused(module: str) -> bool:
    """Whether a LoRA's module, or a target parameter, is a layer's fused experts."""
    return block_of(module).endswith(("mlp.experts", *(f"mlp.experts.{p}" for p in _PARAMETERS)))


def block_of(module: str) -> str:
    """`model.layers.0.mlp.experts` of a fused module."""
    return module.removesuffix(".base_layer")


def unpack(block: str, a: Stored, b: Stored, weights: Mapping[str, Stored], rank: int) -> list[Projection] | None:
    """The projections a fused LoRA adapts, or None when it fits no experts of the checkpoint.

    Args:
        block: `block_of` its module.
        a: PEFT's A, (E·r, in).
        b: PEFT's B, (out, r·E).
        weights: the checkpoint's, experts one by one: `<block>.<e>.gate_proj.weight`.
        rank: r.
    """
    per_expert = {p: _of_all(block, p, weights) for p in ("gate_proj", "up_proj", "down_proj")}
    n = len(per_expert["gate_proj"])
    if n == 0 or any(len(found) != n for found in per_expert.values()):
        return None
    ff, d = per_expert["gate_proj"][0].shape

    def first() -> Array:
        return a.read().reshape(n, rank, -1)

    def second(rows: slice) -> Callable[[], Array]:
        return lambda: np.ascontiguousarray(b.read().reshape(-1, rank, n).transpose(2, 0, 1)[:, rows])

    if (a.shape, b.shape) == ((n * rank, d), (2 * ff, rank * n)):
        shapes = ((n, rank, d), (n, ff, rank))
        return [
            Projection("gate_proj", first, second(slice(0, ff)), shapes, per_expert["gate_proj"]),
            Projection("up_proj", first, second(slice(ff, 2 * ff)), shapes, per_expert["up_proj"]),
        ]
    if (a.shape, b.shape) == ((n * rank, ff), (d, rank * n)):
        shapes = ((n, rank, ff), (n, d, rank))
        return [Projection("down_proj", first, second(slice(None)), shapes, per_expert["down_proj"])]
    return None


def _of_all(block: str, projection: str, weights: Mapping[str, Stored]) -> tuple[Stored, ...]:
    found: list[Stored] = []
    while (weight := weights.get(f"{block}.{len(found)}.{projection}.weight")) is not None:
        found.append(weight)
    return tuple(found)
