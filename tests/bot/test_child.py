"""What a process that trains is started with."""

import os
import subprocess
import sys

import pytest

from bot import __main__, child
from bot.child import TUNABLES, environment


def test_a_training_has_its_threads_and_no_thread_caches_and_else_our_environment() -> None:
    shown = "import os; print(os.environ['GLIBC_TUNABLES'], os.environ['OMP_NUM_THREADS'], 'PATH' in os.environ)"
    ran = subprocess.run([sys.executable, "-c", shown], env=environment(3), capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["glibc.malloc.tcache_count=0", "3", "True"]
    assert environment(3)["TWIN__TRAINING__THREADS"] == "3"
    assert environment().get("OMP_NUM_THREADS") == os.environ.get("OMP_NUM_THREADS")


def test_the_users_own_tunables_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TUNABLES, "glibc.malloc.arena_max=2")
    assert environment(1)[TUNABLES] == "glibc.malloc.arena_max=2"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_training_by_hand_is_begun_anew_with_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TUNABLES, raising=False)
    line = "import os, sys; from bot import child; print('begun', flush=True); child.restart(); "
    line += "print(os.environ['GLIBC_TUNABLES'], sys.argv[1:])"
    ran = subprocess.run([sys.executable, "-c", line, "--r", "8"], capture_output=True, text=True, check=True)
    *begun, shown = ran.stdout.splitlines()
    assert begun == ["begun", "begun"]
    assert shown == "glibc.malloc.tcache_count=0 ['--r', '8']"


@pytest.mark.parametrize(("words", "times"), [("train --help", 1), ("night --help", 1), ("chat --help", 0), ("", 0)])
def test_what_trains_is_begun_anew_and_nothing_else(monkeypatch: pytest.MonkeyPatch, words: str, times: int) -> None:
    begun: list[None] = []
    monkeypatch.setattr(sys, "argv", ["twin", *words.split()])
    monkeypatch.setattr(child, "restart", lambda: begun.append(None))
    with pytest.raises(SystemExit):
        __main__.main()
    assert len(begun) == times
