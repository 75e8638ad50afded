"""bot/base.py: the base is where it should be and what it should be."""

from pathlib import Path

import pytest

from bot.base import EMBEDDED, EMBEDDED_FILE, resolve
from bot.errors import EngineError


def test_a_path_counts_from_the_root(tmp_path: Path) -> None:
    (tmp_path / "base.gguf").write_bytes(b"GGUF")
    assert resolve("base.gguf", tmp_path / "data", tmp_path) == tmp_path / "base.gguf"
    assert resolve(str(tmp_path / "base.gguf"), tmp_path / "data", Path("/")) == tmp_path / "base.gguf"


def test_a_missing_base_is_named_with_the_setting(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"\[engine\] base = 'nowhere.gguf': there is no such file"):
        resolve("nowhere.gguf", tmp_path, tmp_path)


def test_the_terms_of_the_embedded_base_are_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resolve(EMBEDDED, tmp_path, tmp_path)
    assert capsys.readouterr().err.count("Gemma Terms of Use") == 1
    resolve(EMBEDDED, tmp_path, tmp_path)
    assert capsys.readouterr().err == ""


def test_an_embedded_base_that_was_changed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "models" / EMBEDDED_FILE
    file.parent.mkdir()
    file.write_bytes(b"GGUF something else")
    with pytest.raises(EngineError, match="expected a5fd3b62230a…; delete it and start again"):
        resolve(EMBEDDED, tmp_path, tmp_path)
