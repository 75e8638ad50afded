"""QQ NT databases for tests, in every shape a user has them: plain, encrypted, as an SQL dump, as a JSON export."""

import base64
import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.ntqq import FIRST_FRIEND, START_S, body, row, text

NT_HEADER = b"SQLite header 3\0".ljust(32, b"\0") + b"QQ_NT DB"


def say(number: int, words: str, **more: Any) -> dict[str, Any]:
    """A group's row with text; `number` seconds after the beginning."""
    return row(number, **{"c40050": START_S + number, "body": body(text(words))} | more)


def chat(number: int, words: str, **more: Any) -> dict[str, Any]:
    """A row of the private chat with the first friend."""
    private = {"c40010": 1, "c40021": f"u_{FIRST_FRIEND}", "c40027": 5, "c40030": FIRST_FRIEND}
    return say(number, words, **private | more)


def profile_info(path: Path, nicks: Mapping[int, str]) -> None:
    """Write a profile_info.db."""
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE profile_info_v6([1000] TEXT, [1002] INTEGER, [20002] TEXT)")
        rows = [(f"u_{uin}", uin, nick) for uin, nick in nicks.items()]
        database.executemany("INSERT INTO profile_info_v6 VALUES(?,?,?)", rows)
    database.close()


def group_info(path: Path, groups: Mapping[int, str], cards: Mapping[tuple[int, int], str]) -> None:
    """Write a group_info.db: names by group, cards by (group, QQ number)."""
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE group_detail_info_ver1([60001] INTEGER, [60007] TEXT)")
        database.execute("CREATE TABLE group_member3([60001] INTEGER, [1002] INTEGER, [64003] TEXT, [20002] TEXT)")
        database.executemany("INSERT INTO group_detail_info_ver1 VALUES(?,?)", groups.items())
        rows = [(group, uin, card, "") for (group, uin), card in cards.items()]
        database.executemany("INSERT INTO group_member3 VALUES(?,?,?,?)", rows)
    database.close()


def dumped(database: Path, path: Path) -> Path:
    """A database as `sqlite3 .dump` writes it."""
    with sqlite3.connect(database) as opened:
        path.write_text("\n".join(opened.iterdump()) + "\n", "utf-8")
    opened.close()
    return path


def exported(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Rows as DB Browser for SQLite exports a table: a list of objects, BLOBs in base64."""
    plain = [{k: base64.b64encode(v).decode() if isinstance(v, bytes) else v for k, v in r.items()} for r in rows]
    path.write_text(json.dumps(plain, indent=4, ensure_ascii=False), "utf-8")
    return path


def encrypted(database: Path, path: Path, key: str, *, page_bytes: int, rounds: int, hmac: str, named: bool) -> Path:
    """A database as QQ keeps it: 1024 bytes of its own, then SQLCipher; `named`: the header names the HMAC."""
    from sqlcipher3 import dbapi2 as sqlcipher

    inner = path.with_suffix(".inner")
    opened = sqlcipher.connect(str(inner), isolation_level=None)
    secret = key.replace("'", "''")
    for pragma in (
        f"cipher_page_size={page_bytes}", f"key='{secret}'", f"kdf_iter={rounds}",
        f"cipher_hmac_algorithm=HMAC_{hmac}", "cipher_kdf_algorithm=PBKDF2_HMAC_SHA512",
    ):  # fmt: skip
        opened.execute(f"PRAGMA {pragma}")
    opened.execute(f"ATTACH DATABASE '{database}' AS plain KEY ''")
    opened.execute("SELECT sqlcipher_export('main', 'plain')")
    opened.close()
    header = NT_HEADER + (f"..HMAC_{hmac}".encode() if named else b"")
    path.write_bytes(header.ljust(1024, b"\0") + inner.read_bytes())
    inner.unlink()
    return path
