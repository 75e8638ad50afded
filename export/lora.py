"""PEFT LoRA folder → LoRA GGUF for llama.cpp.

llama.cpp accepts silently what it does not apply (a missing alpha counts as alpha = rank, a tensor of a norm is
ignored, any base of the same shape passes), so `export.deltas` checks the LoRA, and the file names its base by sha256
in a key of ours and is read back before it takes its place. Layout: `blk.N.attn_q.weight.lora_a` is PEFT's A as it
is, (r, in); `.lora_b` is B, (out, r); of mixtures with the expert in front. Only architecture `llama` has the rows of
q and k permuted, as its converter permutes the weights. Strength in llama.cpp is alpha / r with r taken from lora_b.
Tensors are written one by one: memory is that of the largest.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import gguf
import numpy as np
import numpy.typing as npt

from bot.errors import ExportError
from bot.llama import BASE_KEY
from bot.persona import Base
from export import deltas, place
from export.tensors import Array

Precision = Literal["f16", "f32", "q8_0"]

ARCHITECTURES = ("gemma2", "gemma3", "llama", "qwen2", "qwen3", "qwen3moe")
"""GGUF architectures whose linear layers map one to one. gemma3, llama, qwen2 and qwen3 were compared tensor by tensor
with llama.cpp's own script, the others by what llama.cpp computes."""


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


@dataclass(frozen=True, slots=True)
class _Half:
    """One tensor of the file before it is read."""

    name: str
    delta: deltas.Delta
    b: bool
    heads: int | None
    """Rows are permuted head by head, where it is not None."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.delta.shapes[self.b]

    def values(self) -> Array:
        values = self.delta.b() if self.b else self.delta.a()
        return values if self.heads is None else _permuted(values, self.heads)


def export(
    peft: Path, checkpoint: Path, base: Base, out: Path, precision: Precision = "f16", *, force: bool = True
) -> Exported:
    """Write a trained LoRA as GGUF.

    Args:
        peft: folder with adapter_config.json and adapter_model.safetensors.
        checkpoint: the Hugging Face checkpoint it was trained on: names, shapes and head counts come from there.
        base: the GGUF it will be served on; its hash is written into the file.
        out: the file; replaced at once or not at all.
        precision: of the tensors. q8_0 needs rows that are multiples of 32; others stay f16.
        force: replace what lies at `out`.

    Raises:
        ExportError: not a plain LoRA on linear layers or experts of this checkpoint, the file does not read back, or
            it cannot be written.
    """
    label = f"LoRA {peft.name!r}"
    if base.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ExportError(f"{label}: architecture {base.architecture!r} has no LoRA export (known: {known})")
    found = deltas.read(peft, checkpoint)
    halves = list(_halves(found, base.architecture, label))
    needed = sum(4 * math.prod(half.shape) for half in halves)
    with place.written(out, needed, force=force) as beside:
        _write(beside, halves, found.alpha, base, precision)
        _check_written(beside, halves, found.alpha, base, label)
    return Exported(out, found.rank, found.alpha, len(found.parts))


def precision_of(name: str) -> Precision:
    """The precision of this name, in any case.

    Raises:
        ExportError: there is none; the message lists them.
    """
    found = {"f16": "f16", "f32": "f32", "q8_0": "q8_0"}.get(name.lower())
    if found is None:
        raise ExportError(f"there is no LoRA type {name!r}; known are f16, f32, q8_0")
    return cast(Precision, found)


def _halves(found: deltas.Deltas, architecture: str, label: str) -> Iterator[_Half]:
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, int(found.config["num_hidden_layers"]))
    for part in found.parts:
        name = names.get_name(part.module)
        if name is None:
            raise ExportError(f"{label} adapts {part.module!r}, which {architecture} has no GGUF name for")
        yield _Half(f"{name}.weight.lora_a", part, False, None)
        yield _Half(f"{name}.weight.lora_b", part, True, _heads(part.module, found.config, architecture))


def _heads(module: str, config: dict[str, Any], architecture: str) -> int | None:
    if architecture != "llama" or not module.endswith((".q_proj", ".k_proj")):
        return None
    of_keys = config.get("num_key_value_heads") or config["num_attention_heads"]
    return int(of_keys if module.endswith(".k_proj") else config["num_attention_heads"])


def _permuted(b: Array, heads: int) -> Array:
    """Rows as the llama converter permutes q and k: rotary halves interleaved, head by head."""
    rows, rank = b.shape
    return np.ascontiguousarray(b.reshape(heads, 2, rows // heads // 2, rank).swapaxes(1, 2).reshape(rows, rank))


def _write(path: Path, halves: list[_Half], alpha: float, base: Base, precision: Precision) -> None:
    writer = gguf.GGUFWriter(path, base.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    writer.add_string(BASE_KEY, base.sha256)
    for half in halves:
        kind = _kind(half, precision)
        shape = gguf.quant_shape_to_byte_shape(half.shape, kind) if kind.name == "Q8_0" else half.shape
        dtype = np.dtype({"F32": np.float32, "F16": np.float16, "Q8_0": np.uint8}[kind.name])
        writer.add_tensor_info(half.name, shape, dtype, math.prod(shape) * dtype.itemsize, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for half in halves:
        writer.write_tensor_data(_packed(half.values(), _kind(half, precision)))
    writer.close()


def _kind(half: _Half, precision: Precision) -> gguf.GGMLQuantizationType:
    kinds = gguf.GGMLQuantizationType
    if precision == "f32":
        return kinds.F32
    return kinds.Q8_0 if precision == "q8_0" and half.shape[-1] % 32 == 0 else kinds.F16


def _packed(values: Array, kind: gguf.GGMLQuantizationType) -> npt.NDArray[Any]:
    packed: npt.NDArray[Any] = gguf.quants.quantize(values, kind)
    return packed


def _check_written(path: Path, halves: list[_Half], alpha: float, base: Base, label: str) -> None:
    """Read the file back: alpha, base and every tensor's name and shape."""
    reader = gguf.GGUFReader(path)
    fields = {key: reader.fields[key].contents() for key in ("adapter.lora.alpha", BASE_KEY) if key in reader.fields}
    read_alpha = float(fields.get("adapter.lora.alpha") or 0.0)
    shapes = {t.name: tuple(int(n) for n in reversed(t.shape)) for t in reader.tensors}
    if not math.isclose(read_alpha, alpha, rel_tol=1e-6) or fields.get(BASE_KEY) != base.sha256:
        raise ExportError(f"{label}: the written file lost its alpha or base hash; please report this")
    if shapes != {half.name: half.shape for half in halves}:
        raise ExportError(f"{label}: the written file does not hold the tensors it should; please report this")
