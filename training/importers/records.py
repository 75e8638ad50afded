"""A JSON file of records → its records, one by one: a list, an object of lists, JSONL, or objects one after another.

What is held is one record, whatever the size of the file. JSONL goes on behind a broken line; in other JSON nothing is
read behind the place where it breaks.
"""

import codecs
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from training.importers.source import HEAD_BYTES, Reading, unreadable

LINE_MAX = 16 << 20
"""Bytes of one line."""
DEPTH_MAX = 32
"""Levels of nesting in a record; four are usual."""
LISTS = frozenset({"conversations", "messages", "history", "generated", "images", "chosen", "rejected"})
"""Lists that belong to a record; any other list of a file's outermost object is a list of records."""
_CHUNK = 1 << 18


def records(path: Path, reading: Reading, limit: int | None = None) -> Iterator[Any]:
    """Every record, in the file's order; `reading` is told where and what is left out.

    Args:
        path: the file: UTF-8, UTF-16 with its mark, or GB18030.
        reading: kept up to date.
        limit: bytes after which the file counts as ended; None: all.

    Raises:
        ImportFault: the file cannot be read.
    """
    try:
        reading.size = path.stat().st_size
        with path.open("rb") as f:
            head = f.read(HEAD_BYTES)
            f.seek(0)
            encoding = _encoding(head)
            stream: Any = io.BufferedReader(_Utf8(f, encoding, reading, limit), _CHUNK)
            whole = _is_stream(head.decode(encoding, "ignore"))
            yield from _streamed(stream, path, reading) if whole else _lines(stream, path, reading)
    except OSError as e:
        raise unreadable(path, e) from e


class _Utf8(io.RawIOBase):
    """A file as UTF-8; what cannot be read is U+FFFD."""

    def __init__(self, file: BinaryIO, encoding: str, reading: Reading, limit: int | None) -> None:
        self._file, self._reading, self._left = file, reading, limit
        self._decoder = codecs.getincrementaldecoder(encoding)("replace")
        self._ready = b""

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; 0 at the end."""
        view = memoryview(buffer).cast("B")
        while not self._ready:
            size = _CHUNK if self._left is None else min(_CHUNK, self._left)
            chunk = self._file.read(size)
            if self._left is not None:
                self._left -= len(chunk)
            self._reading.done += len(chunk)
            self._ready = self._decoder.decode(chunk, final=not chunk).encode("utf-8", "replace")
            if not chunk:
                break
        n = min(len(view), len(self._ready))
        view[:n], self._ready = self._ready[:n], self._ready[n:]
        return n


def _encoding(head: bytes) -> str:
    """The encoding of a file's first bytes. UTF-8 with a few broken bytes is UTF-8; GB18030 breaks it everywhere."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    read = head.decode("utf-8", "replace")
    foreign = sum(c > "\x7f" for c in read)
    return "utf-8-sig" if read.count("\ufffd") <= 1 + foreign // 20 else "gb18030"


def _is_stream(head: str) -> bool:
    """Whether a file is one value (or objects over several lines), not a record a line."""
    text = head.lstrip("\ufeff \t\r\n")
    listed = re.match(r'\{\s*"([^"\\]*)"\s*:\s*\[\s*[\[{]', text)
    return text.startswith("[") or bool(re.match(r"\{\s*\n", text)) or bool(listed and listed[1] not in LISTS)


def _lines(stream: BinaryIO, path: Path, reading: Reading) -> Iterator[Any]:
    number = 0
    while line := stream.readline(LINE_MAX):
        number += 1
        reading.place = f"{path.name}:{number}"
        if len(line) == LINE_MAX and not line.endswith(b"\n"):
            while (rest := stream.readline(LINE_MAX)) and not rest.endswith(b"\n"):
                pass
            reading.skip(f"a line of more than {LINE_MAX >> 20} MiB")
        elif line.strip():
            try:
                record = json.loads(line)
            except ValueError:
                reading.skip("not JSON")
            except RecursionError:
                reading.skip("nested too deeply")
            else:
                yield record


def _streamed(stream: BinaryIO, path: Path, reading: Reading) -> Iterator[Any]:
    number = 0
    reading.place = f"{path.name} record 1"
    events = iter(ijson.basic_parse(stream, use_float=True, multiple_values=True))
    try:
        for record in _values(events):
            number += 1
            reading.place = f"{path.name} record {number}"
            if record is _TOO_DEEP:
                reading.skip("nested too deeply")
            else:
                yield record
    except ijson.JSONError:
        reading.skip("the JSON ends or breaks here; the rest cannot be read", f"{path.name} record {number + 1}")


_TOO_DEEP = object()
Event = tuple[str, Any]


def _values(events: Iterator[Event]) -> Iterator[Any]:
    """Elements of outermost lists and of outermost objects' lists; what else an object holds is a record."""
    for event in events:
        if event[0] == "start_array":
            yield from _elements(events)
        elif event[0] == "start_map":
            yield from _object(events)
        else:
            yield event[1]


def _object(events: Iterator[Event]) -> Iterator[Any]:
    own: dict[str, Any] = {}
    for kind, key in events:
        if kind == "end_map":
            break
        first = next(events, None)
        if first is None:
            return
        if first[0] == "start_array" and key not in LISTS:
            yield from _elements(events)
        else:
            own[key] = _value(first, events)
    if own:
        yield _TOO_DEEP if any(v is _TOO_DEEP for v in own.values()) else own


def _elements(events: Iterator[Event]) -> Iterator[Any]:
    for event in events:
        if event[0] == "end_array":
            return
        yield _value(event, events)


def _value(first: Event, events: Iterable[Event]) -> Any:
    """One value, built from its events; of what is nested too deeply nothing is kept."""
    if first[0] not in ("start_map", "start_array"):
        return first[1]
    builder: Any = ijson.ObjectBuilder()
    builder.event(*first)
    depth, kept = 1, True
    for event in events:
        depth += {"start_map": 1, "start_array": 1, "end_map": -1, "end_array": -1}.get(event[0], 0)
        if depth > DEPTH_MAX:
            builder, kept = None, False
        if kept:
            builder.event(*event)
        if not depth:
            break
    return builder.value if kept else _TOO_DEEP
