"""bot/doctor.py: what llama.cpp was built with, and what it would take to get more."""

from pathlib import Path

import pytest
import tinymodel

from bot.config import Engine, Paths, Settings
from bot.doctor import Check, built, examine
from bot.llama import Build, build

XEON = "flags\t\t: fpu fma f16c avx2 avx512f avx512_vnni amx_int8"
CPU = Build(("cpu",), ("AVX2", "FMA", "F16C", "AVX512", "AVX512_VNNI", "OPENMP"), False)
REBUILD = "-m pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python==0.3.36"


def of_base(base: Path, data: Path) -> Check:
    settings = Settings(paths=Paths(data=data), engine=Engine(base=str(base)))
    return next(c for c in examine(settings, data) if c.name == "base")


def test_a_base_is_opened_and_told(tinies: dict[str, tinymodel.Tiny], tmp_path: Path) -> None:
    whole = of_base(tinies["qwen3"].gguf, tmp_path)
    assert (whole.ok, whole.text) == (True, f"{tinies['qwen3'].gguf} (qwen3, rendered as qwen3)")
    half = tmp_path / "half.gguf"
    half.write_bytes(tinies["gemma3"].gguf.read_bytes()[:100_000])
    found = of_base(half, tmp_path)
    assert not found.ok
    assert found.text.startswith("model 'half.gguf' cannot be loaded")


def test_a_base_that_no_chat_format_renders_is_no_base(tinies: dict[str, tinymodel.Tiny], tmp_path: Path) -> None:
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(tinies["qwen3"].gguf.read_bytes().replace(b"<|im_end|>", b"<|im_odd|>"))
    found = of_base(odd, tmp_path)
    assert not found.ok
    assert found.text == (
        "model 'odd.gguf' (qwen3) has the markers of no known chat format; take a base that speaks ChatML, "
        "Gemma's or Llama 3's, such as Qwen 3, Gemma 3 and Llama 3"
    )


def test_this_build_tells_its_parts() -> None:
    found = build()
    assert "cpu" in found.backends
    assert "base" not in found.backends
    assert len(found.features) > 3
    assert not [word for word in found.features if not word.replace("_", "").replace("=", "").isalnum()]


@pytest.mark.parametrize(
    ("found", "processor", "nvidia", "told", "untold"),
    [
        (CPU, XEON, False, ["it uses no GPU", "-DGGML_CUDA=on", "-DGGML_VULKAN=on", REBUILD], ["other processors"]),
        (CPU, XEON, True, ["an NVIDIA GPU, which it cannot use", "-DGGML_CUDA=on", REBUILD], ["it uses no GPU"]),
        (
            Build(("cpu",), ("AVX2", "FMA", "F16C"), False), XEON, False,
            ["this one has AVX512 AVX512_VNNI as well: ", REBUILD], ["AMX"],
        ),
        (Build(("cpu", "cuda"), ("AVX2",), True), "", True, ["built for cpu, cuda", "GPU takes layers"], [REBUILD]),
        (Build(("cpu", "vulkan"), ("AVX2",), False), "", False, ["finds no GPU: are driver"], [REBUILD]),
        (Build(("cpu",), ("NEON", "DOTPROD"), False), "Features\t: fp asimddp i8mm", False, ["has MATMUL_INT8"], []),
    ],
)  # fmt: skip
def test_what_it_would_take_is_told(
    found: Build, processor: str, nvidia: bool, told: list[str], untold: list[str]
) -> None:
    text = built(found, processor, nvidia, "0.3.36")
    assert [words for words in told if words not in text] == []
    assert [words for words in untold if words in text] == []
