"""OneBot event JSONL (one event a line, as NapCat writes them) → messages and recalls."""

import json
from collections.abc import Iterator
from pathlib import Path

from bot.events import MalformedEvent, Mute, Recall, read
from bot.message import Message
from training.importers.source import Item, Reading, Skipped, Source, unreadable

_SNIFFED_EVENTS, _SNIFFED_BYTES = 20, 64 << 20


def sniff(path: Path, _: bytes = b"") -> bool:
    """Whether a file looks like OneBot event JSONL: one of its first 20 readable lines (of 64 MiB) is an event.

    Raises:
        ImportFault: the file cannot be read.
    """
    if path.is_dir():
        return False
    objects, left = 0, _SNIFFED_BYTES
    try:
        with path.open("rb") as f:
            while objects < _SNIFFED_EVENTS and left > 0 and (line := f.readline(1 << 20)):
                left -= len(line)
                try:
                    event = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if not isinstance(event, dict):
                    continue
                objects += 1
                if "post_type" in event or {"message_id", "message", "time"} <= event.keys():
                    return True
    except OSError as e:
        raise unreadable(path, e) from e
    return False


def items(path: Path, reading: Reading) -> Iterator[Item]:
    """Every message and recall of the file, in its order.

    Raises:
        ImportFault: the file cannot be read.
    """
    try:
        reading.size = path.stat().st_size
        with path.open("rb") as f:
            for number, line in enumerate(f, 1):
                reading.place = f"{path.name}:{number}"
                reading.done += len(line)
                if line.strip():
                    try:
                        item = _item(line, reading)
                    except Skipped as why:
                        reading.skip(str(why))
                        continue
                    yield item
    except OSError as e:
        raise unreadable(path, e) from e


def _item(line: bytes, reading: Reading) -> Item:
    try:
        event = json.loads(line)
    except ValueError as e:
        raise Skipped("not JSON") from e
    except RecursionError as e:
        raise Skipped("nested too deeply") from e
    if not isinstance(event, dict):
        raise Skipped("not an event")
    if "post_type" not in event and "message_id" in event:
        event["post_type"] = "message"
    try:
        item = read(event, reading.names.get)
    except MalformedEvent as e:
        raise Skipped(str(e)) from e
    except RecursionError as e:
        raise Skipped("nested too deeply") from e
    if item is None or isinstance(item, Mute):
        raise Skipped(f"{event.get('post_type')} event")
    if not _storable(item):
        raise Skipped("an id that is not text")
    if isinstance(item, Message):
        reading.owners[str(event.get("self_id", ""))] += 1
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
