"""QQChatExporter JSON (V3–V6), its chunked folder and JSONL → messages.

Where `chatInfo` has no number, a private chat has that of its other side's messages, else the scene's id is the peer's
inner id or the chat's name; a JSONL file without its manifest is taken for a group named as the file.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bot.errors import ImportFault
from bot.message import Message
from training.importers.jsonscan import members, objects, shapes
from training.importers.qcemessage import Chat, peer
from training.importers.record import each
from training.importers.source import Item, Reading, Source, head, unreadable
from training.importers.text import chunks

MANIFEST = "manifest.json"
MANIFEST_BYTES = 64 << 20
_OPENED = ("", "messages", "avatars", "statistics")


def sniff(path: Path, beginning: bytes) -> bool:
    """Whether it is an export, its manifest, its folder, or a chunk of one."""
    if path.is_dir():
        return (path / MANIFEST).is_file() and _is_manifest(shapes(head(path / MANIFEST)))
    found = shapes(beginning)
    return any("chatInfo" in s and ("messages" in s or "metadata" in s) for s in found) or any(map(_is_line, found))


def _is_manifest(found: tuple[dict[str, Any], ...]) -> bool:
    return any("chunked" in s and "chatInfo" in s for s in found)


def _is_line(shape: Mapping[str, Any]) -> bool:
    own = {"sender", "sender.uid", "content", "content.text"}
    return own <= shape.keys() and bool({"content.elements", "content.raw", "content.html"} & shape.keys())


def items(path: Path, reading: Reading) -> Iterator[Item]:
    """Every message, in the file's order.

    Raises:
        ImportFault: it cannot be read.
    """
    if path.is_dir() or _is_manifest(shapes(head(path))):
        yield from _chunked(path if path.is_dir() else path.parent, reading)
    elif any(map(_is_line, shapes(head(path)))):
        info, beside = _manifest_info(path)
        chat = _chat(info, path.stem, reading, _rows([*beside, path]))
        yield from each(objects(path, reading), reading, chat.message)
    else:
        yield from _document(path, reading)


def _document(path: Path, reading: Reading) -> Iterator[Message]:
    chat = Chat({"type": "group"}, path.stem, reading)
    number = 0

    def make(member: tuple[str, Any]) -> Message | None:
        nonlocal chat, number
        route, value = member
        if route == "chatInfo" and isinstance(value, Mapping):
            chat = _chat(value, path.stem, reading, _messages(path))
        if route != "messages.*":
            return None
        number += 1
        reading.place = f"{path.name} message {number}"
        return chat.message(value)

    yield from each(members(chunks(path, reading), _OPENED, reading.skip), reading, make)


def _chunked(folder: Path, reading: Reading) -> Iterator[Message]:
    manifest = _manifest(folder / MANIFEST)
    found = []
    for named, path in _named(folder, manifest):
        if path is None:
            reading.skip("a chunk that is missing", f"{MANIFEST}: {named[:80]}")
        else:
            found.append(path)
    chat = _chat(_info(manifest), folder.name.removesuffix("_chunked_jsonl"), reading, _rows(found))
    size, done = sum(path.stat().st_size for path in found), 0
    for path in found:
        for made in each(objects(path, reading), reading, chat.message):
            here, reading.done, reading.size = reading.done, done + reading.done, size
            yield made
            reading.done = here
        done += path.stat().st_size


def chunk_files(folder: Path) -> list[Path]:
    """The chunks a folder's manifest names, those that are there.

    Raises:
        ImportFault: the manifest cannot be read.
    """
    return [path for _, path in _named(folder, _manifest(folder / MANIFEST)) if path is not None]


def _named(folder: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[str, Path | None]]:
    """What a manifest calls its chunks, and where each lies; None for one that is missing."""
    listed = manifest.get("chunked")
    told = listed if isinstance(listed, Mapping) else {}
    base = folder / str(told.get("chunksDir") or "")
    chunks = told.get("chunks")
    for row in chunks if isinstance(chunks, list) else ():
        if isinstance(row, Mapping):
            name = row.get("relativePath") or row.get("fileName") or row.get("file")
            yield str(name), _chunk(folder, base, row)


def _chunk(folder: Path, base: Path, row: Mapping[str, Any]) -> Path | None:
    """The file of a chunk, which lies within the export's folder."""
    options = [folder / str(row[k]) for k in ("relativePath", "file") if row.get(k)]
    options += [base / str(row[k]) for k in ("fileName", "file") if row.get(k)]
    for path in options:
        try:
            if path.resolve().is_relative_to(folder.resolve()) and path.is_file():
                return path
        except (OSError, ValueError):
            continue
    return None


def _manifest(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as f:
            found = json.loads(f.read(MANIFEST_BYTES).decode("utf-8-sig", "replace"), strict=False)
    except OSError as e:
        raise unreadable(path, e) from e
    except (ValueError, RecursionError) as e:
        raise ImportFault(f"{str(path)!r} is broken: export again, or import the files of its chunks folder") from e
    return found if isinstance(found, dict) else {}


def _manifest_info(chunk: Path) -> tuple[Mapping[str, Any], list[Path]]:
    """`chatInfo` and chunks of the manifest a chunk belongs to, where it lies beside the chunks folder."""
    for folder in (chunk.parent, chunk.parent.parent):
        if (folder / MANIFEST).is_file():
            try:
                return _info(_manifest(folder / MANIFEST)), chunk_files(folder)
            except ImportFault:
                continue
    return {}, []


def _chat(info: Mapping[str, Any], fallback: str, reading: Reading, rows: Iterator[Any]) -> Chat:
    """The chat of a file, with its number where only its messages tell that: a second reading up to the first."""
    found = peer(info, rows)
    return Chat({**info, "peerUin": found} if found else info, fallback, reading)


def _messages(path: Path) -> Iterator[Any]:
    """The messages of a document as they stand there."""
    parts = members(chunks(path, Reading()), ("", "messages"), lambda _: None)
    return (value for route, value in parts if route == "messages.*")


def _rows(files: Iterable[Path]) -> Iterator[Any]:
    """The messages of chunks as they stand there."""
    return (row for file in files for row in objects(file, Reading()))


def _info(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    info = manifest.get("chatInfo")
    return info if isinstance(info, Mapping) else {}


SOURCE = Source("qce", "QQChatExporter", sniff, items)
