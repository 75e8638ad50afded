"""A folder of histories → what of it is read, each as if it were named, and what is left out, by reason.

One history as a whole are a chunked export of QQChatExporter with its manifest, nt_msg.db with the databases of names
beside it, and all of a folder's CSVs of WeChat.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bot.errors import ImportFault
from training import history
from training.importers import ntqq, ntqq_database, qce, sets, wechat
from training.importers.source import Reading, Source, head

_BINARY_BYTES = 4096
_WIDE = (b"\xff\xfe", b"\xfe\xff")
_NAMES = {"profile_info.db", "group_info.db"}
_BESIDE = ("-wal", "-shm", "-journal")
_UNKNOWN = "of no format known here"
_NO_TABLES = "a database without QQ's tables of messages, or one too damaged to tell"


@dataclass(frozen=True, slots=True)
class Part:
    """A history to read.

    Args:
        path: the file, or a folder that is one history.
        name: what to call it.
        source: its format; None where that is found out when it is read.
    """

    path: Path
    name: str
    source: Source | None = None


def found(folder: Path, wanted: str = "auto", *, with_sets: bool = False) -> tuple[list[Part], Reading]:
    """What of a folder is read, and every other file of it, counted by reason with its first places.

    Args:
        folder: the folder; with those in it.
        wanted: the only format to read; `auto`: all.
        with_sets: training sets are wanted, too.

    Raises:
        ImportFault: there is nothing to read.
    """
    left, parts = Reading(), list[Part]()
    root = Path(os.path.abspath(folder))  # `.` has no name
    for part in _Walk(root, left, with_sets=with_sets).parts():
        if wanted in ("auto", part.source and part.source.name):
            parts.append(part)
        else:
            left.skip(f"not of --format {wanted}", part.name)
    if parts:
        return parts, left
    if wanted != "auto":
        return [Part(root, root.name, history.recognised(root, wanted))], Reading()
    if not left.skipped:
        raise ImportFault(f"{str(folder)!r} is an empty folder: name the one the history was exported to")
    raise ImportFault(f"{str(folder)!r} holds no history of a format known here{history.reasons(left)}")


class _Walk:
    """A folder looked through."""

    def __init__(self, folder: Path, left: Reading, *, with_sets: bool) -> None:
        self._folder, self._left, self._with_sets = folder, left, with_sets
        self._claimed: set[Path] = set()
        self._has_tables = False

    def parts(self) -> Iterator[Part]:
        """Its histories, in the order of their names."""
        for directory, folders, files in os.walk(self._folder, onerror=self._closed):
            here = Path(directory)
            closed = {name: self._closed_folder(here / name) for name in sorted(folders)}
            for name, why in closed.items():
                if why:
                    self._left.skip(why, self._place(here / name))
            folders[:] = [name for name, why in closed.items() if not why]
            if self._is_chunked(here):
                try:
                    self._claimed.update((here / qce.MANIFEST, *qce.chunk_files(here)))
                except ImportFault:  # reading it says what is wrong
                    for name in sorted((*folders, *files)):
                        if name != qce.MANIFEST:
                            self._left.skip("beside a broken manifest", self._place(here / name))
                    folders.clear()
                    files = []
                yield Part(here, self._name(here), qce.SOURCE)
            for name in sorted(files):
                yield from self._file(here / name, set(files))

    @staticmethod
    def _closed_folder(folder: Path) -> str:
        """Why a folder is not looked through; empty where it is."""
        if folder.name.startswith("."):
            return "a hidden folder"
        return "a link to a folder" if folder.is_symlink() else ""

    @staticmethod
    def _is_chunked(folder: Path) -> bool:
        try:
            return qce.sniff(folder, b"")
        except ImportFault:  # of its manifest, which is told as every file's
            return False

    def _file(self, path: Path, beside: set[str]) -> Iterator[Part]:
        """The part that a file is, or none: it belongs to another, or is left out."""
        database = next((path.name.removesuffix(end) for end in _BESIDE if path.name.endswith(end)), None)
        if path in self._claimed or database in beside or (ntqq.DATABASE in beside and path.name in _NAMES):
            return
        why = self._hindrance(path, beside)
        if why is not None:
            self._left.skip(why, self._place(path))
            return
        beginning = b""
        try:
            beginning = head(path)
            source = next((s for s in history.SOURCES if s.sniff(path, beginning)), None)
            title = sets.recognised(path) if source is None else None
        except ImportFault:  # reading it says what is wrong
            source, title = None, ""
        if path.name == ntqq.DATABASE:
            source = ntqq.SOURCE
        if source is wechat.SOURCE:
            if not self._has_tables:
                self._has_tables = True
                yield Part(self._folder, self._name(self._folder), source)
        elif source is not None or title == "" or (title and self._with_sets):
            yield Part(path, self._name(path), source)
        elif title:
            self._left.skip(f"a training set ({title}): say who learns from it with --persona NAME", self._place(path))
        else:
            self._left.skip(_NO_TABLES if beginning.startswith(ntqq.DATABASE_MAGIC) else _UNKNOWN, self._place(path))

    def _hindrance(self, path: Path, beside: set[str]) -> str | None:
        """Why a file is left out, by its name and its beginning; None where it may be a history."""
        if path.name.startswith("."):
            return "a hidden file"
        if not path.is_file():
            return "no file, or a link to none"
        try:
            beginning = head(path)
        except ImportFault:
            return None
        if not beginning:
            return "an empty file"
        if beginning.startswith(ntqq.DATABASE_MAGIC) or ntqq_database.encrypted(beginning):
            return "another of QQ's databases" if ntqq.DATABASE in beside - {path.name} else None
        return _UNKNOWN if b"\0" in beginning[:_BINARY_BYTES] and not beginning.startswith(_WIDE) else None

    def _closed(self, error: OSError) -> None:
        self._left.skip(f"a folder that cannot be read ({error.strerror})", self._place(Path(error.filename)))

    def _place(self, path: Path) -> str:
        return str(path.relative_to(self._folder))

    def _name(self, path: Path) -> str:
        return str(Path(self._folder.name) / path.relative_to(self._folder))
