"""OneBot event JSONL (one event a line, as NapCat writes them) → messages and recalls."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

from bot.archive import Archive
from bot.errors import ImportFault
from bot.events import MalformedEvent, Mute, Recall, read
from bot.message import Message, Scene

BATCH = 2000
"""Messages of one transaction."""
PATIENCE_S = 10.0
"""Seconds to wait for an archive that does not take a batch; the daemon holds it for milliseconds."""
_POLL_S = 0.25
_SNIFFED_EVENTS, _SNIFFED_BYTES = 20, 64 << 20


@dataclass(slots=True)
class ImportResult:
    """What an import understood and did.

    Args:
        messages: messages read.
        added: messages that were new in the archive.
        recalls: recalls applied.
        skipped: left out, by reason.
        places: first places of every reason, `file:line`.
        senders: messages by sender id.
        names: newest name by sender id.
        scenes: messages by scene.
        me: the account the history belongs to, where it says so.
        span: first and last unix second.
    """

    messages: int = 0
    added: int = 0
    recalls: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)
    senders: Counter[str] = field(default_factory=Counter)
    names: dict[str, str] = field(default_factory=dict)
    scenes: Counter[Scene] = field(default_factory=Counter)
    me: Counter[str] = field(default_factory=Counter)
    span: tuple[float, float] | None = None

    def skip(self, reason: str, place: str) -> None:
        """Count something left out, and keep the first three places."""
        self.skipped[reason] += 1
        self.places.setdefault(reason, [])
        if len(self.places[reason]) < 3:
            self.places[reason].append(place)


def sniff(path: Path) -> bool:
    """Whether a file looks like OneBot event JSONL: one of its first 20 readable lines (of 64 MiB) is an event.

    Raises:
        ImportFault: the file cannot be read.
    """
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
        raise _unreadable(path, e) from e
    return False


def load(
    path: Path,
    archive: Archive | None,
    progress: Callable[[int, int], None] = lambda _done, _size: None,
    patience_s: float = PATIENCE_S,
) -> ImportResult:
    """Read a file into the archive; good lines go in, bad ones are counted by reason with their place.

    Args:
        path: JSONL in UTF-8.
        archive: None only reads (a dry run).
        progress: called with bytes read and the file's size.
        patience_s: seconds to wait, for each batch, for an archive that cannot be written.

    Raises:
        ImportFault: the file cannot be read, holds no event at all, or the archive stays unwritable.
    """
    result = ImportResult()
    batch: list[tuple[Message, str]] = []
    recalls: list[Recall] = []
    size = _size(path)
    done = 0
    for item, place, bytes_read in _items(path, result):
        done += bytes_read
        if isinstance(item, Message):
            _count(result, item)
            batch.append((item, place))
        elif isinstance(item, Recall):
            recalls.append(item)
        if len(batch) >= BATCH:
            _store(path, archive, batch, result, patience_s)
            batch = []
            progress(done, size)
    if not result.messages and not recalls:
        raise ImportFault(f"{path.name!r} holds no OneBot message; expected one JSON event a line")
    _store(path, archive, batch, result, patience_s)
    if archive:
        for recall in recalls:
            archive.recall(recall.scene, recall.message_id, recall.time)
            _written(path, archive, result, patience_s)
    result.recalls = len(recalls)
    progress(size, size)
    return result


def _store(
    path: Path, archive: Archive | None, batch: list[tuple[Message, str]], result: ImportResult, patience_s: float
) -> None:
    """Write a batch, or raise; what the archive can never hold is counted with its place."""
    if archive is None:
        return
    lost = archive.lost
    result.added += archive.append([m for m, _ in batch], f"import:{path.name}")
    _written(path, archive, result, patience_s)
    if archive.lost > lost:
        for message, place in batch:
            if archive.get(message.scene, message.id) is None:
                result.skip("refused by the archive", place)


def _written(path: Path, archive: Archive, result: ImportResult, patience_s: float) -> None:
    """Return when nothing waits in memory any more.

    Raises:
        ImportFault: the archive took nothing for `patience_s`.
    """
    give_up = time.monotonic() + patience_s
    while archive.behind:
        if time.monotonic() >= give_up:
            raise ImportFault(
                f"the archive cannot be written: {archive.waiting} messages of {path.name!r} are not in it "
                f"({result.added} new ones are); stop what holds it (a running twin, a backup) or free disk space, "
                "then import again: nothing is added twice"
            )
        time.sleep(min(_POLL_S, patience_s))
        result.added += archive.flush()


def _unreadable(path: Path, error: OSError) -> ImportFault:
    return ImportFault(f"history file {str(path)!r} cannot be read: {error.strerror}")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as e:
        raise _unreadable(path, e) from e


def _items(path: Path, result: ImportResult) -> Iterator[tuple[Message | Recall | None, str, int]]:
    try:
        with path.open("rb") as f:
            for number, line in enumerate(f, 1):
                place = f"{path.name}:{number}"
                yield (_item(line, place, result) if line.strip() else None), place, len(line)
    except OSError as e:
        raise _unreadable(path, e) from e


def _item(line: bytes, place: str, result: ImportResult) -> Message | Recall | None:
    try:
        event = json.loads(line)
    except ValueError:
        result.skip("not JSON", place)
        return None
    except RecursionError:
        result.skip("nested too deeply", place)
        return None
    if not isinstance(event, dict):
        result.skip("not an event", place)
        return None
    if "post_type" not in event and "message_id" in event:
        event["post_type"] = "message"
    try:
        item = read(event, result.names.get)
    except MalformedEvent as e:
        result.skip(str(e), place)
        return None
    except RecursionError:
        result.skip("nested too deeply", place)
        return None
    if item is None or isinstance(item, Mute):
        result.skip(f"{event.get('post_type')} event", place)
        return None
    if not _storable(item):
        result.skip("an id that is not text", place)
        return None
    elif isinstance(item, Message):
        result.me[str(event.get("self_id", ""))] += 1
    return item


def _storable(item: Message | Recall) -> bool:
    """Whether its ids hold no half of a surrogate pair, which no archive stores."""
    ids = [item.scene.id, item.message_id if isinstance(item, Recall) else item.id]
    if isinstance(item, Message):
        ids += [item.sender_id, item.reply_to or "", *item.mentions]
    try:
        "".join(ids).encode()
    except UnicodeEncodeError:
        return False
    return True


def _count(result: ImportResult, message: Message) -> None:
    result.messages += 1
    result.senders[message.sender_id] += 1
    result.scenes[message.scene] += 1
    if message.sender_name:
        result.names[message.sender_id] = message.sender_name
    second = message.time.timestamp()
    first, last = result.span or (second, second)
    result.span = (min(first, second), max(last, second))


def summary(result: ImportResult, me: str | None, zone: tzinfo) -> dict[str, Any]:
    """What an import understood, as plain values: scenes, people, time span, who "I" am, what was left out.

    Args:
        result: of `load`.
        me: the owner's QQ number, if given; else the account the events name.
        zone: for the times.
    """
    mine = me or (result.me.most_common(1)[0][0] if result.me else None)
    span = [datetime.fromtimestamp(t, zone).isoformat(timespec="seconds") for t in result.span or ()]
    return {
        "messages": result.messages,
        "added": result.added,
        "recalls": result.recalls,
        "scenes": {str(scene): n for scene, n in result.scenes.most_common()},
        "people": {s: {"name": result.names.get(s, ""), "messages": n} for s, n in result.senders.most_common(20)},
        "span": span,
        "me": mine,
        "my_messages": result.senders.get(mine or "", 0),
        "skipped": {why: {"count": n, "places": result.places[why]} for why, n in result.skipped.most_common()},
    }


def told(shown: dict[str, Any], name: str, *, dry_run: bool) -> str:
    """A summary in words."""
    verb = "would be imported" if dry_run else f"read, {shown['added']} new"
    lines = [
        f"{name}: OneBot events; {shown['messages']} messages {verb}; {shown['recalls']} recalls",
        f"  {len(shown['scenes'])} scenes, {len(shown['people'])} people; {' – '.join(shown['span'])}",
        f"  you are {shown['me']} with {shown['my_messages']} messages (else: --me NUMBER)",
    ]
    for why, left in shown["skipped"].items():
        lines.append(f"  left out {left['count']}: {why} ({', '.join(left['places'])})")
    if not dry_run:
        lines.append(f"  next: twin persona new NAME --people {shown['me']}, then twin night --persona NAME")
    return "\n".join(lines)
