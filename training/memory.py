"""A base's shape, how it is held and a batch → bytes that training takes.

Estimates, to choose by; what comes short is mended while it runs (`training.trainer` halves a batch that does not fit).

Per token of a decoder layer, with hidden width h and all that is fed into linear layers, `inputs`, the backward pass
keeps (`training.lean`): as many bytes as the inputs have as computed, one for each in dropout masks, and about 20h of
norms, residuals and attention (sdpa and flash attention keep no scores). Recomputed, a layer keeps its input alone, and
one layer at a time has all of that.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from training.loss import CHUNK_BYTES, FULL_BYTES

_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A weight in NF4 with an 8-bit scale every 64 and a float32 one every 256 of those (QLoRA, section 3)."""
_BYTES = {"nf4": _NF4_BYTES, "int8": 1.0, "fp8": 1.0}
AT_ONCE_TOKENS = 512
"""Tokens of one pass on a processor: a larger one keeps as much more. What it costs in time was not measured."""
_OVERHEAD_BYTES = 1_000_000_000
"""Kernels' workspaces and what the allocator cannot use."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What memory depends on.

    Args:
        layers: decoder layers.
        hidden: their width.
        inputs: widths of what goes into one layer's linear layers, summed.
        linear: weights of all linear layers but the output layer.
        other: all other weights; an output layer tied to the embedding is counted once.
        vocabulary: words.
        width: bytes of what is computed in.
    """

    layers: int
    hidden: int
    inputs: int
    linear: int
    other: int
    vocabulary: int
    width: int = 2

    def weight_bytes(self, weights: str) -> int:
        """The frozen base, its linear layers held as `weights` says."""
        return int(self.linear * _BYTES.get(weights, self.width) + self.other * self.width)

    def activation_bytes(self, tokens: int, *, recomputed: bool) -> int:
        """What one forward pass over `tokens` (padding included) keeps for its backward pass."""
        layer = (self.width + 1) * self.inputs + 20 * self.hidden
        kept = self.width * self.hidden * self.layers + layer if recomputed else layer * self.layers
        return tokens * kept + self.logit_bytes

    @property
    def logit_bytes(self) -> int:
        """A chunk of logits, at least of one position, as computed, and what of it is in float32."""
        return max(CHUNK_BYTES, self.vocabulary * self.width) + FULL_BYTES[False]


def shape_of(model: Any) -> Shape:
    """A model's shape; it may lie on the meta device. A quantized one tells its shape by its layers, not its bytes."""
    config = model.config.get_text_config()
    output = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not output]
    in_linear = sum(m.in_features * m.out_features for m in linear)
    held = {id(p) for m in linear for p in (m.weight,)}
    other = sum(p.numel() for p in model.parameters() if id(p) not in held)
    layers = int(config.num_hidden_layers)
    inputs = sum(m.in_features for m in linear) // max(1, layers)
    dtype = model.dtype if hasattr(model, "dtype") else None
    return Shape(
        layers, int(config.hidden_size), inputs, in_linear, other, int(config.vocab_size),
        4 if dtype is not None and dtype.itemsize == 4 else 2,
    )  # fmt: skip


def pass_tokens(batch: int, length: int, at_once: int | None) -> int:
    """Tokens of one forward pass over a batch of rows of a length, of which it reads `at_once` if more than one row."""
    return batch * length if at_once is None else min(batch * length, max(at_once, length))


def training_bytes(
    shape: Shape, weights: str, trained: int, batch: int, length: int, *, recomputed: bool, eight_bit: bool,
    at_once: int | None = None,
) -> int:  # fmt: skip
    """Everything at once: base, LoRA (float32) with gradient and AdamW's two moments, activations, workspaces.

    Args:
        shape: the base's.
        weights: how its linear layers are held.
        trained: parameters of the LoRA.
        batch: windows in one forward pass.
        length: tokens of each.
        recomputed: gradient checkpointing.
        eight_bit: the optimizer's moments are bytes, not float32.
        at_once: tokens that one pass reads at most, if more than one row; None: a whole batch.
    """
    states = trained * (4 + 4 + (2 if eight_bit else 8))
    activations = shape.activation_bytes(pass_tokens(batch, length, at_once), recomputed=recomputed)
    return shape.weight_bytes(weights) + states + activations + _OVERHEAD_BYTES
