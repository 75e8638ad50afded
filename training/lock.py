"""One night or training at a time, and one that is told to stop knows it."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bot import lock
from bot.errors import TrainingError


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise SystemExit, so that a night that was stopped is told from one that was killed."""

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def one_at_a_time(file: Path, what: str = "night", remedy: str = "wait for it or /train cancel") -> Iterator[None]:
    """Hold a lock. The operating system's, so it is free when its holder is gone, however it went.

    Args:
        file: the lock.
        what: it is held for, for the error.
        remedy: for the error.

    Raises:
        TrainingError: another one runs.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT)
    with os.fdopen(descriptor, "r+", encoding="utf-8") as f:
        if not lock.take(descriptor):
            raise TrainingError(f"another {what} runs (process {f.read().strip()}); {remedy}")
        f.truncate(0)
        f.write(str(os.getpid()))
        f.flush()
        yield
