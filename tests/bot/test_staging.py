"""bot/staging.py: what was made gets to its place whole; what the killed left goes, what others work in stays."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from killing import ROOT, killed_at

from bot import staging

LEAVES = """
import os, sys
from pathlib import Path
from bot import staging
out = Path(sys.argv[1])
with staging.beside(out) as made:
    made.mkdir()
    (made / "half").write_text("half")
    os.getppid()
"""
MOVES = """
import sys
from pathlib import Path
from bot import staging
out = Path(sys.argv[1])
with staging.beside(out) as made:
    made.mkdir()
    (made / "new").touch()
    staging.put(made, out)
"""
SAME_PROCESS = """
import os, sys
from pathlib import Path
from bot import staging
out = Path(sys.argv[1])
with staging.beside(out) as made:
    made.write_text(sys.argv[2])
    if sys.argv[2] == "half":
        os.execv(sys.executable, [sys.executable, "-c", sys.argv[3], str(out), "whole", ""])
    staging.put(made, out)
"""


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_made_bears_the_name_of_its_place_and_goes_there(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    with staging.beside(out) as made:
        assert made.name == out.name
        assert staging.named(made) == out
        made.write_text("whole")
        with staging.beside(made) as inner:
            assert staging.named(inner) == out
        staging.put(made, out)
    assert out.read_text() == "whole"
    assert left(tmp_path) == ["out.gguf"]


def test_what_a_killed_process_left_is_removed_by_the_next_to_the_same_place(tmp_path: Path) -> None:
    (tmp_path / ".out.mine.tmp").touch()
    for name in ("out", "out.other", "out[1]"):
        killed_at("getppid", LEAVES, tmp_path / name)
        assert len(left(tmp_path)) == 2
        with staging.beside(tmp_path / name):
            assert len(left(tmp_path)) == 2
        assert left(tmp_path) == [".out.mine.tmp"]


def test_what_another_process_and_this_one_work_in_is_not_removed(tmp_path: Path) -> None:
    waits = LEAVES.replace("os.getppid()", 'print("there", flush=True); sys.stdin.read()')
    command = [sys.executable, "-c", waits, str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "there\n"
        with staging.beside(tmp_path / "out") as first, staging.beside(tmp_path / "out") as second:
            first.write_text("first")
            staging.sweep(tmp_path, "out")
            assert first.read_text() == "first"
            assert second.parent.is_dir()
            assert len(left(tmp_path)) == 3
        other.communicate("")
    assert other.returncode == 0
    assert left(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="there exec makes another process")
def test_what_an_earlier_process_of_the_same_number_left_is_removed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SAME_PROCESS, str(tmp_path / "out"), "half", SAME_PROCESS]
    subprocess.run(command, cwd=ROOT, check=True)
    assert left(tmp_path) == ["out"]
    assert (tmp_path / "out").read_text() == "whole"


def test_what_was_removed_by_half_is_removed_and_what_is_just_being_made_is_not_harmed(tmp_path: Path) -> None:
    half = tmp_path / ".out.0123abcd.tmp"
    half.mkdir()
    (half / "out").touch()
    (tmp_path / ".out.aaaaaaaa.tmp").mkdir()  # as before its lock is there
    staging.sweep(tmp_path, "out")
    assert left(tmp_path) == []
    with staging.scratch(tmp_path, "out") as folder:
        assert folder.is_dir()


def test_the_folder_that_was_moved_aside_comes_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    killed_at("replace", MOVES, out)
    assert not out.exists()
    staging.sweep(tmp_path, "out")
    assert left(out) == ["mine"]
    assert left(tmp_path) == ["out"]


def test_the_folder_that_was_moved_aside_does_not_replace_what_is_there_since(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    killed_at("replace", MOVES, out)
    out.write_text("since")
    staging.sweep(tmp_path, "out")
    assert out.read_text() == "since"
    assert left(tmp_path) == ["out"]


def test_who_stops_it_between_the_renames_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, replace = tmp_path / "out", os.replace
    out.mkdir()
    (out / "mine").touch()

    def stopped(source: Path, target: Path) -> None:
        if source.name == "out" and target == out:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", stopped)

    def make() -> None:
        with staging.beside(out) as made:
            made.mkdir()
            staging.put(made, out)

    with pytest.raises(KeyboardInterrupt):
        make()
    assert left(out) == ["mine"]
    assert left(tmp_path) == ["out"]


def test_what_cannot_be_put_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(FileNotFoundError), staging.beside(out) as made:
        staging.put(made, out)  # nothing was made
    assert left(out) == ["mine"]
    assert left(tmp_path) == ["out"]


def test_others_are_kept_out_of_a_scratch_folder_but_not_out_of_what_goes_to_its_place(tmp_path: Path) -> None:
    with staging.scratch(tmp_path, "chats") as folder:
        assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0 or os.name == "nt"
    out = tmp_path / "out"
    with staging.beside(out) as made:
        made.mkdir()
        staging.put(made, out)
    (tmp_path / "plain").mkdir()
    assert out.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_that_may_not_be_written_gets_to_its_place(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staging.beside(out) as made:
        made.mkdir()
        (made / "copied from a medium that is read alone").touch()
        made.chmod(0o555)
        staging.put(made, out)
    assert len(left(out)) == 1
