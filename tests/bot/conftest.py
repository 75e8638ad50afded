"""Tiny models with real tokenizers, built once for all tests of this folder."""

from pathlib import Path

import pytest
import tinymodel

from bot.llama import Model


@pytest.fixture(scope="session")
def tinies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tinymodel.Tiny]:
    root: Path = tmp_path_factory.mktemp("tiny")
    return {name: tinymodel.build(root / name, name) for name in ("gemma3", "qwen3")}


@pytest.fixture(scope="session")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tinymodel.Tiny]:
    """Models whose cache cannot be cut everywhere: recurrent, in part recurrent, windows shorter than a prompt."""
    root: Path = tmp_path_factory.mktemp("forgetful")
    made = {name: tinymodel.build(root / name, name) for name in ("mamba", "lfm2", "qwen35", "falcon-h1")}
    return {**made, "swa": tinymodel.build(root / "swa", "gemma3", layers=6, window=32)}


@pytest.fixture(scope="session")
def models(tinies: dict[str, tinymodel.Tiny]) -> dict[str, Model]:
    return {name: Model(tiny.gguf, 0) for name, tiny in tinies.items()}
