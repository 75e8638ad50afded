"""The five-column CSV of qq_nt_parse → messages: group, time (UTC), name, user id, the texts as a Python list.

It holds groups alone and no message ids (record.Ids makes them). Written in UTF-8; copies saved again in Excel are
GB18030 and may have a `?` before or after a name.
"""

import ast
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from bot.message import Message, Scene
from training.importers.record import CALL, Ids, each, message, moment, named
from training.importers.rows import fields, records
from training.importers.source import Item, Reading, Skipped, Source
from training.importers.text import decoded
from training.importers.wording import canonical

_ROW = re.compile(r'"?\d{4,12}"?,"?\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}')
_SNIFFED_LINES = 50
_CALLS = ("[语音通话]", "[视频通话]")


def sniff(_: Path, beginning: bytes) -> bool:
    """Whether one of its first lines has a group number, an ISO time and a list at the end."""
    lines = decoded(beginning).splitlines()[:_SNIFFED_LINES]
    return any(_ROW.match(line) and re.search(r',"?\[["\']', line[:400]) for line in lines)


def items(path: Path, reading: Reading) -> Iterator[Item]:
    """Every message, in the file's order.

    Raises:
        ImportFault: the file cannot be read.
    """
    ids = Ids()

    def make(record: str) -> Message:
        group, written, name, sender, content = fields(record, (5,), reading)
        text = canonical("".join(pieces(content)))
        if text in _CALLS:
            raise Skipped(CALL)
        scene, time = Scene("group", named(group)), moment(written, reading.told.zone)
        return message(
            ids.of(scene, time, named(sender), text), scene, named(sender), named(name).strip("?？ "), time, text
        )

    yield from each(records(path, reading, _ROW), reading, make)


def pieces(content: str) -> list[str]:
    """The texts of a Python list in text form; cut apart by hand where it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = ast.literal_eval(content)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        value = None
    if isinstance(value, list):
        return [str(x) for x in value if isinstance(x, str)]
    inner = content.strip().removeprefix("[").removesuffix("]")[1:-1]
    return inner.replace("', '", "','").split("','")


SOURCE = Source("five-csv", "five-column CSV", sniff, items)
