"""nt_msg.db → rows, read only, with people's and groups' names from the databases beside it.

A plain database is opened where it lies. One whose newest rows are still in its write-ahead log, and an encrypted
one, are copied to a temporary folder first: nothing is ever written beside the owner's file. An encrypted one is 1024
bytes of QQ's own header, then SQLCipher 4 (QQBackup/QQDecrypt, "db_file_analysis"); its copy stays encrypted.
"""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import cast
from urllib.parse import quote

from pydantic import SecretStr

from bot.errors import ImportFault
from training.importers.ntqq_rows import COLUMNS, TABLES, History, Row, Table
from training.importers.source import Reading, unreadable

MAGIC, NT_MAGIC = b"SQLite format 3\0", b"QQ_NT DB"
_HEADER_BYTES, _NT_MAGIC_AT = 1024, 32
_BUSY_S = 2.0
_HMACS = ("SHA1", "SHA256", "SHA512")
_PAGES_BYTES, _ROUNDS = (4096, 1024), (4000, 256_000, 64_000)
"""SQLCipher's page size and key derivation: QQ's own, then those of versions 4 and 3."""
_ROWIDS = range(-(1 << 63), 1 << 63)


def encrypted(head: bytes) -> bool:
    """Whether a file's first bytes are those of QQ's encrypted databases."""
    return head[_NT_MAGIC_AT:_HEADER_BYTES].startswith(NT_MAGIC)


@contextmanager
def opened(path: Path, key: SecretStr | None) -> Iterator[sqlite3.Connection]:
    """A database, read only.

    Args:
        path: of nt_msg.db or one of its neighbours.
        key: of an encrypted one.

    Raises:
        ImportFault: it cannot be read, is locked or no database, needs a key, or this is not its key.
    """
    try:
        with path.open("rb") as f:
            head = f.read(_HEADER_BYTES)
        with ExitStack() as stack:
            if head.startswith(MAGIC) and not encrypted(head):
                yield stack.enter_context(closing(_plain(path, head, stack)))
            else:
                yield stack.enter_context(closing(_decrypted(path, head, key, stack)))
    except OSError as e:
        raise unreadable(path, e) from e


def _plain(path: Path, head: bytes, stack: ExitStack) -> sqlite3.Connection:
    options = "mode=ro"
    if head[18:20] == b"\2\2":  # a write-ahead log: SQLite would make its index beside the file
        log = path.with_name(f"{path.name}-wal")
        if log.is_file() and log.stat().st_size:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="twin-import-")))
            for file in (path, log):
                shutil.copyfile(file, folder / file.name)
            path = folder / path.name
        else:
            options += "&immutable=1"
    connection = sqlite3.connect(f"file:{quote(str(path.resolve()))}?{options}", uri=True, timeout=_BUSY_S)
    return _proven(path, connection)


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


def _decrypted(path: Path, head: bytes, key: SecretStr | None, stack: ExitStack) -> sqlite3.Connection:
    if key is None:
        raise ImportFault(
            f"{path.name!r} is encrypted: give its key in the environment as TWIN_IMPORT_KEY (16 characters from a "
            "computer, 32 from a phone), or import a decrypted copy"
        )
    try:
        from sqlcipher3 import dbapi2 as sqlcipher
    except ImportError as e:
        raise ImportFault(f"{path.name!r} is encrypted, which needs sqlcipher3: pip install 'qqtwin[ntqq]'") from e
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="twin-import-")))
    copy = folder / path.name
    with path.open("rb") as whole, copy.open("wb") as inner:
        whole.seek(_HEADER_BYTES if encrypted(head) else 0)
        shutil.copyfileobj(whole, inner, 1 << 20)
    named = [h for h in _HMACS if f"HMAC_{h}".encode() in head]
    for page_bytes, rounds, hmac in product(_PAGES_BYTES, _ROUNDS, dict.fromkeys((*named, *_HMACS))):
        connection = sqlcipher.connect(f"file:{quote(str(copy))}?mode=ro&immutable=1", uri=True)
        try:
            secret = key.get_secret_value().replace("'", "''")
            for pragma in (
                "cipher_log_level=NONE", f"cipher_page_size={page_bytes}", f"key='{secret}'", f"kdf_iter={rounds}",
                f"cipher_hmac_algorithm=HMAC_{hmac}", "cipher_kdf_algorithm=PBKDF2_HMAC_SHA512",
            ):  # fmt: skip
                connection.execute(f"PRAGMA {pragma}")
            _listed(connection)
        except sqlcipher.DatabaseError:
            connection.close()
            continue
        return cast(sqlite3.Connection, connection)
    raise ImportFault(f"{path.name!r} does not open with this key: check that it is the key of this account's database")


def has_messages(path: Path) -> bool:
    """Whether a plain database has a table of messages.

    Raises:
        ImportFault: it is locked, or too damaged to tell.
    """
    with opened(path, None) as connection:
        return bool(_message_tables(connection))


def _message_tables(connection: sqlite3.Connection) -> list[str]:
    return [name for name in TABLES if _columns(connection, name)]


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


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
    with opened(path, reading.told.key) as connection:
        names = _message_tables(connection)
        if not names:
            raise ImportFault(f"{path.name!r} has neither c2c_msg_table nor group_msg_table: is it nt_msg.db?")
        connection.text_factory = partial(str, encoding="utf-8", errors="replace")
        reading.size = sum(_count(connection, name) for name in names)
        tables = (Table(name, TABLES[name], _rows(connection, name, reading)) for name in names)
        found = History(tables)
        found.uins.update(_pairs(connection, "nt_uid_mapping_table", "48902", "1002"))
        neighbours(beside or path, reading, found)
        yield found


def neighbours(path: Path, reading: Reading, found: History) -> None:
    """Names from the databases beside; one that does not open is told of and done without."""
    for name in ("profile_info.db", "group_info.db"):
        beside = path.with_name(name)
        if not beside.is_file():
            continue
        try:
            with opened(beside, reading.told.key) as connection:
                if name == "profile_info.db":
                    found.nicks.update(_pairs(connection, "profile_info_v6", "1002", "20002"))
                    found.uins.update(_pairs(connection, "profile_info_v6", "1000", "1002"))
                    continue
                for table in ("group_list", "group_detail_info_ver1"):
                    found.groups.update(_pairs(connection, table, "60001", "60007"))
                for nick in ("20002", "64003"):
                    found.cards.update(
                        ((group, uin), card)
                        for group, uin, card in _selected(connection, "group_member3", "60001", "1002", nick)
                    )
        except ImportFault as e:
            reading.skip(f"names: {e}", name)


def _pairs(connection: sqlite3.Connection, table: str, key: str, value: str) -> dict[str, str]:
    return {row[0]: row[1] for row in _selected(connection, table, key, value)}


def _selected(connection: sqlite3.Connection, table: str, *columns: str) -> Iterator[tuple[str, ...]]:
    """Columns of a table as text, without rows that lack one; nothing where the table or a column is missing."""
    try:
        if not set(columns) <= set(_columns(connection, table)):
            return
        names = ", ".join(f'"{c}"' for c in columns)
        for row in connection.execute(f"SELECT {names} FROM {table}"):
            if all(row):
                yield tuple(str(value) for value in row)
    except connection.Error:
        return


def _count(connection: sqlite3.Connection, table: str) -> int:
    """Rows of a table; 0 of one too broken to count."""
    with suppress(connection.Error):
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    return 0


def _rows(connection: sqlite3.Connection, table: str, reading: Reading) -> Iterator[Row]:
    """A table's rows by id, which is by time. Where pages are broken, it goes on behind them, in growing strides."""
    there = set(_columns(connection, table))
    columns = ", ".join(f'"{c}"' if c in there else "NULL" for c in COLUMNS)
    query = f"SELECT {columns}, rowid FROM {table} WHERE rowid > ? ORDER BY rowid"
    last, stride = _ROWIDS[0], 1
    while last < _ROWIDS[-1]:
        why = "out of order"
        try:
            for row in connection.execute(query, (last,)):
                if row[-1] <= last:  # broken pages can lead back to rows read before
                    break
                last, stride = row[-1], 1
                reading.done += 1
                yield row
            else:
                return
        except connection.Error as e:
            if "locked" in str(e):
                raise _fault(Path(table), e) from e
            why = str(e)
        if stride == 1:
            reading.skip(f"damaged pages ({why}): copy it again with QQ closed", f"{table} behind row {last}")
        last, stride = min(last + stride, _ROWIDS[-1]), stride * 2
