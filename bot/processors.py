"""How many processors this process may use: a container or a service often gets fewer than the machine has."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_ALL_UP_TO = 4
"""Threads that evaluate on every processor; beyond, half of them: most machines count two for each core."""


def usable(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Processors of the affinity mask, at most what the control groups of this process give it time on (rounded up).

    Args:
        cgroups: where control groups are mounted.
        own: names those of this process.
    """
    mask = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([mask, *(math.ceil(quota) for quota in _quotas(cgroups, own))]))


def evaluating() -> int:
    """Threads that llama.cpp gets where bot.toml sets none: more than there are processors wait for one another."""
    found = usable()
    return found if found <= _ALL_UP_TO else found // 2


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """Processors' worth of time that each group above this process may use, of both versions of control groups."""
    for line in _read(own).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        of = cgroups / "cpu" if "cpu" in controllers.split(",") else cgroups
        path = PurePosixPath(group)
        # In a container the group that is named may lie outside of what is mounted: the root is its own then.
        for folder in dict.fromkeys(of.joinpath(*p.parts[1:]) for p in (path, *path.parents, PurePosixPath("/"))):
            limit, _, period = _read(folder / "cpu.max").strip().partition(" ")
            if not limit:
                limit, period = (_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
            if limit.isdecimal() and period.isdecimal() and int(period):
                yield int(limit) / int(period)


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
