"""GGUF → GGUF of another type with `llama_model_quantize`, and what each type may cost.

llama.cpp's tools/perplexity/README.md tells what its types cost Llama 3 8B in perplexity on Wikitext-2 (IQ types and
Q2_K_S with an importance matrix, the others without). A smaller model loses more: twice that, on top of what
unquantized weights may differ, is what a merged file may lose here.
"""

import ctypes
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp as lc
import numpy as np
import numpy.typing as npt

from bot import processors
from bot.errors import ExportError
from export.tensors import Stored

_PERPLEXITY = 6.2316
"""Of Llama 3 8B in F16, which the published differences are added to."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A quantization type.

    Args:
        ftype: llama.cpp's number.
        bits: a weight, about.
        published: what it adds to that perplexity.
        needs_imatrix: llama.cpp refuses it without an importance matrix.
    """

    ftype: int
    bits: float
    published: float
    needs_imatrix: bool = False

    @property
    def published_nats(self) -> float:
        """The published loss in nats a token."""
        return math.log1p(self.published / _PERPLEXITY)


KINDS: Mapping[str, Kind] = {
    "F32": Kind(lc.LLAMA_FTYPE_ALL_F32, 32, 0),
    "F16": Kind(lc.LLAMA_FTYPE_MOSTLY_F16, 16, 0),
    "BF16": Kind(lc.LLAMA_FTYPE_MOSTLY_BF16, 16, 0),
    "Q8_0": Kind(lc.LLAMA_FTYPE_MOSTLY_Q8_0, 8.5, 0.0026),
    "Q6_K": Kind(lc.LLAMA_FTYPE_MOSTLY_Q6_K, 6.6, 0.0217),
    "Q5_K_M": Kind(lc.LLAMA_FTYPE_MOSTLY_Q5_K_M, 5.7, 0.0569),
    "Q5_K_S": Kind(lc.LLAMA_FTYPE_MOSTLY_Q5_K_S, 5.6, 0.1049),
    "Q5_1": Kind(lc.LLAMA_FTYPE_MOSTLY_Q5_1, 6.0, 0.1062),
    "Q5_0": Kind(lc.LLAMA_FTYPE_MOSTLY_Q5_0, 5.6, 0.1316),
    "Q4_K_M": Kind(lc.LLAMA_FTYPE_MOSTLY_Q4_K_M, 4.9, 0.1754),
    "IQ4_NL": Kind(lc.LLAMA_FTYPE_MOSTLY_IQ4_NL, 4.7, 0.224),
    "IQ4_XS": Kind(lc.LLAMA_FTYPE_MOSTLY_IQ4_XS, 4.5, 0.2281),
    "Q4_K_S": Kind(lc.LLAMA_FTYPE_MOSTLY_Q4_K_S, 4.7, 0.2689),
    "Q4_1": Kind(lc.LLAMA_FTYPE_MOSTLY_Q4_1, 5.1, 0.4511),
    "Q4_0": Kind(lc.LLAMA_FTYPE_MOSTLY_Q4_0, 4.7, 0.4685),
    "Q3_K_L": Kind(lc.LLAMA_FTYPE_MOSTLY_Q3_K_L, 4.3, 0.5562),
    "Q3_K_M": Kind(lc.LLAMA_FTYPE_MOSTLY_Q3_K_M, 4.0, 0.6569),
    "IQ3_M": Kind(lc.LLAMA_FTYPE_MOSTLY_IQ3_M, 3.7, 0.6667),
    "IQ3_S": Kind(lc.LLAMA_FTYPE_MOSTLY_IQ3_S, 3.7, 0.7339),
    "IQ3_XS": Kind(lc.LLAMA_FTYPE_MOSTLY_IQ3_XS, 3.5, 0.9314, True),
    "IQ3_XXS": Kind(lc.LLAMA_FTYPE_MOSTLY_IQ3_XXS, 3.3, 1.2268, True),
    "Q3_K_S": Kind(lc.LLAMA_FTYPE_MOSTLY_Q3_K_S, 3.6, 1.6321),
    "IQ2_M": Kind(lc.LLAMA_FTYPE_MOSTLY_IQ2_M, 2.9, 2.3692, True),
    "Q2_K_S": Kind(lc.LLAMA_FTYPE_MOSTLY_Q2_K_S, 3.0, 3.0921, True),
    "IQ2_S": Kind(lc.LLAMA_FTYPE_MOSTLY_IQ2_S, 2.7, 3.4191, True),
    "Q2_K": Kind(lc.LLAMA_FTYPE_MOSTLY_Q2_K, 3.2, 3.5199),
    "IQ2_XS": Kind(lc.LLAMA_FTYPE_MOSTLY_IQ2_XS, 2.6, 4.5298, True),
    "IQ2_XXS": Kind(lc.LLAMA_FTYPE_MOSTLY_IQ2_XXS, 2.4, 7.8601, True),
    "IQ1_M": Kind(lc.LLAMA_FTYPE_MOSTLY_IQ1_M, 2.1, 19.2621, True),
    "IQ1_S": Kind(lc.LLAMA_FTYPE_MOSTLY_IQ1_S, 2.0, 54.4630, True),
}  # fmt: skip
"""Types by llama.cpp's name, the best first; F32, F16 and BF16 are the converter's. Left out: those for models trained
in them (ternary, MXFP4, NVFP4)."""
_WITHOUT_IMATRIX = frozenset({"F32", "F16", "BF16", "Q8_0"})
_FALLBACK_BITS, _BLOCK = 8.5, 256
_WIDER = re.compile(r"embed|lm_head")
_PROGRESS = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")
Imatrix = Mapping[str, npt.NDArray[np.float32]]
"""GGUF tensor name → mean square of each of its inputs."""


def kind_of(name: str) -> Kind:
    """The type of this name, in any case.

    Raises:
        ExportError: there is none; the message lists them all.
    """
    found = KINDS.get(name.upper())
    if found is None:
        raise ExportError(f"there is no quantization type {name!r}; known are {', '.join(KINDS)}")
    return found


def require(name: str, *, imatrix: bool) -> None:
    """Raise ExportError when there is no such type, or it needs an importance matrix, or has no use for one."""
    if kind_of(name).needs_imatrix and not imatrix:
        raise ExportError(f"{name} needs an importance matrix: give --imatrix, or take a larger type")
    if name.upper() in _WITHOUT_IMATRIX and imatrix:
        raise ExportError(
            f"an importance matrix changes nothing in {name}: leave --imatrix out, or take a smaller type"
        )


def quantized_bytes(name: str, weights: Iterable[Stored]) -> int:
    """What a checkpoint's weights take in a file of this type, at most.

    Rows that are no multiple of a K type's block fall back to larger types, Q8_0 at most; embeddings and output layer
    are kept in such ones anyway, and vectors in float32.
    """
    bits = kind_of(name).bits
    wider = max(bits, _FALLBACK_BITS)

    def of(weight: Stored) -> float:
        if len(weight.shape) == 1:
            return 32
        return wider if weight.shape[-1] % _BLOCK or _WIDER.search(weight.name) else bits

    return math.ceil(sum(weight.n_numbers * of(weight) / 8 for weight in weights))


def quantize(
    source: Path, out: Path, name: str, progress: Callable[[int, int], None], imatrix: Imatrix | None = None,
    n_threads: int | None = None,
) -> None:  # fmt: skip
    """Write a GGUF in another type. Tensors whose rows do not fit a K type's blocks fall back to a larger one.

    Args:
        source: an F32, F16 or BF16 GGUF.
        out: the file, written as it grows: give a path beside the last one.
        name: the type.
        progress: told (tensors done, of how many).
        imatrix: importance matrix; some types need one.
        n_threads: None: all cores.

    Raises:
        ExportError: unknown type, an importance matrix is needed, or llama.cpp failed, with its reason.
    """
    require(name, imatrix=imatrix is not None)
    kind = kind_of(name)
    params = lc.llama_model_quantize_default_params()
    params.ftype, params.nthread = kind.ftype, n_threads or processors.usable()
    held = _as_c(imatrix) if imatrix is not None else None
    if held is not None:
        params.imatrix = ctypes.cast(held[0], ctypes.POINTER(lc.llama_model_imatrix_data))
    with _Log(progress) as log:
        failed = lc.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    if log.stopped:
        raise KeyboardInterrupt
    if failed:
        raise ExportError(f"llama.cpp cannot quantize {source.name!r} to {name} ({log.reason})")


def _as_c(imatrix: Imatrix) -> tuple[Any, list[Any]]:
    """llama.cpp's array of entries, ended by one without a name, and what must live as long as it."""
    entries = (lc.llama_model_imatrix_data * (len(imatrix) + 1))()
    alive: list[Any] = []
    for entry, (name, values) in zip(entries, imatrix.items(), strict=False):
        flat = np.ascontiguousarray(values, np.float32)
        alive += [flat, name.encode()]
        entry.name, entry.size = alive[-1], flat.size
        entry.data = flat.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return entries, alive


class _Log:
    """llama.cpp's log while it quantizes: `[ 3/ 236] blk.0…` is progress, errors are the reason; then as before."""

    def __init__(self, progress: Callable[[int, int], None]) -> None:
        self._progress, self._errors = progress, [""]
        self.stopped = False
        """Whether somebody stopped it: nothing can be raised through llama.cpp, and it goes on to its end."""
        self._mine = lc.llama_log_callback(self._told)
        self._before, self._data = lc.llama_log_callback(), ctypes.c_void_p()

    @property
    def reason(self) -> str:
        return "; ".join(e for e in self._errors[-3:] if e) or "llama.cpp gave no reason"

    def __enter__(self) -> "_Log":
        lc.llama_log_get(ctypes.byref(self._before), ctypes.byref(self._data))
        lc.llama_log_set(self._mine, ctypes.c_void_p(0))
        return self

    def __exit__(self, *_: object) -> None:
        lc.llama_log_set(self._before, self._data)

    def _told(self, level: int, text: bytes, _: Any) -> None:
        try:
            words = text.decode("utf-8", "replace").strip()
            if found := _PROGRESS.match(words):
                self._progress(int(found[1]), int(found[2]))
            elif level >= 4:
                self._errors.append(words)
        except KeyboardInterrupt:
            self.stopped = True
