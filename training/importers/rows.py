"""CSV → rows, one record at a time, so that a wrong quote costs its own record and not the rest of the file."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from training.importers.source import Reading, Skipped
from training.importers.text import lines

FIELD_CHARS = 64 << 20
"""`csv` refuses fields over 128 KiB by default; people paste whole files."""
RECORD_LINES = 100_000


def records(path: Path, reading: Reading, begins: re.Pattern[str]) -> Iterator[str]:
    """The file's records, each with the line breaks within its quotes; `reading.place` is where it begins.

    Args:
        path: the file.
        reading: kept up to date.
        begins: what every record's first line matches, and a line within a message practically never does.

    Raises:
        ImportFault: the file cannot be read.
    """
    kept: list[str] = []
    place = ""
    for line in lines(path, reading):
        if kept and (begins.match(line) or len(kept) > RECORD_LINES):
            ahead, reading.place = reading.place, place
            yield "\n".join(kept)
            kept, reading.place = [], ahead
        if not kept:
            place = reading.place
        kept.append(line)
    if kept:
        reading.place = place
        yield "\n".join(kept)


def fields(record: str, counts: tuple[int, ...], reading: Reading) -> list[str]:
    """The fields of one record; lines behind it that belong to none are counted.

    Args:
        record: its text.
        counts: how many it may have.
        reading: where it comes from.

    Raises:
        Skipped: it has another number of them, as after a wrong quote.
    """
    csv.field_size_limit(FIELD_CHARS)
    try:
        found = list(csv.reader(f"{line}\n" for line in record.split("\n")))
    except csv.Error as e:
        raise Skipped("a CSV record that cannot be read") from e
    row = found[0] if found else []
    if len(row) not in counts:
        raise Skipped(f"a CSV record of other than {' or '.join(map(str, counts))} fields")
    for rest in found[1:]:
        if any(map(str.strip, rest)):
            reading.skip("a CSV line that begins like no record")
    return row
