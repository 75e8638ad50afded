"""A file of unknown encoding → text, in pieces or in lines, without ever holding the whole.

QQ's own exports are UTF-8 with or without a byte order mark, what was once saved in Excel is GB18030, and Windows'
notepad makes UTF-16. Bytes that fit no encoding become U+FFFD: one broken byte costs one character, not the file.
"""

import codecs
import re
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from pathlib import Path

from training.importers.source import Reading, unreadable

CHUNK_BYTES = 1 << 19
LINE_CHARS = 16 << 20
"""A longer line is read in pieces; no message is that long."""
_SNIFFED_BYTES = 4 << 20
_TOLD_LINES = 500
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_WRONG = 20
"""UTF-8 with one broken character, or one in so many bytes, is still UTF-8; GB18030 read as it is broken all over."""


def encoding_of(pieces: Iterable[bytes]) -> str:
    """The codec of a text: its byte order mark's, else UTF-8 unless that is broken all over, else GB18030.

    Args:
        pieces: the beginning of the text, which may end within a character.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    wide = broken = 0
    for number, piece in enumerate(pieces):
        if not number and (marked := next((name for mark, name in _MARKS if piece.startswith(mark)), None)):
            return marked
        wide += len(re.sub(rb"[\x00-\x7f]+", b"", piece))
        broken += decoder.decode(piece).count("\ufffd")
    return "utf-8" if (broken - 1) * _WRONG <= wide else "gb18030"


def decoded(head: bytes) -> str:
    """The beginning of a file as text."""
    return codecs.getincrementaldecoder(encoding_of([head]))("replace").decode(head).removeprefix("﻿")


def chunks(path: Path, reading: Reading) -> Iterator[str]:
    """A file's text in pieces of half a mebibyte; `reading` learns what is read.

    Raises:
        ImportFault: the file cannot be read.
    """
    try:
        reading.place, reading.size, reading.done = path.name, path.stat().st_size, 0
        with path.open("rb") as f:
            decoder = codecs.getincrementaldecoder(_encoding(path))("replace")
            while piece := f.read(CHUNK_BYTES):
                reading.done += len(piece)
                yield decoder.decode(piece)
            yield decoder.decode(b"", final=True)
    except OSError as e:
        raise unreadable(path, e) from e


def lines(path: Path, reading: Reading) -> Iterator[str]:
    r"""A file's lines without their ends (\n, \r\n or \r); `reading.place` names each as `file:line`.

    A line of `LINE_CHARS` is a piece of one, and so is what follows up to the next shorter one.

    Raises:
        ImportFault: the file cannot be read.
    """
    try:
        reading.size = path.stat().st_size
        with path.open("rb") as raw, TextIOWrapper(raw, _encoding(path), "replace") as f:
            name, number, ended = path.name, 0, True
            while line := f.readline(LINE_CHARS):
                number += ended
                ended = line.endswith("\n")
                reading.place = f"{name}:{number}"
                if number % _TOLD_LINES == 0:
                    reading.done = min(raw.tell(), reading.size)
                yield line.removesuffix("\n")
    except OSError as e:
        raise unreadable(path, e) from e


def whole_lines(pieces: Iterable[str], reading: Reading) -> Iterator[str]:
    """Of what `lines` gives the whole lines; one of `LINE_CHARS` or more is counted, and never held whole."""
    long = False
    for piece in pieces:
        if long or len(piece) >= LINE_CHARS:
            if not long:
                reading.skip(f"a line of more than {LINE_CHARS >> 20} MiB")
            long = len(piece) >= LINE_CHARS
        else:
            yield piece


def _encoding(path: Path) -> str:
    """By what stands at the beginning; further in where that is all ASCII."""
    with path.open("rb") as f:
        return encoding_of(iter(lambda: f.read(min(CHUNK_BYTES, _SNIFFED_BYTES - f.tell())), b""))
