"""OneBot event JSONL (one event a line, as NapCat writes them) → messages and recalls."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

from bot.archive import Archive
from bot.errors import ImportFault
from bot.events import MalformedEvent, Recall, read
from bot.message import Message, Scene

BATCH = 2000
"""Messages of one transaction."""


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
    """Whether a file looks like OneBot event JSONL: one of its first 20 lines is an event."""
    try:
        with path.open("rb") as f:
            lines = [f.readline(1 << 20) for _ in range(20)]
    except OSError:
        return False
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and ("post_type" in event or {"message_id", "message", "time"} <= event.keys()):
            return True
    return False


def load(
    path: Path, archive: Archive | None, progress: Callable[[int, int], None] = lambda _done, _size: None
) -> ImportResult:
    """Read a file into the archive; good lines go in, bad ones are counted by reason with their place.

    Args:
        path: JSONL in UTF-8.
        archive: None only reads (a dry run).
        progress: called with bytes read and the file's size.

    Raises:
        ImportFault: the file cannot be opened, or holds no event at all.
    """
    result, batch, recalls = ImportResult(), [], []
    size = _size(path)
    done = 0
    for item, bytes_read in _items(path, result):
        done += bytes_read
        if isinstance(item, Message):
            _count(result, item)
            batch.append(item)
        elif isinstance(item, Recall):
            recalls.append(item)
        if len(batch) >= BATCH:
            result.added += archive.append(batch, f"import:{path.name}") if archive else 0
            batch = []
            progress(done, size)
    if not result.messages and not recalls:
        raise ImportFault(f"{path.name!r} holds no OneBot message; expected one JSON event a line")
    if archive:
        result.added += archive.append(batch, f"import:{path.name}")
        for recall in recalls:
            archive.recall(recall.scene, recall.message_id, recall.time)
    result.recalls = len(recalls)
    progress(size, size)
    return result


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as e:
        raise ImportFault(f"history file {str(path)!r} cannot be opened: {e.strerror}") from e


def _items(path: Path, result: ImportResult) -> Iterator[tuple[Message | Recall | None, int]]:
    with path.open("rb") as f:
        for number, line in enumerate(f, 1):
            yield (_item(line, f"{path.name}:{number}", result) if line.strip() else None), len(line)


def _item(line: bytes, place: str, result: ImportResult) -> Message | Recall | None:
    try:
        event = json.loads(line)
    except ValueError:
        result.skip("not JSON", place)
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
    if item is None:
        result.skip(f"{event.get('post_type')} event", place)
    elif isinstance(item, Message):
        result.me[str(event.get("self_id", ""))] += 1
    return item


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
