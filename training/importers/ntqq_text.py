"""nt_msg.db as text → the same rows: an SQL dump, and the JSON that DB Browser for SQLite exports.

A dump is played into a database in a temporary folder that takes nothing but CREATE TABLE and INSERT of the tables we
read. JSON is read object by object; what is broken is counted and the next object looked for.
"""

import base64
import binascii
import codecs
import json
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from training.importers import ntqq_database
from training.importers.ntqq_database import room, unwritable
from training.importers.ntqq_rows import COLUMNS, TABLES, History, Row, Table
from training.importers.source import Reading, unreadable
from training.importers.text import decoded, encoding_of

_WANTED = (*TABLES, "nt_uid_mapping_table")
_STATEMENT = re.compile(
    r"\s*(?:CREATE\s+TABLE(?:\s+IF\s+NOT\s+EXISTS)?|INSERT(?:\s+OR\s+\w+)?\s+INTO)\s+(?:[\"`\[']?main[\"`\]']?\.)?"
    r"[\"`\[']?(" + "|".join(_WANTED) + r")\b",
    re.IGNORECASE,
)
_HEAD = re.compile(r"\s*INSERT\b[^;']{1,4096}?\bVALUES\b", re.IGNORECASE)
_QUOTED = re.compile(r"'[^']*'")
_ALLOWED = {
    sqlite3.SQLITE_CREATE_TABLE, sqlite3.SQLITE_INSERT, sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_CREATE_INDEX,
    sqlite3.SQLITE_REINDEX,
}  # fmt: skip
_STATEMENT_CHARS = 64 << 20
_CHUNK_BYTES = 1 << 20
_LOOKED_CHARS = 256 << 20
_BLOBS = {"40800", "40900"}
_NEXT_OBJECT = re.compile(r"[\[,\n]\s*\{")
_SPACE = re.compile(r"[\s,\[]*")


def is_dump(path: Path, head: bytes) -> bool:
    """Whether a file is an SQL dump that fills a table of messages; looks into its first 256 Mi characters."""
    if not re.match(r"\s*(?:PRAGMA|BEGIN|CREATE|INSERT|--|/\*)", decoded(head), re.IGNORECASE):
        return False
    looked = 0
    try:
        for line in _lines(path):
            found = _STATEMENT.match(line)
            if found and found[1].lower() in TABLES:
                return True
            looked += len(line)
            if looked > _LOOKED_CHARS:
                return False
    except OSError as e:
        raise unreadable(path, e) from e
    return False


def is_json(head: bytes) -> bool:
    """Whether a file begins as a JSON list of rows with a message body or a time in numbered columns."""
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    return start.startswith(b"[") and (b'"40800"' in start or (b'"40050"' in start and b'"40033"' in start))


@contextmanager
def of_dump(path: Path, reading: Reading) -> Iterator[History]:
    """Everything of an SQL dump.

    Raises:
        ImportFault: the file cannot be read, or the temporary folder is too small.
    """
    with ExitStack() as stack:
        with room(path, path.stat().st_size):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="twin-import-"))
            made = Path(folder) / "nt_msg.db"
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

    An INSERT of many rows is cut behind a row into several.
    """
    held = _Held()
    try:
        for number, line in enumerate(_lines(path), 1):
            if not held.lines and not _STATEMENT.match(line):
                continue
            if not held.lines:
                began = number
            held.add(line)
            place, end = f"{path.name}:{began}", line.rstrip()[-2:]
            if held.size > _STATEMENT_CHARS:
                reading.skip("an SQL statement of more than 64 MiB", place)
                held = _Held()
            elif end.endswith(";") and (statement := held.whole()):
                yield place, statement
                held = _Held()
            elif end == ")," and held.size >= held.cut_at and (cut := held.cut()):
                statement, head = cut
                yield place, statement
                held, began = _Held(), number + 1
                held.add(head)
        if held.lines:
            reading.skip("SQL that breaks off", f"{path.name}:{began}")
    except OSError as e:
        raise unreadable(path, e) from e


@dataclass(slots=True)
class _Held:
    """Lines of a statement that has not ended.

    Args:
        lines: of it.
        size: their characters.
        cut_at: from which size it may be cut.
    """

    lines: list[str] = field(default_factory=list)
    size: int = 0
    cut_at: int = _CHUNK_BYTES

    def add(self, line: str) -> None:
        """Hold one more."""
        self.lines.append(line)
        self.size += len(line)

    def whole(self) -> str:
        """The statement, if it ends here."""
        text = "".join(self.lines).replace("\0", "")
        return text if sqlite3.complete_statement(text) else ""

    def cut(self) -> tuple[str, str] | None:
        """The statement up to the row that ends here, and how the next one begins; None where no row ends."""
        text = "".join(self.lines).replace("\0", "").rstrip()
        self.cut_at = self.size + _CHUNK_BYTES
        head = _HEAD.match(text)
        statement = f"{text[:-1]};"
        # Within a text no statement is complete, within a row a bracket is open.
        outside = _QUOTED.sub("", text)
        if head is None or outside.count("(") != outside.count(")") or not sqlite3.complete_statement(statement):
            return None
        return statement, f"{head[0]}\n"


def _lines(path: Path) -> Iterator[str]:
    """A dump's lines: UTF-8, which SQLite writes, or what its byte order mark says."""
    with path.open("rb") as raw:
        marked = encoding_of([raw.read(4)])
        raw.seek(0)
        encoding = marked if marked.startswith("utf-16") else "utf-8-sig"
        with TextIOWrapper(raw, encoding, "replace", newline="\n") as f:
            yield from f


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
    decoder, utf8 = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")("replace")
    held, at, index = "", 0, 0
    try:
        reading.size = path.stat().st_size
        with path.open("rb") as f:
            ended = False
            while not ended:
                chunk = f.read(_CHUNK_BYTES)
                ended = not chunk
                reading.done += len(chunk)
                held, at = held[at:] + utf8.decode(chunk, final=ended), 0
                while True:
                    at = at if (space := _SPACE.match(held, at)) is None else space.end()
                    if at >= len(held) or held[at] == "]":
                        break
                    reading.place = f"{path.name} object {index + 1}"
                    try:
                        value, at = decoder.raw_decode(held, at)
                    except (ValueError, RecursionError) as e:
                        if not ended and len(held) - at < _STATEMENT_CHARS and not _surely_broken(e, held):
                            break
                        following = _NEXT_OBJECT.search(held, at + 1)
                        reading.skip("nested too deeply" if isinstance(e, RecursionError) else "not JSON")
                        at = following.end() - 1 if following else len(held)
                        index += 1
                        continue
                    index += 1
                    if isinstance(value, dict):
                        yield value
                    else:
                        reading.skip("not a row")
    except OSError as e:
        raise unreadable(path, e) from e


def _surely_broken(error: Exception, held: str) -> bool:
    """Whether more of the file would not mend it: the fault lies well before the end of what is there."""
    if isinstance(error, RecursionError):
        return True
    at = getattr(error, "pos", len(held))
    return "Unterminated string" not in str(error) and at < len(held) - 16
