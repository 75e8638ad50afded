"""What a process that trains is started with."""

import contextlib
import os
import sys

_BEGUN = "TWIN_BEGUN_ANEW"
TUNABLES = "GLIBC_TUNABLES"
"""How glibc's malloc is set; other systems pass it over."""
_NO_THREAD_CACHE = "glibc.malloc.tcache_count=0"
"""A pass frees what it kept in another order than it took it, and each thread's cache holds on to pieces of all of it:
2.28 GB of peak memory with the cache, 1.83 GB without, at the same speed (embedded base, batch 4 × 512)."""


def environment(threads: int | None = None) -> dict[str, str]:
    """Our own environment with that of a training; a `GLIBC_TUNABLES` of the user's stays as it is.

    Args:
        threads: of the training at most; None: as it chooses.
    """
    found = {TUNABLES: _NO_THREAD_CACHE} | os.environ
    if threads is not None:
        found |= {"OMP_NUM_THREADS": str(threads), "TWIN__TRAINING__THREADS": str(threads)}
    return found


def restart() -> None:
    """Begin this process anew with the environment of a training, unless it has it: glibc reads it at its start."""
    if sys.platform == "linux" and sys.executable and not {TUNABLES, _BEGUN} & {*os.environ}:
        with contextlib.suppress(OSError):  # it costs memory, no more
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment() | {_BEGUN: "1"})
