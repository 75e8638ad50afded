"""Exports get to their place whole, or not at all."""

import os
import subprocess
import sys

import pytest

from bot.errors import ExportError
from export.place import remove, written


def test_what_cannot_be_put_in_its_place_leaves_the_file_before_it(tmp_path):
    for make in (lambda p: p.write_bytes(b"mine"), lambda p: (p.mkdir(), (p / "mine").touch())):
        out = tmp_path / "out"
        make(out)
        with pytest.raises(ExportError, match="cannot be written"), written(out, 0, force=True):
            pass  # nothing is written
        assert out.exists()
        remove(out)
        assert list(tmp_path.iterdir()) == []


def test_of_two_exports_to_one_place_none_takes_the_others_half(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as killed:
        pass
    out, new = tmp_path / "out", tmp_path / f".out.{os.getppid()}.running.tmp"
    left = [tmp_path / f".out.{killed.pid}.killed.tmp", tmp_path / f"..out.1.a.tmp.{killed.pid}.killed.tmp"]
    for folder in left:
        folder.mkdir()
    new.touch()
    first, second = written(out, 0, force=True), written(out, 0, force=True)
    a, b = first.__enter__(), second.__enter__()
    a.write_bytes(b"the first")
    b.write_bytes(b"half of the second")
    first.__exit__(None, None, None)
    assert out.read_bytes() == b"the first"
    b.write_bytes(b"the second")
    second.__exit__(None, None, None)
    assert out.read_bytes() == b"the second"
    assert sorted(tmp_path.iterdir()) == sorted([new, out]), "what a killed one left is gone, another's is not"
