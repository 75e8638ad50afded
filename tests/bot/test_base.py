"""bot/base.py: the base is where it should be and what it should be."""

import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from killing import ROOT, killed_at

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


RESOLVES = """
import sys
from pathlib import Path
from bot.base import resolve
if len(sys.argv) == 3:
    print("ready", flush=True)
    sys.stdin.readline()
print(resolve("embedded", Path(sys.argv[1]), Path(sys.argv[1])))
"""


def test_room_for_the_embedded_base_is_asked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=300 * 10**6))
    models = tmp_path / "models"
    told = rf"put into '{models}' \(300 MB are free there\): it needs 320 MB there; make room, or give \[paths\] data"
    with pytest.raises(EngineError, match=told):
        resolve(EMBEDDED, tmp_path, tmp_path)
    assert list(models.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_is_no_reason_to_reinstall(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**26, limits[1]))
    try:
        with pytest.raises(EngineError, match=r"\(File too large\): it needs 320 MB there; make room") as caught:
            resolve(EMBEDDED, tmp_path, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "reinstall" not in str(caught.value)
    assert list((tmp_path / "models").iterdir()) == []


def test_two_processes_that_assemble_the_embedded_base_at_once_both_have_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RESOLVES, str(tmp_path), "at once"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with (
        subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as first,
        subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as second,
    ):
        both = (first, second)
        for process in both:
            assert process.stdout.readline() == "ready\n"
        for process in both:
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in both:
            found, told = process.communicate()
            assert found == f"{tmp_path / 'models' / EMBEDDED_FILE}\n", told
    names = sorted(path.name for path in (tmp_path / "models").iterdir())
    assert names == [EMBEDDED_FILE, f"{EMBEDDED_FILE}.sha256.json"]


def test_half_a_base_that_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    killed_at("fsync", RESOLVES, tmp_path)
    assert len(list((tmp_path / "models").iterdir())) == 1
    resolve(EMBEDDED, tmp_path, tmp_path)
    names = sorted(path.name for path in (tmp_path / "models").iterdir())
    assert names == [EMBEDDED_FILE, f"{EMBEDDED_FILE}.sha256.json"]
