"""Single tensors of a safetensors file, read as float32 and overwritten in place.

The library maps whole files into memory and writes whole files from memory; a merge needs one weight at a time, of
files larger than memory. Layout (https://github.com/huggingface/safetensors#format): eight bytes of header length,
little endian, the header as JSON, then the tensors' bytes, row-major.
"""

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from bot.errors import ExportError

Array = npt.NDArray[np.float32]
_HEADER_MAX = 100_000_000
"""Longest header the format allows (bytes)."""
_BESIDE_VISION = re.compile(r"^(language_model\.model|model\.language_model)\.")
_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class Stored:
    """Where one tensor lies.

    Args:
        file: the safetensors file.
        name: its name there.
        dtype: F32, F16 or BF16.
        shape: row-major.
        start: offset of its first byte in the file.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def n_numbers(self) -> int:
        """How many it holds."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def n_bytes(self) -> int:
        """What it takes in the file."""
        return self.n_numbers * _BYTES[self.dtype]

    def read(self) -> Array:
        """Its values.

        Raises:
            ExportError: the file is gone or truncated.
        """
        try:
            with self.file.open("rb") as f:
                f.seek(self.start)
                raw = f.read(self.n_bytes)
            return _floats(raw, self.dtype).reshape(self.shape)
        except (OSError, ValueError) as e:
            raise ExportError(f"{self.file.name}: {self.name!r} cannot be read ({e}); is the file complete?") from e

    def overwrite(self, file: BinaryIO, values: Array) -> None:
        """Put other values, rounded to the stored type, in its place in a copy of its file."""
        if values.shape != self.shape:
            raise ExportError(f"{self.name!r} is {self.shape} in {self.file.name}, not {values.shape}")
        file.seek(self.start)
        file.write(_raw(values, self.dtype))


def stored(file: Path) -> dict[str, Stored]:
    """Every tensor of a safetensors file by name, from the header alone.

    Raises:
        ExportError: missing, no safetensors file, truncated, or of a type that is not a float.
    """
    found: dict[str, Stored] = {}
    try:
        size = file.stat().st_size
        with file.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            if length > min(size, _HEADER_MAX):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(f.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            tensor = Stored(file, name, str(entry["dtype"]), tuple(entry["shape"]), 8 + length + int(begin))
            if tensor.dtype not in _BYTES:
                raise ExportError(f"{file.name}: {name!r} is stored as {tensor.dtype}; F32, F16 and BF16 are known")
            if tensor.n_bytes != end - begin or tensor.start + tensor.n_bytes > size:
                raise ValueError(f"{name!r} reaches beyond its end")
            found[name] = tensor
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as e:
        raise ExportError(f"{file.name} is missing or damaged ({type(e).__name__}: {e}); is it complete?") from e
    return found


def widen(file: Path, out: Path) -> None:
    """Copy a safetensors file with every tensor in float32, one at a time.

    Raises:
        ExportError: as `stored`, or a tensor cannot be read.
    """
    tensors, entries, end = stored(file).values(), {}, 0
    for tensor in tensors:
        begin, end = end, end + tensor.n_numbers * _BYTES["F32"]
        entries[tensor.name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": (begin, end)}
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    header += b" " * (-len(header) % 8)  # the tensors begin aligned
    with out.open("wb") as f:
        f.write(struct.pack("<Q", len(header)) + header)
        for tensor in tensors:
            f.write(_raw(tensor.read(), "F32"))


def checkpoint_tensors(checkpoint: Path) -> dict[str, Stored]:
    """Every weight of a Hugging Face checkpoint, from all its files.

    Raises:
        ExportError: there are none, or a file is damaged.
    """
    found: dict[str, Stored] = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        found |= stored(file)
    if not found:
        raise ExportError(f"checkpoint {checkpoint.name!r} holds no .safetensors; is it the one trained on?")
    return found


def text_name(name: str) -> str:
    """A module's or weight's name as it would be without the vision tower beside: `model.layers.0.…`.

    Of models that see pictures files say `language_model.model.`, transformers and PEFT `model.language_model.`.
    """
    return _BESIDE_VISION.sub("model.", name)


def stored_as(tensors: Mapping[str, Stored]) -> str:
    """The coarsest type that matrices are stored in: BF16, F16 or F32."""
    kinds = {t.dtype for t in tensors.values() if len(t.shape) > 1}
    return next((kind for kind in ("BF16", "F16") if kind in kinds), "F32")


def _floats(raw: bytes, dtype: str) -> Array:
    if dtype == "BF16":
        return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, np.float16 if dtype == "F16" else np.float32).astype(np.float32)


def _raw(values: Array, dtype: str) -> bytes:
    if dtype == "BF16":
        # To the nearest, ties to even, as torch rounds; the upper half of a float32 is a bfloat16.
        bits = np.ascontiguousarray(values).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()
    return values.astype(np.float16 if dtype == "F16" else np.float32).tobytes()
