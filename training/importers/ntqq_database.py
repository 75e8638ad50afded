"""nt_msg.db → rows, read only, with people's and groups' names from the databases beside it.

A plain database is opened where it lies. One whose newest rows are still in its write-ahead log, and an encrypted
one, are copied to a temporary folder first: nothing is ever written beside the owner's file. An encrypted one is 1024
bytes of QQ's own header, then SQLCipher 4 (QQBackup/QQDecrypt, "db_file_analysis"); its copy stays encrypted.
"""

import errno
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import cast
from urllib.parse import quote

from pydantic import SecretStr

from bot import staging
from bot.errors import ImportFault
from training.importers.ntqq_rows import COLUMNS, TABLES, History, Row, Table
from training.importers.source import DAMAGED, Reading, unreadable

MAGIC, NT_MAGIC = b"SQLite format 3\0", b"QQ_NT DB"
NAMES = ("profile_info.db", "group_info.db")
"""Databases with people's and groups' names, where they lie beside."""
_HEADER_BYTES, _NT_MAGIC_AT = 1024, 32
_BUSY_S = 2.0
_SCRATCH = "twin-import"
_HMACS = ("SHA1", "SHA256", "SHA512")
_PAGES_BYTES, _ROUNDS = (4096, 1024), (4000, 256_000, 64_000)
"""SQLCipher's page size and key derivation: QQ's own, then those of versions 4 and 3."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_NOT_WRITTEN = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
_ROWIDS = range(-(1 << 63), 1 << 63)
_PRECISION = 64
"""Behind broken pages at most this part of what they held is lost, too."""
_ALONE = 256
"""Rows of a table, broken in their words alone, that are passed over one by one; each costs opening the file anew."""


def encrypted(head: bytes) -> bool:
    """Whether a file's first bytes are those of QQ's encrypted databases."""
    return head[_NT_MAGIC_AT:_HEADER_BYTES].startswith(NT_MAGIC)


class Database:
    """A database being read.

    SQLCipher refuses every page once one has failed, as long as the connection lives: behind an error a new one is
    needed. The plain driver does not mind.

    Args:
        connect: a connection to it.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._connection = self._new()
        self.Error: type[Exception] = self._connection.Error

    def _new(self) -> sqlite3.Connection:
        connection = self._connect()
        connection.text_factory = partial(str, encoding="utf-8", errors="replace")
        return connection

    def execute(self, query: str, values: tuple[int, ...] = ()) -> sqlite3.Cursor:
        """The rows of a query."""
        return self._connection.execute(query, values)

    def reopen(self) -> None:
        """Begin again behind an error."""
        self.close()
        self._connection = self._new()

    def close(self) -> None:
        """Close it."""
        self._connection.close()


class NoRoom(ImportFault):
    """The temporary folder cannot take a copy: no fault of the file, so nothing to do without."""


@contextmanager
def room(path: Path, needed_bytes: int) -> Iterator[None]:
    """Something is written to the temporary folder.

    Args:
        path: for the sake of which file.
        needed_bytes: how much there must be.

    Raises:
        NoRoom: the folder is full, or cannot be written.
    """
    try:
        yield
    except (OSError, sqlite3.Error) as e:
        if not unwritable(e):
            raise
        try:
            folder = repr(tempfile.gettempdir())
        except OSError:  # none can be written
            folder = "(there is none)"
        raise NoRoom(
            f"the temporary folder {folder} cannot take what reading {path.name!r} needs, about "
            f"{-(-needed_bytes // 1_000_000)} MB ({e}): free so much there, or name another folder in TMPDIR"
        ) from e


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for a copy, in the system's temporary one; those of killed imports are removed first.

    Raises:
        OSError: there is no temporary folder, or it is full.
    """
    with staging.scratch(Path(tempfile.gettempdir()), _SCRATCH) as folder:
        yield folder


def sweep() -> None:
    """Remove the copies of chats that killed imports left."""
    with suppress(OSError):  # there is no temporary folder
        staging.sweep(Path(tempfile.gettempdir()), _SCRATCH)


def unwritable(error: Exception) -> bool:
    """Whether an error says that a disk is full or takes no file, which reading cannot raise."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOT_WRITTEN
    return isinstance(error, OSError) and (error.errno in _FULL or "temporary" in (error.strerror or ""))


@contextmanager
def opened(path: Path, key: SecretStr | None) -> Iterator[Database]:
    """A database, read only.

    Args:
        path: of nt_msg.db or one of its neighbours.
        key: of an encrypted one.

    Raises:
        ImportFault: it cannot be read, is locked or no database, needs a key, or this is not its key.
        NoRoom: the temporary folder cannot take its copy.
    """
    try:
        with path.open("rb") as f:
            head = f.read(_HEADER_BYTES)
        with ExitStack() as stack:
            if head.startswith(MAGIC) and not encrypted(head):
                connect = _plain(path, head, stack)
            else:
                connect = _decrypted(path, head, key, stack)
            yield stack.enter_context(closing(Database(connect)))
    except OSError as e:
        raise unreadable(path, e) from e


def _plain(path: Path, head: bytes, stack: ExitStack) -> Callable[[], sqlite3.Connection]:
    options = "mode=ro"
    if head[18:20] == b"\2\2":  # a write-ahead log: SQLite would make its index beside the file
        log = path.with_name(f"{path.name}-wal")
        if log.is_file() and log.stat().st_size:
            with room(path, path.stat().st_size + log.stat().st_size):
                folder = stack.enter_context(scratch())
                for file in (path, log):
                    shutil.copyfile(file, folder / file.name)
            path = folder / path.name
        else:
            options += "&immutable=1"
    url = f"file:{quote(str(path.resolve()))}?{options}"
    return lambda: _proven(path, sqlite3.connect(url, uri=True, timeout=_BUSY_S))


def _proven(path: Path, connection: sqlite3.Connection) -> sqlite3.Connection:
    """The connection, if its tables can be listed.

    Raises:
        ImportFault: they cannot.
    """
    try:
        _listed(connection)
    except sqlite3.Error as e:
        connection.close()
        raise _fault(path, e) from e
    return connection


def _listed(connection: sqlite3.Connection) -> None:
    """List its tables, so that a database that cannot be read raises its driver's error here."""
    try:
        connection.execute("SELECT name FROM sqlite_master").fetchall()
    except connection.DatabaseError:
        # With which SQLite takes a file shorter than its header says.
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("SELECT name FROM sqlite_master").fetchall()


def _fault(path: Path, error: Exception) -> ImportFault:
    if "locked" in str(error):
        return ImportFault(
            f"{path.name!r} is locked by another program: close QQ (or what reads it), then import again"
        )
    return ImportFault(
        f"{path.name!r} cannot be read as a database ({error}): copy it again with QQ closed, together with its -wal"
    )


def _decrypted(path: Path, head: bytes, key: SecretStr | None, stack: ExitStack) -> Callable[[], sqlite3.Connection]:
    if key is None:
        raise ImportFault(
            f"{path.name!r} is encrypted: give its key in the environment as TWIN_IMPORT_KEY (16 characters from a "
            "computer, 32 from a phone), or import a decrypted copy"
        )
    try:
        from sqlcipher3 import dbapi2 as sqlcipher
    except ImportError as e:
        raise ImportFault(f"{path.name!r} is encrypted, which needs sqlcipher3: pip install 'qqtwin[ntqq]'") from e
    with room(path, path.stat().st_size):
        folder = stack.enter_context(scratch())
        copy = folder / path.name
        with path.open("rb") as whole, copy.open("wb") as inner:
            whole.seek(_HEADER_BYTES if encrypted(head) else 0)
            shutil.copyfileobj(whole, inner, 1 << 20)
    secret = key.get_secret_value().replace("'", "''")

    def connect(page_bytes: int, rounds: int, hmac: str) -> sqlite3.Connection:
        connection = sqlcipher.connect(f"file:{quote(str(copy))}?mode=ro&immutable=1", uri=True)
        try:
            for pragma in (
                "cipher_log_level=NONE", f"cipher_page_size={page_bytes}", f"key='{secret}'", f"kdf_iter={rounds}",
                f"cipher_hmac_algorithm=HMAC_{hmac}", "cipher_kdf_algorithm=PBKDF2_HMAC_SHA512",
            ):  # fmt: skip
                connection.execute(f"PRAGMA {pragma}")
            _listed(connection)
        except sqlcipher.DatabaseError:
            connection.close()
            raise
        return cast(sqlite3.Connection, connection)

    named = [h for h in _HMACS if f"HMAC_{h}".encode() in head]
    for settings in product(_PAGES_BYTES, _ROUNDS, dict.fromkeys((*named, *_HMACS))):
        with suppress(sqlcipher.DatabaseError):
            connect(*settings).close()
            return partial(connect, *settings)
    raise ImportFault(f"{path.name!r} does not open with this key: check that it is the key of this account's database")


def has_messages(path: Path) -> bool:
    """Whether a plain database has a table of messages.

    Raises:
        ImportFault: it is locked, or too damaged to tell.
    """
    with opened(path, None) as database:
        return bool(_message_tables(database))


def _message_tables(database: Database) -> list[str]:
    return [name for name in TABLES if _columns(database, name)]


def _columns(database: Database, table: str) -> list[str]:
    return [row[1] for row in database.execute(f"PRAGMA table_info({table})")]


@contextmanager
def history(path: Path, reading: Reading, beside: Path | None = None) -> Iterator[History]:
    """Everything of nt_msg.db, and of profile_info.db and group_info.db beside it.

    Args:
        path: of nt_msg.db, or of a database made of a dump of it.
        reading: kept up to date.
        beside: a file beside which the others lie; None: `path`.

    Raises:
        ImportFault: as `opened`; or it has no table of messages.
    """
    with opened(path, reading.told.key) as database:
        names = _message_tables(database)
        if not names:
            raise ImportFault(f"{path.name!r} has neither c2c_msg_table nor group_msg_table: is it nt_msg.db?")
        reading.size = sum(_count(database, name) for name in names)
        tables = (Table(name, TABLES[name], _rows(database, name, reading)) for name in names)
        found = History(tables)
        found.uins.update(_pairs(database, "nt_uid_mapping_table", "48902", "1002"))
        neighbours(beside or path, reading, found)
        yield found


def neighbours(path: Path, reading: Reading, found: History) -> None:
    """Names from the databases beside; one that does not open is told of and done without."""
    for name in NAMES:
        beside = path.with_name(name)
        if not beside.is_file():
            continue
        try:
            with opened(beside, reading.told.key) as database:
                if name == "profile_info.db":
                    found.nicks.update(_pairs(database, "profile_info_v6", "1002", "20002"))
                    found.uins.update(_pairs(database, "profile_info_v6", "1000", "1002"))
                    continue
                for table in ("group_list", "group_detail_info_ver1"):
                    found.groups.update(_pairs(database, table, "60001", "60007"))
                for nick in ("20002", "64003"):
                    found.cards.update(
                        ((group, uin), card)
                        for group, uin, card in _selected(database, "group_member3", "60001", "1002", nick)
                    )
        except NoRoom:
            raise
        except ImportFault as e:
            reading.skip(f"names: {e}", name)


def _pairs(database: Database, table: str, key: str, value: str) -> dict[str, str]:
    return {row[0]: row[1] for row in _selected(database, table, key, value)}


def _selected(database: Database, table: str, *columns: str) -> Iterator[tuple[str, ...]]:
    """Columns of a table as text, without rows that lack one; nothing where the table or a column is missing."""
    try:
        if not set(columns) <= set(_columns(database, table)):
            return
        names = ", ".join(f'"{c}"' for c in columns)
        for row in database.execute(f"SELECT {names} FROM {table}"):
            if all(row):
                yield tuple(str(value) for value in row)
    except database.Error:
        database.reopen()


def _count(database: Database, table: str) -> int:
    """Rows of a table; 0 of one too broken to count."""
    try:
        return int(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    except database.Error:
        database.reopen()
        return 0


def _rows(database: Database, table: str, reading: Reading) -> Iterator[Row]:
    """A table's rows by id, which is by time. Where pages are broken, it goes on behind them."""
    there = set(_columns(database, table))
    columns = ", ".join(f'"{c}"' if c in there else "NULL" for c in COLUMNS)
    query = f"SELECT {columns}, rowid FROM {table} WHERE rowid > ? ORDER BY rowid"
    last, gap, alone, read = _ROWIDS[0], 1, 0, False
    while last < _ROWIDS[-1]:
        why = "out of order"
        try:
            for row in database.execute(query, (last,)):
                if row[-1] <= last:  # broken pages can lead back to rows read before
                    break
                last, gap, read = row[-1], row[-1] - last if last > _ROWIDS[0] else 1, True
                reading.done += 1
                yield row
            else:
                return
        except database.Error as e:
            _begin_anew(database, table, e)
            why = str(e)
            # A cursor steps on before it gives a row, so the one before the broken one went with the error.
            if (whole := _row(database, query, table, last)) and whole[-1] > last:
                last, gap, read = whole[-1], whole[-1] - last if last > _ROWIDS[0] else 1, True
                reading.done += 1
                yield whole
                continue
        where = "at its beginning" if last == _ROWIDS[0] else f"behind row {last}"
        reading.skip(f"{DAMAGED} ({why}): copy it again with QQ closed", f"{table} {where}")
        broken = _broken_row(database, table, last) if alone < _ALONE else None
        if broken is not None:
            last, alone, read = broken, alone + 1, False
            continue
        behind = _behind(database, query, table, last, gap)
        # Where nothing was read since the break before, twice as far: it must come to an end.
        last, gap = (behind, gap) if read else (max(behind, min(last + gap, _ROWIDS[-1])), gap * 2)
        read = False


def _broken_row(database: Database, table: str, last: int) -> int | None:
    """The id of the row behind `last`, where ids can be read and only words lie on broken pages; else None."""
    try:
        ids = f"SELECT rowid FROM {table} WHERE rowid > ? ORDER BY rowid LIMIT 1"
        row = database.execute(ids, (last,)).fetchone()
        # What a broken page gives for an id may be any number, and what lies before it would be lost.
        newest = database.execute(f"SELECT max(rowid) FROM {table}").fetchone()
    except database.Error as e:
        _begin_anew(database, table, e)
        return None
    return row[0] if row is not None and last < row[0] <= (newest[0] or 0) else None


def _behind(database: Database, query: str, table: str, last: int, gap: int) -> int:
    """The id behind which rows can be read again: looked for in growing strides, then between the last two.

    Args:
        database: with broken pages.
        query: of the rows behind an id, with every column: a row whose id alone can be read is not one that can.
        table: of messages.
        last: id of the last row before these.
        gap: between it and the one before, the first stride.
    """

    def readable(at: int) -> bool:
        row = _row(database, query, table, at)
        return row is not None and (not row or row[-1] > at)

    low, high, stride = last, last, gap
    while high < _ROWIDS[-1]:
        low, high, stride = high, min(high + stride, _ROWIDS[-1]), stride * 2
        if readable(high):
            break
    # Nothing is known of how far from the beginning the first row is.
    near = 1 if last == _ROWIDS[0] else max(1, (high - last) // _PRECISION)
    while high - low > near:
        middle = (low + high) // 2
        low, high = (low, middle) if readable(middle) else (middle, high)
    return high


def _row(database: Database, query: str, table: str, last: int) -> Row | None:
    """The row behind an id, empty where there is none; None where it cannot be read."""
    try:
        return database.execute(f"{query} LIMIT 1", (last,)).fetchone() or ()
    except database.Error as e:
        _begin_anew(database, table, e)
        return None


def _begin_anew(database: Database, table: str, error: Exception) -> None:
    if "locked" in str(error):
        raise _fault(Path(table), error) from error
    database.reopen()
