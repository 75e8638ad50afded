"""Processors this process may use: its affinity mask, and the quotas of its control groups."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bot.processors import usable


def groups(tmp_path: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    (tmp_path / "own").write_text(own, "utf-8")
    for name, text in files.items():
        file = tmp_path / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    return tmp_path / "cgroup", tmp_path / "own"


@pytest.mark.parametrize(("own", "files", "expected"), [
    ("0::/system.slice/qqtwin.service\n", {}, 64),
    ("0::/system.slice/qqtwin.service\n", {"system.slice/qqtwin.service/cpu.max": "200000 100000\n"}, 2),
    ("0::/system.slice/qqtwin.service\n", {"system.slice/qqtwin.service/cpu.max": "max 100000\n"}, 64),
    ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "150000 100000\n"}, 2),
    ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
    ("0::/../../kubepods/pod1\n", {"cpu.max": "300000 100000\n"}, 3),
    ("5:cpu,cpuacct:/docker/1\n", {"cpu/docker/1/cpu.cfs_quota_us": "400000\n",
                                   "cpu/docker/1/cpu.cfs_period_us": "100000\n"}, 4),
    ("5:cpu,cpuacct:/docker/1\n", {"cpu/docker/1/cpu.cfs_quota_us": "-1\n",
                                   "cpu/docker/1/cpu.cfs_period_us": "100000\n"}, 64),
    ("0::/a\n", {"a/cpu.max": "nonsense"}, 64),
    ("", {}, 64),
])  # fmt: skip
def test_quotas_of_every_group_above_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert usable(*groups(tmp_path, own, files)) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_a_context_has_no_more_threads_than_the_mask_has_processors() -> None:
    line = "import os; os.sched_setaffinity(0, {0}); from bot.processors import evaluating; print(evaluating())"
    made = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    assert made.stdout == "1\n"
