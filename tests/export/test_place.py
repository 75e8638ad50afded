"""Exports get to their place whole, or not at all."""

import subprocess
import sys

import pytest
from killing import ROOT, killed_at

from bot.errors import ExportError
from export.place import remove, written

REPLACES = """
import sys
from pathlib import Path
from export.place import written
with written(Path(sys.argv[1]), 0, force=True) as beside:
    beside.mkdir()
"""
TWICE_IN_ONE = """
import os, sys
from pathlib import Path
from export.place import written
with written(Path(sys.argv[1]), 0, force=True) as beside:
    beside.write_text(sys.argv[2])
    if sys.argv[2] == "half":
        os.execv(sys.executable, [sys.executable, "-c", sys.argv[3], sys.argv[1], "whole", ""])
"""


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
    out = tmp_path / "out"
    first, second = written(out, 0, force=True), written(out, 0, force=True)
    a, b = first.__enter__(), second.__enter__()
    a.write_bytes(b"the first")
    b.write_bytes(b"half of the second")
    first.__exit__(None, None, None)
    assert out.read_bytes() == b"the first"
    b.write_bytes(b"the second")
    second.__exit__(None, None, None)
    assert out.read_bytes() == b"the second"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.skipif(sys.platform == "win32", reason="there exec makes another process")
def test_what_a_killed_export_of_the_same_process_number_left_is_removed(tmp_path):
    command = [sys.executable, "-c", TWICE_IN_ONE, str(tmp_path / "out"), "half", TWICE_IN_ONE]
    subprocess.run(command, cwd=ROOT, check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "whole"


def test_what_lay_there_is_back_after_an_export_that_was_killed_between_two_renames(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    killed_at("replace", REPLACES, out)
    assert not out.exists()
    with pytest.raises(ExportError, match="exists already and is kept"), written(out, 0, force=False):
        pass
    assert [path.name for path in out.iterdir()] == ["mine"]
    assert list(tmp_path.iterdir()) == [out]


def test_an_export_through_another_is_told_by_the_names_that_were_asked_for(tmp_path):
    out = tmp_path / "merged"
    faults = {
        rf"^'merged' needs .* MB on the way and '{tmp_path}' has": 2**60,
        rf"^'merged' cannot be written to '{tmp_path.name}' \(": 0,  # nothing is written
        rf"^'{out}' exists already and is kept": None,
    }
    for told, needed_bytes in faults.items():
        with pytest.raises(ExportError, match=told), written(out, 0, force=True) as outer:
            _through(outer, needed_bytes)
    assert list(tmp_path.iterdir()) == []


def _through(outer, needed_bytes):
    if needed_bytes is None:
        outer.touch()
    with written(outer, needed_bytes or 0, force=False):
        pass
