"""What a process that trains is started with."""

import os
import subprocess
import sys

import pytest

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
