"""A history file → the archive: recognised by its content, read once, stored in batches, nothing twice."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

from bot.archive import Archive
from bot.errors import ImportFault
from bot.events import Recall
from bot.message import Message, Scene
from training.importers import (
    chatlab,
    chatlog,
    fivecsv,
    onebot,
    qce,
    qcetxt,
    qqmht,
    qqtxt,
    sets,
    telegram,
    wechat,
    weflow,
    weq,
)
from training.importers.source import Reading, Source, Told, head

SOURCES: tuple[Source, ...] = (
    qce.SOURCE,
    chatlab.SOURCE,
    weflow.SOURCE,
    telegram.SOURCE,
    chatlog.SOURCE,
    weq.SOURCE,
    qqmht.SOURCE,
    qcetxt.SOURCE,
    qqtxt.SOURCE,
    wechat.SOURCE,
    fivecsv.SOURCE,
    onebot.SOURCE,
)
"""Every format, the surest signs first; OneBot last, which looks far into a file with a damaged beginning."""
BATCH = 2000
"""Messages of one transaction."""
PATIENCE_S = 10.0
"""Seconds to wait for an archive that does not take a batch; the daemon holds it for milliseconds."""
_POLL_S = 0.25
_REASONS_TOLD = 3


@dataclass(slots=True)
class ImportResult:
    """What an import understood and did.

    Args:
        source: the format.
        reading: what was left out, whose history it is.
        messages: messages read.
        added: messages that were new in the archive.
        recalls: recalls applied.
        senders: messages by sender id.
        scenes: messages by scene.
        span: first and last unix second.
    """

    source: Source
    reading: Reading
    messages: int = 0
    added: int = 0
    recalls: int = 0
    senders: Counter[str] = field(default_factory=Counter)
    scenes: Counter[Scene] = field(default_factory=Counter)
    span: tuple[float, float] | None = None


def recognised(path: Path, wanted: str = "auto") -> Source:
    """The format of a file.

    Args:
        path: a file or folder.
        wanted: a format's name, or `auto` to look into the file.

    Raises:
        ImportFault: it cannot be read, is of no known format, is a training set, or the name is of none.
    """
    names = ", ".join(s.name for s in SOURCES)
    beginning = head(path)
    if wanted != "auto":
        for source in SOURCES:
            if source.name == wanted:
                return source
        raise ImportFault(f"--format {wanted!r}: must be auto or one of {names}")
    for source in SOURCES:
        if source.sniff(path, beginning):
            return source
    if (title := sets.recognised(path)) is not None:
        raise ImportFault(
            f"{str(path)!r} is a training set ({title}), not a chat log: say who learns from it with --persona NAME"
        )
    known = "; ".join(s.title for s in SOURCES)
    raise ImportFault(f"{str(path)!r} is of no format known here ({known}); name it with --format if it is one of them")


def load(
    path: Path,
    archive: Archive | None,
    progress: Callable[[int, int], None] = lambda _done, _size: None,
    patience_s: float = PATIENCE_S,
    told: Told = Told(),  # noqa: B008 - frozen
    source: Source | None = None,
) -> ImportResult:
    """Read a history into the archive; what is good goes in, what is broken is counted by reason with its place.

    Args:
        path: a file or folder.
        archive: None only reads (a dry run).
        progress: called with what is read and the size.
        patience_s: seconds to wait, for each batch, for an archive that cannot be written.
        told: what the owner says of it.
        source: its format; None looks into the file.

    Raises:
        ImportFault: the file cannot be read, is of no known format, holds no message at all, or the archive stays
            unwritable.
    """
    source = source or recognised(path)
    reading = Reading(told)
    result = ImportResult(source, reading)
    batch: list[tuple[Message, str]] = []
    recalls: list[tuple[Recall, str]] = []
    for item in source.read(path, reading):
        if isinstance(item, Recall):
            recalls.append((item, reading.place))
            continue
        _count(result, item)
        batch.append((item, reading.place))
        if len(batch) >= BATCH:
            _store(path, archive, batch, result, patience_s)
            batch = []
            progress(reading.done, reading.size)
    if not result.messages and not recalls:
        raise ImportFault(f"{path.name!r} holds no message of {source.title} that could be read{_reasons(reading)}")
    _store(path, archive, batch, result, patience_s)
    if archive:
        for recall, _ in recalls:
            archive.recall(recall.scene, recall.message_id, recall.time)
            _written(path, archive, result, patience_s)
    result.recalls = len(recalls)
    progress(reading.size, reading.size)
    return result


def _reasons(reading: Reading) -> str:
    if not reading.skipped:
        return ""
    worst = (f"{n} × {why} ({', '.join(reading.places[why])})" for why, n in reading.skipped.most_common(_REASONS_TOLD))
    return f": {'; '.join(worst)}"


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
                result.reading.skip("refused by the archive", place)


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


def _count(result: ImportResult, message: Message) -> None:
    result.messages += 1
    result.senders[message.sender_id] += 1
    result.scenes[message.scene] += 1
    if message.sender_name:
        result.reading.names[message.sender_id] = message.sender_name
    second = message.time.timestamp()
    first, last = result.span or (second, second)
    result.span = (min(first, second), max(last, second))


def summary(result: ImportResult, zone: tzinfo) -> dict[str, Any]:
    """What an import understood, as plain values: scenes, people, time span, who "I" am, what was left out.

    Args:
        result: of `load`.
        zone: for the times.
    """
    reading = result.reading
    mine = reading.told.me or (reading.owners.most_common(1)[0][0] if reading.owners else None)
    span = [datetime.fromtimestamp(t, zone).isoformat(timespec="seconds") for t in result.span or ()]
    return {
        "format": result.source.title,
        "messages": result.messages,
        "added": result.added,
        "recalls": result.recalls,
        "scenes": {str(scene): n for scene, n in result.scenes.most_common()},
        "people": {s: {"name": reading.names.get(s, ""), "messages": n} for s, n in result.senders.most_common(20)},
        "span": span,
        "me": mine,
        "my_messages": result.senders.get(mine or "", 0),
        "skipped": {why: {"count": n, "places": reading.places[why]} for why, n in reading.skipped.most_common()},
    }


def in_words(shown: dict[str, Any], name: str, *, dry_run: bool) -> str:
    """A summary as a person reads it."""
    verb = "would be imported" if dry_run else f"read, {shown['added']} new"
    lines = [
        f"{name}: {shown['format']}; {shown['messages']} messages {verb}; {shown['recalls']} recalls",
        f"  {len(shown['scenes'])} scenes, {len(shown['people'])} people; {' – '.join(shown['span'])}",
        f"  you are {shown['me']} with {shown['my_messages']} messages (else: --me NUMBER)",
    ]
    for why, left in shown["skipped"].items():
        lines.append(f"  left out {left['count']}: {why} ({', '.join(left['places'])})")
    if not dry_run:
        lines.append(f"  next: twin persona new NAME --people {shown['me']}, then twin night --persona NAME")
    return "\n".join(lines)
