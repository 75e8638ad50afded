"""What takes long to make is made beside its place and renamed; what a killed process left so is removed by the next.

Beside `out` that is a hidden folder, `.out.1a2b3c4d.tmp/`, and what is made in it bears the name of `out`: errors name
what was asked for. Whoever works in the folder holds a lock in it, so one without a holder was left. A process number
would not do: in a container the next process often bears the killed one's, and of another container nothing is known.
"""

import glob
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from bot import lock

SPARE_BYTES = 64 * 2**20
"""Left free beyond what is made: logs and the archive are written meanwhile."""
_FOLDER = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
_LOCK, _OLD = ".lock", ".old"


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A path beside `out`, of the same name, to make a file or folder at and then to `put` to its place.

    Raises:
        OSError: the folder of `out` is not there or cannot be written.
    """
    with scratch(out.parent, out.name, mode=0o777) as folder:
        yield folder / out.name


@contextmanager
def scratch(place: Path, name: str, *, mode: int = 0o700) -> Iterator[Path]:
    """A folder to work in, removed at the end; what was left of such folders is swept first.

    Args:
        place: the folder to make it in.
        name: part of its own.
        mode: its permissions; chats may lie there, so others are kept out.

    Raises:
        OSError: it cannot be made.
    """
    sweep(place, name)
    folder, held = _made(place, name, mode)
    try:
        yield folder
    finally:
        with suppress(OSError):
            _restore(folder, place / name)
        _clear(folder, held)


def put(made: Path, out: Path) -> None:
    """Rename what was made beside `out`, once it is on the disk.

    A file takes the place of a file at once, of a folder when that was moved aside.

    Raises:
        OSError: it cannot be; what lay at `out` lies there again once `beside` ends, however it does.
    """
    _sync(made)
    if made.is_dir():
        made.chmod(made.stat().st_mode | stat.S_IWUSR)  # else it cannot be moved to another folder
    if out.is_dir() or (out.exists() and made.is_dir()):
        if out.is_dir():
            out.chmod(out.stat().st_mode | stat.S_IWUSR)
        os.replace(out, made.parent / _OLD)
    os.replace(made, out)


def sweep(place: Path, name: str) -> None:
    """Remove what killed processes left that worked in `place` on `name`, and put back what one had moved aside."""
    for folder in place.glob(f".{glob.escape(name)}.{'[0-9a-f]' * 8}.tmp"):
        with suppress(OSError):  # another user's, or swept by another just now
            if not folder.is_symlink():
                _sweep(folder, place / name)


def named(path: Path) -> Path:
    """A path as it was asked for: without the folders made here."""
    return Path(*(part for part in path.parts if not _FOLDER.fullmatch(part)))


def _made(place: Path, name: str, mode: int) -> tuple[Path, BinaryIO]:
    """A folder, and its lock, held."""
    while True:
        folder = place / f".{name}.{uuid4().hex[:8]}.tmp"
        folder.mkdir(mode)
        with suppress(FileNotFoundError):  # taken for left before it was locked
            held = (folder / _LOCK).open("xb")
            lock.take(held.fileno(), wait=True)
            if (folder / _LOCK).exists():
                return folder, held
            held.close()


def _sweep(folder: Path, out: Path) -> None:
    try:
        held = (folder / _LOCK).open("r+b")
    except FileNotFoundError:
        there = {path.name for path in folder.iterdir()}
        if not there:
            folder.rmdir()  # refused if it was made just now, and is being locked
        elif _LOCK not in there:
            shutil.rmtree(folder)  # removed by half
        return
    if not lock.take(held.fileno()):
        held.close()
        return
    _restore(folder, out)
    _clear(folder, held)


def _restore(folder: Path, out: Path) -> None:
    """Put back what was moved aside, if nothing has taken its place."""
    if os.path.lexists(folder / _OLD) and not os.path.lexists(out):
        os.replace(folder / _OLD, out)


def _clear(folder: Path, held: BinaryIO) -> None:
    """Remove a folder and let its lock go; Windows removes no file that is open."""
    shutil.rmtree(folder, ignore_errors=True)
    held.close()
    with suppress(OSError):
        (folder / _LOCK).unlink(missing_ok=True)
        folder.rmdir()


def _sync(path: Path) -> None:
    mode = "r+b" if sys.platform == "win32" else "rb"  # Windows syncs only what may be written
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with suppress(PermissionError), file.open(mode) as f:
                os.fsync(f.fileno())
