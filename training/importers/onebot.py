"""OneBot events, one a line, and dumps of `get_*_msg_history` answers → messages and recalls.

A dump is the answer itself (`{status, retcode, data: {messages}}`), several of them, or a bare array of its messages.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bot.events import MalformedEvent, Mute, Online, Recall, read
from bot.message import Message
from training.importers.jsonscan import members, shapes, values
from training.importers.record import moment
from training.importers.source import Item, Reading, Skipped, Source, head
from training.importers.text import chunks, lines, whole_lines

_OPENED = ("", "messages", "data", "data.messages")
_ROUTES = ("*", "messages.*", "data.messages.*")
_SNIFFED_EVENTS, _SNIFFED_CHARS = 20, 64 << 20


def sniff(path: Path, beginning: bytes = b"") -> bool:
    """Whether a file is a dump, or event JSONL: one of its first 20 readable lines (of 64 Mi characters) is an event.

    Raises:
        ImportFault: the file cannot be read.
    """
    if path.is_dir():
        return False
    if _is_dump(beginning):
        return True
    objects, left = 0, _SNIFFED_CHARS
    for line in lines(path, Reading()):
        left -= len(line)
        if objects >= _SNIFFED_EVENTS or left <= 0:
            break
        if not line.lstrip().startswith("{"):
            continue
        try:
            event = json.loads(line, strict=False)
        except (ValueError, RecursionError):
            continue
        objects += 1
        if "post_type" in event or event.keys() >= {"message_id", "message", "time"}:
            return True
    return False


def _is_dump(beginning: bytes) -> bool:
    own = {"message_id", "message", "time"}
    return any(
        {f"{prefix}{key}" for key in own} <= s.keys()
        for s in shapes(beginning)[:1]
        for prefix in ("*.", "messages.*.", "data.messages.*.")
    )


def items(path: Path, reading: Reading) -> Iterator[Item]:
    """Every message and recall of the file, in its order.

    Raises:
        ImportFault: the file cannot be read.
    """
    texts = whole_lines(lines(path, reading), reading)
    for event in _dumped(path, reading) if _is_dump(head(path)) else values(texts, reading):
        try:
            item = _item(event, reading)
        except Skipped as why:
            reading.skip(str(why))
            continue
        yield item


def _dumped(path: Path, reading: Reading) -> Iterator[Any]:
    number = 0
    for route, value in members(chunks(path, reading), _OPENED, reading.skip):
        if route in _ROUTES:
            number += 1
            reading.place = f"{path.name} message {number}"
            yield value


def _item(event: Any, reading: Reading) -> Item:
    if not isinstance(event, dict):
        raise Skipped("not an event")
    if "post_type" not in event and "message_id" in event:
        event["post_type"] = "message"
    if "time" in event:  # Clients send seconds; programs that keep their events may have made milliseconds of them.
        event["time"] = moment(event["time"], reading.told.zone).timestamp()
    try:
        item = read(event, reading.names.get)
    except MalformedEvent as e:
        raise Skipped(str(e)) from e
    except RecursionError as e:
        raise Skipped("nested too deeply") from e
    if item is None or isinstance(item, Mute | Online):
        raise Skipped(f"{event.get('post_type')} event")
    if not _storable(item):
        raise Skipped("an id that is not text")
    if isinstance(item, Message) and (owner := str(event.get("self_id") or "")):
        reading.owners[owner] += 1
    return item


def _storable(item: Item) -> bool:
    """Whether its ids hold no half of a surrogate pair, which no archive stores."""
    ids = [item.scene.id, item.message_id if isinstance(item, Recall) else item.id]
    if isinstance(item, Message):
        ids += [item.sender_id, item.reply_to or "", *item.mentions]
    try:
        "".join(ids).encode()
    except UnicodeEncodeError:
        return False
    return True


SOURCE = Source("onebot", "OneBot events", sniff, items)
