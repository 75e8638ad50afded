"""Where an export is written: room checked first, what lies there kept unless told otherwise; beside, then renamed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bot import staging
from bot.errors import ExportError


@contextmanager
def written(out: Path, needed_bytes: int, *, force: bool) -> Iterator[Path]:
    """A path beside `out` to write a file or folder to; renamed to `out` at the end, removed on an error.

    Args:
        out: where it goes; one export may write through another.
        needed_bytes: room it takes at its largest, what is made and removed on the way included.
        force: replace what lies at `out`.

    Raises:
        ExportError: `out` exists, there is too little room, or it cannot be written.
    """
    staging.sweep(out.parent, out.name)  # may put back what a killed export had moved aside
    keep_existing(out, force=force)
    require_room(out.parent, needed_bytes, out.name)
    try:
        with staging.beside(out) as beside:
            yield beside
            staging.put(beside, out)
    except OSError as e:
        folder = staging.named(out).parent.name
        raise ExportError(f"{out.name!r} cannot be written to {folder!r} ({e.strerror}); is there room?") from e


def keep_existing(out: Path, *, force: bool) -> None:
    """Raise ExportError when there is something at `out` and it is not to be replaced."""
    if out.exists() and not force:
        raise ExportError(f"{str(staging.named(out))!r} exists already and is kept; --force replaces it")


def require_room(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise ExportError when a folder has less room than `what` needs; makes the folder."""
    asked = str(staging.named(folder))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as e:
        raise ExportError(f"{what!r} cannot be written to {asked!r} ({e.strerror})") from e
    if free < needed_bytes + staging.SPARE_BYTES:
        raise ExportError(
            f"{what!r} needs {(needed_bytes + staging.SPARE_BYTES) / 1e6:,.0f} MB on the way and {asked!r} has "
            f"{free / 1e6:,.0f} MB free; make room, or give another place with --out"
        )


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
