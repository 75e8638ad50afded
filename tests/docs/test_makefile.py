"""Makefile: what has to be installed first is told in one line, all of it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKE = shutil.which("make")


def tools(tmp_path: Path, *found: str) -> subprocess.CompletedProcess[str]:
    """`make tools` where nothing is on the PATH but a shell and what is named."""
    for name in ("sh", *found):
        where = shutil.which(name) or pytest.skip(f"no {name} here")
        (tmp_path / name).symlink_to(where)
    (tmp_path / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "python3").chmod(0o755)
    return subprocess.run(
        [str(MAKE), "-s", "tools"], cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.skipif(MAKE is None, reason="no make here")
def test_every_missing_tool_is_in_one_line(tmp_path: Path) -> None:
    done = tools(tmp_path)
    assert done.returncode != 0
    (line,) = done.stdout.splitlines()
    assert line.startswith("To install first: ")
    assert "(package g++; " in line
    assert "(package cmake)" in line
    assert "CPython" not in line


@pytest.mark.skipif(MAKE is None, reason="no make here")
def test_with_all_of_them_nothing_is_told(tmp_path: Path) -> None:
    done = tools(tmp_path, "c++", "cmake")
    assert (done.returncode, done.stdout) == (0, "")
