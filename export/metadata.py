"""Keys of a GGUF's header → Python values, by prefix, without the tensors.

gguf's GGUFReader makes a numpy view for every element of every array: 19 s for Gemma's 262,144 words. Reading the
header from front to back takes a second. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np

from bot.errors import ExportError

_TYPE = gguf.GGUFValueType
_NUMBERS = {
    _TYPE.UINT8: "<u1", _TYPE.INT8: "<i1", _TYPE.UINT16: "<u2", _TYPE.INT16: "<i2", _TYPE.UINT32: "<u4",
    _TYPE.INT32: "<i4", _TYPE.FLOAT32: "<f4", _TYPE.BOOL: "?", _TYPE.UINT64: "<u8", _TYPE.INT64: "<i8",
    _TYPE.FLOAT64: "<f8",
}  # fmt: skip

_VALUE_MAX = 2**30
"""No value is longer (bytes); a damaged length must not ask for all memory."""


@dataclass(frozen=True, slots=True)
class Field:
    """One key's value.

    Args:
        value: as Python has it; a list where `items` is set.
        kind: its type in the file.
        items: type of a list's items.
    """

    value: Any
    kind: gguf.GGUFValueType
    items: gguf.GGUFValueType | None = None


def fields(path: Path, *prefixes: str) -> dict[str, Field]:
    """The keys of a GGUF that begin with one of `prefixes`, in the file's order.

    Raises:
        ExportError: missing, or no GGUF of version 2 or 3.
    """
    try:
        with path.open("rb") as f:
            magic, version, _, n = struct.unpack("<4sIQQ", f.read(24))
            if magic != b"GGUF" or version not in (2, 3):
                raise ValueError(f"{magic!r}, version {version}")
            read = ((_text(f), _field(f)) for _ in range(n))
            return {key: field for key, field in read if key.startswith(prefixes)}
    except (OSError, ValueError, KeyError, struct.error) as e:
        raise ExportError(f"{path.name!r} is no readable GGUF ({e}); is the file complete?") from e


def _field(f: BinaryIO) -> Field:
    kind = _TYPE(_number(f, _TYPE.UINT32))
    if kind is not _TYPE.ARRAY:
        return Field(_text(f) if kind is _TYPE.STRING else _number(f, kind), kind)
    items, n = _TYPE(_number(f, _TYPE.UINT32)), _number(f, _TYPE.UINT64)
    if items is _TYPE.STRING:
        return Field([_text(f) for _ in range(n)], kind, items)
    dtype = np.dtype(_NUMBERS[items])
    return Field(np.frombuffer(_bytes(f, n * dtype.itemsize), dtype).tolist(), kind, items)


def _number(f: BinaryIO, kind: gguf.GGUFValueType) -> Any:
    dtype = np.dtype(_NUMBERS[kind])
    return np.frombuffer(_bytes(f, dtype.itemsize), dtype)[0].item()


def _text(f: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", f.read(8))
    return _bytes(f, length).decode("utf-8")


def _bytes(f: BinaryIO, n: int) -> bytes:
    raw = f.read(n) if n <= _VALUE_MAX else b""
    if len(raw) != n:
        raise ValueError(f"a value of {n} bytes goes beyond its end")
    return raw
