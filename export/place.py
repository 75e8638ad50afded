"""Where an export is written: room checked first, what lies there kept unless told otherwise; beside, then renamed."""

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psutil

from bot.errors import ExportError

_SPARE_BYTES = 64 * 2**20
"""Left free beyond what an export needs: logs and the archive are written meanwhile."""


@contextmanager
def written(out: Path, needed_bytes: int, *, force: bool) -> Iterator[Path]:
    """A path beside `out` to write a file or folder to; renamed to `out` at the end, removed on an error.

    Args:
        out: where it goes.
        needed_bytes: room it takes at its largest, what is made and removed on the way included.
        force: replace what lies at `out`.

    Raises:
        ExportError: `out` exists, there is too little room, or it cannot be written.
    """
    keep_existing(out, force=force)
    require_room(out.parent, needed_bytes, out.name)
    _sweep(out)
    # A name of its own: an export by hand may run beside a night's to the same place.
    beside = out.with_name(f".{out.name}.{os.getpid()}.{uuid4().hex[:8]}.tmp")
    try:
        yield beside
        _sync(beside)
        _swap(beside, out)
    except OSError as e:
        raise ExportError(
            f"{out.name!r} cannot be written to {out.parent.name!r} ({e.strerror}); is there room?"
        ) from e
    finally:
        remove(beside)


def _sweep(out: Path) -> None:
    """Remove what exports to this place left whose process was killed; one export may write through another."""
    for dots in (".", ".."):
        for left in out.parent.glob(f"{dots}{glob.escape(out.name)}.*.tmp"):
            pid = left.name.split(".")[-3]
            if not (pid.isdigit() and psutil.pid_exists(int(pid))):
                remove(left)


def keep_existing(out: Path, *, force: bool) -> None:
    """Raise ExportError when there is something at `out` and it is not to be replaced."""
    if out.exists() and not force:
        raise ExportError(f"{str(out)!r} exists already and is kept; --force replaces it")


def require_room(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise ExportError when a folder has less room than `what` needs; makes the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as e:
        raise ExportError(f"{what!r} cannot be written to {str(folder)!r} ({e.strerror})") from e
    if free < needed_bytes + _SPARE_BYTES:
        raise ExportError(
            f"{what!r} needs {(needed_bytes + _SPARE_BYTES) / 1e6:,.0f} MB on the way and {str(folder)!r} has "
            f"{free / 1e6:,.0f} MB free; make room, or give another place with --out"
        )


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _swap(beside: Path, out: Path) -> None:
    """Rename to `out`: a file takes the place of a file at once, of a folder when that was moved aside."""
    aside = out.with_name(f".{out.name}.old")
    remove(aside)
    if out.is_dir() or (out.exists() and beside.is_dir()):
        os.replace(out, aside)
    try:
        os.replace(beside, out)
    except OSError:
        if aside.exists():
            os.replace(aside, out)
        raise
    remove(aside)


def _sync(path: Path) -> None:
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as f:
                os.fsync(f.fileno())
