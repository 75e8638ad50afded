"""PEFT LoRA folder → LoRA GGUF for llama.cpp, or a refusal that names what llama.cpp would get wrong.

llama.cpp accepts silently what it does not apply (a missing alpha counts as alpha = rank, a tensor of a norm is
ignored, any base of the same shape passes), so everything is checked here: every tensor against the checkpoint's
weight of the same name, the strength, and the base's sha256 in our own key. The file is written beside its place,
read back and renamed. Layout: `blk.N.attn_q.weight.lora_a` is PEFT's A as it is, (r, in); `.lora_b` is B, (out, r);
only architecture `llama` has the rows of q and k permuted, as its converter permutes the weights. Strength in
llama.cpp is alpha / r with r taken from lora_b.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from bot.errors import ExportError
from bot.llama import BASE_KEY
from bot.persona import Base

Precision = Literal["f16", "f32", "q8_0"]
Array = npt.NDArray[np.float32]

ARCHITECTURES = ("gemma3", "llama", "qwen2", "qwen3")
"""GGUF architectures whose linear layers map one to one; compared tensor by tensor with llama.cpp's own script."""
_PREFIX = "base_model.model."
_EXACT_INITS = (True, False, "gaussian", "eva", "orthogonal")
"""`init_lora_weights` that leave the base's weights alone; the others (pissa, olora, loftq, …) subtract from it."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A LoRA GGUF that was written and read back.

    Args:
        path: the file.
        rank: r.
        alpha: as written; strength is alpha / rank.
        pairs: adapted weights, each with an A and a B.
    """

    path: Path
    rank: int
    alpha: float
    pairs: int


def export(peft: Path, checkpoint: Path, base: Base, out: Path, precision: Precision = "f16") -> Exported:
    """Write a trained LoRA as GGUF.

    Args:
        peft: folder with adapter_config.json and adapter_model.safetensors.
        checkpoint: the Hugging Face checkpoint it was trained on: names, shapes and head counts come from there.
        base: the GGUF it will be served on; its hash is written into the file.
        out: the file; replaced at once or not at all.
        precision: of the tensors. q8_0 needs rows that are multiples of 32; others stay f16.

    Raises:
        ExportError: not a plain LoRA on linear layers of this checkpoint, or the file does not read back.
    """
    label = f"LoRA {peft.name!r}"
    config = _config(peft / "adapter_config.json", label)
    _refuse_unsupported(config, label)
    if base.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ExportError(f"{label}: architecture {base.architecture!r} has no LoRA export (known: {known})")
    rank, alpha = int(config["r"]), _alpha(config, label)
    pairs = _pairs(peft, label)
    _check_shapes(pairs, _base_shapes(checkpoint), rank, label)
    tensors = _gguf_tensors(pairs, _config(checkpoint / "config.json", label), base.architecture, label)
    beside = out.with_name(f".{out.name}.tmp")
    try:
        _write(beside, tensors, alpha, base, precision)
        _check_written(beside, tensors, alpha, base, label)
        os.replace(beside, out)
    except OSError as e:
        raise ExportError(f"{label} cannot be written to {out.name!r} ({e.strerror}); is there room?") from e
    finally:
        beside.unlink(missing_ok=True)
    return Exported(out, rank, alpha, len(pairs))


def _config(file: Path, label: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise ExportError(f"{label}: {file.name} is missing or not JSON; was the training run finished?") from e
    if not isinstance(found, dict):
        raise ExportError(f"{label}: {file.name} holds no table")
    return {**found, **found.get("text_config", {})}


def _refuse_unsupported(config: Mapping[str, Any], label: str) -> None:
    init = config.get("init_lora_weights", True)
    faults = {
        f"peft_type {config.get('peft_type')!r} (LORA expected)": config.get("peft_type") != "LORA",
        "DoRA (use_dora)": config.get("use_dora"),
        f"trained biases (bias {config.get('bias')!r})": config.get("bias", "none") != "none",
        "biases of its own (lora_bias)": config.get("lora_bias"),
        f"fully trained modules (modules_to_save {config.get('modules_to_save')!r})": config.get("modules_to_save"),
        "trained tokens (trainable_token_indices)": config.get("trainable_token_indices"),
        "fused parameters (target_parameters)": config.get("target_parameters"),
        "transposed layers (fan_in_fan_out)": config.get("fan_in_fan_out"),
        "replicated layers (layer_replication)": config.get("layer_replication"),
        "ranks that differ by layer (rank_pattern)": config.get("rank_pattern"),
        "strengths that differ by layer (alpha_pattern)": config.get("alpha_pattern"),
        f"a start that changes the base (init_lora_weights {init!r})": init not in _EXACT_INITS,
    }
    found = [fault for fault, present in faults.items() if present]
    if found:
        raise ExportError(f"{label} uses what llama.cpp cannot apply: {'; '.join(found)}. Train it without")


def _alpha(config: Mapping[str, Any], label: str) -> float:
    """Alpha as llama.cpp divides it by r; rsLoRA's strength is lora_alpha / √r, hence alpha · √r."""
    try:
        alpha, rank = float(config["lora_alpha"]), int(config["r"])
    except (KeyError, TypeError, ValueError) as e:
        raise ExportError(f"{label}: adapter_config.json has no number for lora_alpha or r") from e
    if not (alpha > 0 and math.isfinite(alpha) and rank > 0):
        raise ExportError(f"{label}: lora_alpha = {alpha} and r = {rank} must be above 0 (0 would mean alpha = r)")
    return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def _pairs(peft: Path, label: str) -> dict[str, dict[str, Array]]:
    """Module name (`model.layers.0.self_attn.q_proj`) → {"A": (r, in), "B": (out, r)}."""
    pairs: dict[str, dict[str, Array]] = {}
    try:
        with safe_open(peft / "adapter_model.safetensors", framework="pt") as file:
            for key in file.keys():
                module, _, part = key.removeprefix(_PREFIX).rpartition(".lora_")
                side = part.removesuffix(".weight")
                if not module or side not in ("A", "B") or not key.startswith(_PREFIX):
                    raise ExportError(f"{label} holds {key!r}, which is no part of a LoRA on a linear layer")
                pairs.setdefault(module, {})[side] = file.get_tensor(key).float().numpy()
    except (OSError, SafetensorError) as e:
        raise ExportError(f"{label}: adapter_model.safetensors is missing or damaged ({e})") from e
    if not pairs:
        raise ExportError(f"{label} adapts nothing: adapter_model.safetensors is empty")
    return pairs


def _base_shapes(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every weight of the checkpoint, from the headers alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
        except (OSError, SafetensorError) as e:
            raise ExportError(f"checkpoint {checkpoint.name!r}: {path.name} is damaged ({e}); fetch it again") from e
    if not shapes:
        raise ExportError(f"checkpoint {checkpoint.name!r} holds no .safetensors; is it the one trained on?")
    return shapes


def _check_shapes(
    pairs: Mapping[str, Mapping[str, Array]], shapes: Mapping[str, tuple[int, ...]], rank: int, label: str
) -> None:
    for module, pair in pairs.items():
        if module.endswith(("embed_tokens", "lm_head")):
            raise ExportError(f"{label} adapts {module!r}; llama.cpp takes no LoRA there. Train linear layers only")
        if set(pair) != {"A", "B"}:
            raise ExportError(f"{label}: {module!r} has lora_{next(iter(pair))} but not its other half")
        weight = shapes.get(f"{module}.weight")
        if weight is None or len(weight) != 2:
            raise ExportError(f"{label} adapts {module!r}, which is no linear layer of the checkpoint")
        (outs, ins), a, b = weight, pair["A"].shape, pair["B"].shape
        if a != (rank, ins) or b != (outs, rank):
            raise ExportError(
                f"{label}: {module!r} has A {a} and B {b}; r = {rank} on a weight of {weight} needs "
                f"A {(rank, ins)} and B {(outs, rank)}. Was it trained on another base?"
            )
        # Beyond float16's range a value would become infinite in the file.
        if not all(np.isfinite(x).all() and np.abs(x).max() < 65504 for x in pair.values()):
            raise ExportError(f"{label}: {module!r} holds NaN, infinite or huge numbers; the training run diverged")


def _gguf_tensors(
    pairs: Mapping[str, Mapping[str, Array]], config: Mapping[str, Any], architecture: str, label: str
) -> dict[str, Array]:
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, int(config["num_hidden_layers"]))
    tensors: dict[str, Array] = {}
    for module, pair in pairs.items():
        name = names.get_name(module)
        if name is None:
            raise ExportError(f"{label} adapts {module!r}, which {architecture} has no GGUF name for")
        b = pair["B"]
        if architecture == "llama" and module.endswith((".q_proj", ".k_proj")):
            heads = "num_attention_heads" if module.endswith(".q_proj") else "num_key_value_heads"
            b = _permuted(b, int(config.get(heads) or config["num_attention_heads"]))
        tensors[f"{name}.weight.lora_a"] = pair["A"]
        tensors[f"{name}.weight.lora_b"] = b
    return tensors


def _permuted(b: Array, heads: int) -> Array:
    """Rows as the llama converter permutes q and k: rotary halves interleaved, head by head."""
    rows, rank = b.shape
    return np.ascontiguousarray(b.reshape(heads, 2, rows // heads // 2, rank).swapaxes(1, 2).reshape(rows, rank))


def _write(path: Path, tensors: Mapping[str, Array], alpha: float, base: Base, precision: Precision) -> None:
    writer = gguf.GGUFWriter(path, base.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    writer.add_string(BASE_KEY, base.sha256)
    for name, values in tensors.items():
        if precision == "q8_0" and values.shape[-1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values if precision == "f32" else values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with path.open("rb") as f:
        os.fsync(f.fileno())


def _check_written(path: Path, tensors: Mapping[str, Array], alpha: float, base: Base, label: str) -> None:
    """Read the file back: alpha, base and every tensor's name and shape."""
    reader = gguf.GGUFReader(path)
    fields = {key: reader.fields[key].contents() for key in ("adapter.lora.alpha", BASE_KEY) if key in reader.fields}
    read_alpha = float(fields.get("adapter.lora.alpha") or 0.0)
    shapes = {t.name: tuple(int(n) for n in reversed(t.shape)) for t in reader.tensors}
    if not math.isclose(read_alpha, alpha, rel_tol=1e-6) or fields.get(BASE_KEY) != base.sha256:
        raise ExportError(f"{label}: the written file lost its alpha or base hash; please report this")
    if shapes != {name: values.shape for name, values in tensors.items()}:
        raise ExportError(f"{label}: the written file does not hold the tensors it should; please report this")
