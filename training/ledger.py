"""A history as the ledger knows it: its digest, and what an import of it counted.

The archive notes every history that was imported whole (bot/intake.py). So a second import of the same file costs its
digest, 0.1 s of 60 MB, where reading it again costs as much as the first time.
"""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bot.message import Scene
from training.importers import ntqq, ntqq_database, qce, wechat
from training.importers.source import Told, unreadable

if TYPE_CHECKING:
    from training.history import ImportResult

_CHUNK_BYTES = 1 << 20


def digest(path: Path, source: str, told: Told) -> str:
    """What tells a history from every other: its bytes, how it is read, and what the owner said of it.

    Args:
        path: a file, with its write-ahead log if it has one, and the databases with names beside QQ's; a folder, of
            which its history counts and not what else lies there; or a manifest, with the chunks it names.
        source: the format's name.
        told: with the key of a database: another one may open those with names, which the first one did not.

    Raises:
        ImportFault: it cannot be read.
    """
    found = hashlib.sha256(f"{version('qqtwin')} {source} {told.me} {told.zone}".encode())
    if told.scene is not None:
        found.update(f" {told.scene}".encode())
    if source == ntqq.SOURCE.name and told.key is not None:
        found.update(f" {told.key.get_secret_value()}".encode())
    try:
        for file in _files(path, source):
            found.update(f"\n{file.relative_to(path) if path.is_dir() else ''} {file.stat().st_size}\n".encode())
            with file.open("rb") as f:
                while chunk := f.read(_CHUNK_BYTES):
                    found.update(chunk)
    except OSError as e:
        raise unreadable(path, e) from e
    return found.hexdigest()


def _files(path: Path, source: str) -> list[Path]:
    if source == qce.SOURCE.name and (path.is_dir() or path.name == qce.MANIFEST):
        folder = path if path.is_dir() else path.parent
        return [folder / qce.MANIFEST, *qce.chunk_files(folder)]
    if path.is_dir():
        return (
            wechat.chat_files(path) if source == wechat.SOURCE.name else sorted(filter(Path.is_file, path.rglob("*")))
        )
    beside = map(path.with_name, ntqq_database.NAMES if source == ntqq.SOURCE.name else ())
    databases = [path, *filter(Path.is_file, beside)]
    logged = (file for database in databases for file in (database, database.with_name(f"{database.name}-wal")))
    return list(filter(Path.is_file, logged))


def counts(result: "ImportResult") -> dict[str, Any]:
    """What an import counted, as JSON."""
    reading = result.reading
    return {
        "messages": result.messages, "recalls": result.recalls, "senders": result.senders, "span": result.span,
        "scenes": {str(scene): n for scene, n in result.scenes.items()}, "owners": reading.owners,
        "scene_names": {str(scene): name for scene, name in result.scene_names.items()},
        "names": {sender: reading.names.get(sender, "") for sender in result.senders},
        "skipped": reading.skipped, "places": reading.places,
    }  # fmt: skip


def recount(result: "ImportResult", counted: dict[str, Any]) -> None:
    """Put what an earlier import counted into a result."""
    reading = result.reading
    result.messages, result.recalls = counted["messages"], counted["recalls"]
    result.senders.update(counted["senders"])
    result.scenes.update({Scene.parse(scene): n for scene, n in counted["scenes"].items()})
    names = counted.get("scene_names", {})  # older notes have none
    result.scene_names.update({Scene.parse(scene): name for scene, name in names.items()})
    result.span = tuple(counted["span"]) if counted["span"] else None
    reading.owners.update(counted["owners"])
    reading.names.update(counted["names"])
    reading.skipped.update(counted["skipped"])
    reading.places.update(counted["places"])
