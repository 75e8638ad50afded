"""PEFT LoRA folder → the low-rank change of every weight it adapts, or a refusal that names what cannot be exported.

llama.cpp accepts silently what it does not apply, so everything is checked here, for the LoRA GGUF and the merge alike:
each tensor against the checkpoint's weight of the same name, the strength, and whatever else PEFT can train.
Layout: PEFT's A is (r, in), B (out, r); the weight (out, in) changes by alpha / r · B·A.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bot.errors import ExportError
from export import experts
from export.tensors import Array, Stored, checkpoint_tensors, stored, text_name

_PREFIX = "base_model.model."
_EXACT_INITS = (True, False, "gaussian", "eva", "orthogonal")
"""`init_lora_weights` that leave the base's weights alone; the others (pissa, olora, loftq, …) subtract from it."""

_PLAIN = frozenset({
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "lora_alpha", "lora_dropout", "use_rslora", "bias", "init_lora_weights", "eva_config", "target_modules",
    "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core",
    "qalora_group_size", "runtime_config",
})  # fmt: skip
"""What an adapter_config.json may set; some of it is looked at. peft adds a variant of LoRA every few months: any other
key that is set is refused."""
_REFUSED = {
    "use_dora": "DoRA",
    "lora_bias": "biases of its own",
    "modules_to_save": "fully trained modules",
    "trainable_token_indices": "trained tokens",
    "fan_in_fan_out": "transposed layers",
    "layer_replication": "replicated layers",
    "rank_pattern": "ranks that differ by layer",
    "alpha_pattern": "strengths that differ by layer",
    "alora_invocation_tokens": "a LoRA that begins in the middle of a prompt",
}


@dataclass(frozen=True, slots=True)
class Delta:
    """One adapted weight; its halves are read when asked for, so that one at a time is in memory.

    Args:
        module: its text name, `model.layers.0.self_attn.q_proj`, or `….mlp.experts.gate_proj` of a mixture.
        a: reads A, (r, in), of a mixture (experts, r, in).
        b: reads B, (out, r), of a mixture (experts, out, r).
        shapes: of A and B.
        weights: what it changes in the checkpoint, one, or one an expert.
    """

    module: str
    a: Callable[[], Array]
    b: Callable[[], Array]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    weights: tuple[Stored, ...]


@dataclass(frozen=True, slots=True)
class Deltas:
    """A checked LoRA.

    Args:
        rank: r.
        alpha: as llama.cpp divides it by r.
        config: the checkpoint's config.json.
        parts: every adapted weight.
    """

    rank: int
    alpha: float
    config: dict[str, Any]
    parts: tuple[Delta, ...]

    @property
    def strength(self) -> float:
        """What B·A is multiplied by."""
        return self.alpha / self.rank


def read(peft: Path, checkpoint: Path) -> Deltas:
    """A LoRA, checked against the checkpoint it was trained on.

    Args:
        peft: folder with adapter_config.json and adapter_model.safetensors.
        checkpoint: Hugging Face folder: names, shapes and head counts come from there.

    Raises:
        ExportError: not a plain LoRA on linear layers or experts of this checkpoint, damaged, or not a number.
    """
    label = f"LoRA {peft.name!r}"
    config = _config(peft / "adapter_config.json", label, "was the training run finished?")
    _refuse_unsupported(config, label)
    rank, alpha = int(config["r"]), _alpha(config, label)
    weights = {text_name(name): weight for name, weight in checkpoint_tensors(checkpoint).items()}
    pairs = {text_name(module): pair for module, pair in _pairs(peft, label).items()}
    parts = []
    for module, pair in pairs.items():
        if experts.is_fused(module):
            parts += _fused(module, pair, weights, rank, label)
        else:
            parts.append(_linear(module, pair, weights, rank, label))
    for part in parts:
        for half in (part.a(), part.b()):
            # Beyond float16's range a value would become infinite in the file.
            if not np.isfinite(half).all() or np.abs(half).max() >= 65504:
                raise ExportError(f"{label}: {part.module!r} holds NaN, infinite or huge numbers; the run diverged")
    whole = "give a complete Hugging Face checkpoint"
    of_checkpoint = _config(checkpoint / "config.json", f"checkpoint {checkpoint.name!r}", whole)
    return Deltas(rank, alpha, of_checkpoint, tuple(parts))


def _config(file: Path, label: str, remedy: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise ExportError(f"{label}: {file.name} is missing or not JSON; {remedy}") from e
    if not isinstance(found, dict):
        raise ExportError(f"{label}: {file.name} holds no table")
    return {**found, **found.get("text_config", {})}


def _refuse_unsupported(config: Mapping[str, Any], label: str) -> None:
    peft_type, bias = config.get("peft_type"), config.get("bias", "none")
    init, fused = config.get("init_lora_weights", True), config.get("target_parameters") or []
    odd = {
        f"peft_type {peft_type!r} (LORA expected)": peft_type != "LORA",
        f"trained biases (bias {bias!r})": bias != "none",
        f"fused parameters (target_parameters {fused!r})": not all(experts.is_fused(p) for p in fused),
        f"a start that changes the base (init_lora_weights {init!r})": init not in _EXACT_INITS,
    }
    found = [fault for fault, present in odd.items() if present]
    others = {key: value for key, value in config.items() if value and key not in _PLAIN}
    found += [f"{_REFUSED.get(key, 'what is not known here')} ({key} {value!r})" for key, value in others.items()]
    if found:
        raise ExportError(f"{label} uses what is not exported here: {'; '.join(found)}. Train it without")


def _alpha(config: Mapping[str, Any], label: str) -> float:
    """Alpha as llama.cpp divides it by r; rsLoRA's strength is lora_alpha / √r, hence alpha · √r."""
    try:
        alpha, rank = float(config["lora_alpha"]), int(config["r"])
    except (KeyError, TypeError, ValueError) as e:
        raise ExportError(f"{label}: adapter_config.json has no number for lora_alpha or r") from e
    if not (alpha > 0 and math.isfinite(alpha) and rank > 0):
        raise ExportError(f"{label}: lora_alpha = {alpha} and r = {rank} must be above 0 (0 would mean alpha = r)")
    return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def _pairs(peft: Path, label: str) -> dict[str, dict[str, Stored]]:
    """Module name → its halves "A" and "B" as they are stored."""
    pairs: dict[str, dict[str, Stored]] = {}
    try:
        tensors = stored(peft / "adapter_model.safetensors")
    except ExportError as e:
        raise ExportError(f"{label}: {e}") from e
    for key, tensor in tensors.items():
        module, _, part = key.removeprefix(_PREFIX).rpartition(".lora_")
        side = part.removesuffix(".weight")
        if not module or side not in ("A", "B") or not key.startswith(_PREFIX):
            raise ExportError(f"{label} holds {key!r}, which is no part of a LoRA on a linear layer (a norm, a bias?)")
        pairs.setdefault(module, {})[side] = tensor
    if not pairs:
        raise ExportError(f"{label} adapts nothing: adapter_model.safetensors is empty")
    for module, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            raise ExportError(f"{label}: {module!r} has lora_{next(iter(pair))} but not its other half")
    return pairs


def _linear(module: str, pair: Mapping[str, Stored], weights: Mapping[str, Stored], rank: int, label: str) -> Delta:
    if module.endswith(("embed_tokens", "lm_head")):
        raise ExportError(f"{label} adapts {module!r}; llama.cpp takes no LoRA there. Train linear layers only")
    if module.endswith("mlp.gate"):
        raise ExportError(f"{label} adapts {module!r}, a mixture's router, which is not exported. Train it without")
    weight = weights.get(f"{module}.weight")
    if weight is None or len(weight.shape) != 2:
        raise ExportError(f"{label} adapts {module!r}, which is no linear layer of the checkpoint")
    (outs, ins), a, b = weight.shape, pair["A"], pair["B"]
    if a.shape != (rank, ins) or b.shape != (outs, rank):
        raise ExportError(
            f"{label}: {module!r} has A {a.shape} and B {b.shape}; r = {rank} on a weight of {weight.shape} needs "
            f"A {(rank, ins)} and B {(outs, rank)}. Was it trained on another base?"
        )
    return Delta(module, a.read, b.read, (a.shape, b.shape), (weight,))


def _fused(
    module: str, pair: Mapping[str, Stored], weights: Mapping[str, Stored], rank: int, label: str
) -> list[Delta]:
    block = experts.block_of(module)
    found = experts.unpack(block, pair["A"], pair["B"], weights, rank)
    if found is None:
        raise ExportError(
            f"{label}: {module!r} has A {pair['A'].shape} and B {pair['B'].shape}, which fit no experts of "
            "the checkpoint. Was it trained on another base?"
        )
    return [Delta(f"{block}.{p.name}", p.a, p.b, p.shapes, p.weights) for p in found]
