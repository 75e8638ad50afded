"""nt_msg.db as text → the same rows: an SQL dump, and the JSON that DB Browser for SQLite exports.

A dump is played into a database in a temporary folder that takes nothing but CREATE TABLE and INSERT of the tables we
read. JSON is read object by object.
"""

import base64
import binascii
import re
import sqlite3
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from training.importers import ntqq_database
from training.importers.jsonscan import members
from training.importers.ntqq_database import room, scratch, unwritable
from training.importers.ntqq_rows import COLUMNS, TABLES, History, Row, Table
from training.importers.source import Reading, unreadable
from training.importers.text import chunks, decoded, encoding_of

_WANTED = (*TABLES, "nt_uid_mapping_table")
_STATEMENT = re.compile(
    r"\s*(?:CREATE\s+TABLE(?:\s+IF\s+NOT\s+EXISTS)?|INSERT(?:\s+OR\s+\w+)?\s+INTO)\s+(?:[\"`\[']?main[\"`\]']?\.)?"
    r"[\"`\[']?(" + "|".join(_WANTED) + r")\b",
    re.IGNORECASE,
)
_HEAD = re.compile(r"\s*INSERT\b[^;']{1,4096}?\bVALUES\b", re.IGNORECASE)
_QUOTED, _BETWEEN_ROWS, _TRIED = re.compile(r"'[^']*'"), re.compile(r"\)\s*,\s*(?=\(|\Z)"), 8
_ALLOWED = {
    sqlite3.SQLITE_CREATE_TABLE, sqlite3.SQLITE_INSERT, sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_CREATE_INDEX,
    sqlite3.SQLITE_REINDEX,
}  # fmt: skip
_STATEMENT_CHARS = 64 << 20
_CHUNK_CHARS = 1 << 20
_LOOKED_CHARS = 256 << 20
_BLOBS = {"40800", "40900"}


def is_dump(path: Path, head: bytes) -> bool:
    """Whether a file is an SQL dump that fills a table of messages; looks into its first 256 Mi characters."""
    if not re.match(r"\s*(?:PRAGMA|BEGIN|CREATE|INSERT|--|/\*)", decoded(head), re.IGNORECASE):
        return False
    looked = 0
    try:
        for piece, begins in _pieces(path):
            found = _STATEMENT.match(piece) if begins else None
            if found and found[1].lower() in TABLES:
                return True
            looked += len(piece)
            if looked > _LOOKED_CHARS:
                return False
    except OSError as e:
        raise unreadable(path, e) from e
    return False


def is_json(head: bytes) -> bool:
    """Whether a file begins as a JSON list of rows with a message body or a time in numbered columns."""
    start = decoded(head).lstrip()
    return start.startswith("[") and ('"40800"' in start or ('"40050"' in start and '"40033"' in start))


@contextmanager
def of_dump(path: Path, reading: Reading) -> Iterator[History]:
    """Everything of an SQL dump.

    Raises:
        ImportFault: the file cannot be read, or the temporary folder is too small.
    """
    with ExitStack() as stack:
        with room(path, path.stat().st_size):
            made = stack.enter_context(scratch()) / "nt_msg.db"
            _played(path, made, reading)
        reading.done = 0
        yield stack.enter_context(ntqq_database.history(made, reading, beside=path))


def _played(path: Path, made: Path, reading: Reading) -> None:
    """Play a dump into a new database.

    Raises:
        ImportFault: the file cannot be read.
        sqlite3.Error: the database cannot be written.
    """
    with closing(sqlite3.connect(made, isolation_level=None)) as database:
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE"):
            database.execute(f"PRAGMA {pragma}")
        database.execute("BEGIN")
        database.set_authorizer(lambda act, *_: sqlite3.SQLITE_OK if act in _ALLOWED else sqlite3.SQLITE_DENY)
        for place, statement in _statements(path, reading):
            try:
                database.execute(statement)
            except sqlite3.Error as e:
                if unwritable(e):
                    raise
                reading.skip(f"SQL that cannot be run ({type(e).__name__})", place)
        database.set_authorizer(None)
        database.execute("COMMIT")


def _statements(path: Path, reading: Reading) -> Iterator[tuple[str, str]]:
    """(place, statement) of the tables we read; one begins where a line does and ends with `;` where one does.

    An INSERT of many rows is cut between two of them into several.
    """
    held, number = _Held(), 0
    try:
        for piece, begins in _pieces(path):
            number += begins
            if not held.pieces and not (begins and _STATEMENT.match(piece)):
                continue
            if not held.pieces:
                began = number
            held.add(piece)
            place = f"{path.name}:{began}"
            if held.size > _STATEMENT_CHARS:
                reading.skip("an SQL statement of more than 64 MiB", place)
                held = _Held()
            elif piece.rstrip().endswith(";") and (statement := held.whole()):
                yield place, statement
                held = _Held()
            elif held.size >= held.cut_at and (cut := held.cut()):
                statement, rest = cut
                yield place, statement
                held, began = _Held(), number
                held.add(rest)
        if held.pieces:
            reading.skip("SQL that breaks off", f"{path.name}:{began}")
    except OSError as e:
        raise unreadable(path, e) from e


@dataclass(slots=True)
class _Held:
    """Pieces of a statement that has not ended.

    Args:
        pieces: of it.
        size: their characters.
        cut_at: from which size it may be cut.
    """

    pieces: list[str] = field(default_factory=list)
    size: int = 0
    cut_at: int = _CHUNK_CHARS

    def add(self, piece: str) -> None:
        """Hold one more."""
        self.pieces.append(piece)
        self.size += len(piece)

    def whole(self) -> str:
        """The statement, if it ends here."""
        text = "".join(self.pieces).replace("\0", "")
        return text if sqlite3.complete_statement(text) else ""

    def cut(self) -> tuple[str, str] | None:
        """The statement up to its last whole row, and what follows as a statement of its own; None where none is."""
        text = "".join(self.pieces).replace("\0", "")
        self.cut_at = 2 * self.size
        if (head := _HEAD.match(text)) is None:
            return None
        for between in reversed(deque(_BETWEEN_ROWS.finditer(text), _TRIED)):
            statement = f"{text[: between.start() + 1]};"
            # Within a text no statement is complete, within a row a bracket is open.
            outside = _QUOTED.sub("", statement)
            if outside.count("(") == outside.count(")") and sqlite3.complete_statement(statement):
                return statement, f"{head[0]}\n{text[between.end() :]}"
        return None


def _pieces(path: Path) -> Iterator[tuple[str, bool]]:
    """A dump's lines, long ones in pieces, and whether a line begins with it: UTF-8, or what its mark says."""
    with path.open("rb") as raw:
        marked = encoding_of([raw.read(4)])
        raw.seek(0)
        encoding = marked if marked.startswith("utf-16") else "utf-8-sig"
        with TextIOWrapper(raw, encoding, "replace", newline="\n") as f:
            begins = True
            while piece := f.readline(_CHUNK_CHARS):
                yield piece, begins
                begins = piece.endswith("\n")


@contextmanager
def of_json(path: Path, reading: Reading) -> Iterator[History]:
    """Everything of a JSON export of one table; its rows tell whether it is of groups.

    Raises:
        ImportFault: the file cannot be read.
    """
    kind = next((k for name, k in TABLES.items() if name in path.name), None)
    found = History(iter([Table(path.name, kind, _json_rows(path, reading))]))
    ntqq_database.neighbours(path, reading, found)
    yield found


def _json_rows(path: Path, reading: Reading) -> Iterator[Row]:
    for value in _objects(path, reading):
        for column in _BLOBS:
            blob = value.get(column)
            if isinstance(blob, str):
                try:
                    value[column] = base64.b64decode(blob, validate=False)
                except (binascii.Error, ValueError):
                    value[column] = None
                    reading.skip("a message body that is not base64", reading.place)
        yield tuple(map(value.get, COLUMNS))


def _objects(path: Path, reading: Reading) -> Iterator[dict[str, Any]]:
    """The objects of a JSON list, one after another, in memory one at a time."""
    number = 0

    def counted() -> None:
        nonlocal number
        number += 1
        reading.place = f"{path.name} object {number}"

    def broken(why: str) -> None:
        counted()
        reading.skip(why)

    for route, value in members(chunks(path, reading), ("",), broken):
        if route != "*":
            continue
        counted()
        if isinstance(value, dict):
            yield value
        else:
            reading.skip("not a row")
