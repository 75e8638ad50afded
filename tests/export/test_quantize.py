"""Every type that may be asked for, as llama.cpp writes it; what it cannot is told with its reason."""

import math
from pathlib import Path

import gguf
import numpy as np
import pytest
import tinymodel

from bot.errors import ExportError
from export.metadata import fields
from export.quantize import KINDS, Imatrix, kind_of, quantize, quantized_bytes, require
from export.tensors import checkpoint_tensors

CONVERTED = ("F32", "F16", "BF16")
"""Types the converter writes."""
SLOW = ("IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")
"""Searched on grids, which takes seconds each to prepare; one of them is written in test_merged.py."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny F16 model whose rows hold whole blocks of every type."""
    return tinymodel.build(tmp_path_factory.mktemp("tiny"), "llama", hidden=256, layers=1, vocabulary=300).gguf


def imatrix_of(whole: Path) -> Imatrix:
    """As if every input mattered alike."""
    matrices = [t for t in gguf.GGUFReader(whole).tensors if len(t.shape) == 2]
    return {t.name: np.ones(int(t.shape[0]), np.float32) for t in matrices}


def test_every_type_has_llama_cpps_own_number() -> None:
    numbers = {kind.name.removeprefix("MOSTLY_").removeprefix("ALL_"): int(kind) for kind in gguf.LlamaFileType}
    assert {name: numbers[name] for name in KINDS} == {name: kind.ftype for name, kind in KINDS.items()}
    assert len(KINDS) == 30


def test_llama_cpp_writes_the_types_that_are_offered(whole: Path, tmp_path: Path) -> None:
    imatrix, sizes = imatrix_of(whole), {}
    for name, kind in KINDS.items():
        if name in (*CONVERTED, *SLOW):
            continue
        seen: list[tuple[int, int]] = []
        out = tmp_path / f"{name}.gguf"
        needed = None if name == "Q8_0" else imatrix
        quantize(whole, out, name.lower(), lambda *done, seen=seen: seen.append(done), needed, 1)
        assert fields(out, "general.file_type")["general.file_type"].value == kind.ftype, name
        assert seen[-1][0] == seen[-1][1] > 0, name
        sizes[name] = out.stat().st_size
    assert len(sizes) == 21
    assert sizes["Q8_0"] == max(sizes.values()) < whole.stat().st_size


@pytest.mark.parametrize("hidden", [64, 256])
def test_a_file_takes_no_more_than_room_is_asked_for(tmp_path: Path, hidden: int) -> None:
    tiny = tinymodel.build(tmp_path, "llama", hidden=hidden, layers=2)
    imatrix, weights = imatrix_of(tiny.gguf), checkpoint_tensors(tiny.hf).values()
    for name in ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K", "IQ4_XS", "IQ3_M"):
        needed = None if name == "Q8_0" else imatrix
        quantize(tiny.gguf, out := tmp_path / "out.gguf", name, lambda *_: None, needed, 1)
        taken = sum(int(t.n_bytes) for t in gguf.GGUFReader(out).tensors)
        assert taken <= quantized_bytes(name, weights) < 2.2 * taken, name
        out.unlink()


def test_the_best_types_stand_first_and_none_is_free(whole: Path) -> None:
    costs = [kind.published_nats for kind in KINDS.values()]
    assert costs == sorted(costs)
    assert all(cost > 0 for name, cost in zip(KINDS, costs, strict=True) if name not in CONVERTED)
    # The table's own figure for Q4_K_M: 6.4070 less 6.2316.
    assert kind_of("q4_k_m").published_nats == pytest.approx(math.log(6.4070 / 6.2316))


def test_types_that_need_an_importance_matrix_are_refused_without(whole: Path, tmp_path: Path) -> None:
    needing = [name for name, kind in KINDS.items() if kind.needs_imatrix]
    assert len(needing) == 9
    for name in needing:
        with pytest.raises(ExportError, match=f"{name} needs an importance matrix: give --imatrix"):
            require(name, imatrix=False)
        with pytest.raises(ExportError, match="needs an importance matrix"):
            quantize(whole, tmp_path / "out.gguf", name, lambda *_: None)
        require(name, imatrix=True)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("name", ["F32", "bf16", "F16", "Q8_0"])
def test_an_importance_matrix_that_changes_nothing_is_refused(whole: Path, name: str) -> None:
    with pytest.raises(ExportError, match=f"changes nothing in {name}"):
        require(name, imatrix=True)
    require(name, imatrix=False)


def test_what_llama_cpp_refuses_is_told_with_its_reason(whole: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole.read_bytes()[:-5000])
    with pytest.raises(ExportError, match=r"cannot quantize 'cut\.gguf' to Q8_0 \(.*not within (the )?file bounds"):
        quantize(cut, tmp_path / "out.gguf", "Q8_0", lambda *_: None)
    with pytest.raises(ExportError, match="no quantization type 'Q9'; known are F32, F16, BF16, Q8_0"):
        quantize(whole, tmp_path / "out.gguf", "Q9", lambda *_: None)


def test_who_stops_it_is_obeyed(whole: Path, tmp_path: Path) -> None:
    def stop(*_: int) -> None:
        raise KeyboardInterrupt  # as Ctrl-C does wherever Python runs at that moment

    with pytest.raises(KeyboardInterrupt):
        quantize(whole, tmp_path / "out.gguf", "Q8_0", stop)
