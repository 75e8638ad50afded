"""A JSON file of records → its records, one by one: a list, an object of lists, JSONL, or objects one after another.

What is held is one record, whatever the size of the file. Reading goes on behind a broken line of JSONL, and behind a
broken element of a list.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from training.importers.jsonscan import CLOSED, DEEP, OPENED, members, values
from training.importers.source import Reading, head
from training.importers.text import chunks, decoded, lines, whole_lines

DEPTH_MAX = 32
"""Levels of nesting in a record; four are usual."""
LISTS = frozenset({"conversations", "messages", "history", "generated", "images", "chosen", "rejected"})
"""Lists that belong to a record; any other list of a file's outermost object is a list of records."""


def records(path: Path, reading: Reading, limit: int | None = None) -> Iterator[Any]:
    """Every record, in the file's order; `reading` is told where and what is left out.

    Args:
        path: the file: UTF-8, UTF-16 with its mark, or GB18030.
        reading: kept up to date.
        limit: characters after which the file counts as ended; None: all.

    Raises:
        ImportFault: the file cannot be read.
    """
    yield from (_streamed if _is_stream(decoded(head(path))) else _lines)(path, reading, limit)


def _is_stream(beginning: str) -> bool:
    """Whether a file is one value (or objects over several lines), not a record a line."""
    text = beginning.lstrip("\ufeff \t\r\n")
    listed = re.match(r'\{\s*"([^"\\]*)"\s*:\s*\[\s*[\[{]', text)
    return text.startswith("[") or bool(re.match(r"\{\s*\n", text)) or bool(listed and listed[1] not in LISTS)


def _within(pieces: Iterable[str], limit: int | None) -> Iterator[str]:
    """Pieces of a text until it is so long."""
    left = limit
    for piece in pieces:
        yield piece
        if left is not None and (left := left - len(piece)) <= 0:
            return


def _lines(path: Path, reading: Reading, limit: int | None) -> Iterator[Any]:
    return values(whole_lines(_within(lines(path, reading), limit), reading), reading)


def _streamed(path: Path, reading: Reading, limit: int | None) -> Iterator[Any]:
    number, own, elements = 0, dict[str, Any](), ""

    def next_one() -> None:
        nonlocal number
        number += 1
        reading.place = f"{path.name} record {number}"

    def broken(why: str) -> None:
        next_one()
        reading.skip(why)

    for route, value in members(_within(chunks(path, reading), limit), ("",), broken, whole=LISTS):
        if value is OPENED:
            own, elements = ({}, "") if not route else (own, f"{route}.*")
            continue
        if route not in ("", "*", elements):
            own[route] = value
            continue
        record = own if value is CLOSED else value
        if value is CLOSED and not own:
            continue
        next_one()
        if _too_deep(record):
            reading.skip(DEEP)
        else:
            yield record


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEPTH_MAX):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
