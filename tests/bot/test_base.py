"""bot/base.py: the base is where it should be and what it should be."""

import os
from pathlib import Path

import pytest

from bot.base import EMBEDDED, EMBEDDED_FILE, digest, resolve
from bot.errors import EngineError
from bot.persona import sha256


def test_a_path_counts_from_the_root(tmp_path: Path) -> None:
    (tmp_path / "base.gguf").write_bytes(b"GGUF")
    assert resolve("base.gguf", tmp_path / "data", tmp_path) == tmp_path / "base.gguf"
    assert resolve(str(tmp_path / "base.gguf"), tmp_path / "data", Path("/")) == tmp_path / "base.gguf"


def test_a_missing_base_is_named_with_the_setting(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"\[engine\] base = 'nowhere.gguf': there is no such file"):
        resolve("nowhere.gguf", tmp_path, tmp_path)


def test_an_embedded_base_that_was_changed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "models" / EMBEDDED_FILE
    file.parent.mkdir()
    file.write_bytes(b"GGUF something else")
    with pytest.raises(EngineError, match="expected a5fd3b62230a…; delete it and start again"):
        resolve(EMBEDDED, tmp_path, tmp_path)


def test_a_hash_is_remembered_while_the_file_stays_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "base.gguf"
    file.write_bytes(b"one")
    first = digest(file)
    assert first == sha256(file)
    note = tmp_path / "base.gguf.sha256.json"
    note.write_text(note.read_text("utf-8").replace(first, "remembered"), "utf-8")
    assert digest(file) == "remembered"
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert digest(file) == sha256(file)


def test_a_broken_note_is_made_anew(tmp_path: Path) -> None:
    file = tmp_path / "base.gguf"
    file.write_bytes(b"one")
    (tmp_path / "base.gguf.sha256.json").write_text("[]", "utf-8")
    assert digest(file) == sha256(file)
