"""bot/checksum.py: a hash is read once, and again when the file changed."""

import os
from pathlib import Path

from bot.checksum import digest, sha256


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
