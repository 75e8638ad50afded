"""A history file → the archive: recognised by its content, read once, stored in batches, nothing twice."""

import hashlib
import shlex
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, tzinfo
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from bot.archive import Archive
from bot.errors import ArchiveBusy, ImportFault
from bot.events import Recall
from bot.intake import Intake, Taken, without_people
from bot.message import Message, Scene
from training import ledger, speakers
from training.garbage import uncollected
from training.importers import (
    chatlab,
    chatlog,
    fivecsv,
    ntqq,
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
from training.importers.source import DAMAGED, Item, Reading, Source, Told, head
from training.speakers import many

_T = TypeVar("_T")
SOURCES: tuple[Source, ...] = (
    ntqq.SOURCE,
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
BATCH = 5000
"""Messages of one transaction: a tenth of a second, in which the daemon's messages wait in its memory."""
PATIENCE_S = 10.0
"""Seconds to wait for an archive that does not take a batch; the daemon holds it for milliseconds."""
_POLL_S = 0.25
_REASONS_TOLD = 3
_PEOPLE_TOLD = _SCENES_TOLD = 8


@dataclass(slots=True)
class ImportResult:
    """What an import understood and did.

    Args:
        source: the format.
        reading: what was left out, whose history it is.
        messages: messages read.
        added: messages that were new in the archive.
        same: messages that other sources had told already.
        recalls: recalls applied.
        senders: messages by sender id.
        scenes: messages by scene.
        scene_names: of groups, the newest.
        span: first and last unix second.
        before: when this very history had been imported already; nothing was read again.
        stem: the file's name, without its end.
    """

    source: Source
    reading: Reading
    messages: int = 0
    added: int = 0
    same: int = 0
    recalls: int = 0
    senders: Counter[str] = field(default_factory=Counter)
    scenes: Counter[Scene] = field(default_factory=Counter)
    scene_names: dict[Scene, str] = field(default_factory=dict)
    span: tuple[float, float] | None = None
    before: datetime | None = None
    stem: str = ""


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
    if not beginning and path.is_file():
        raise ImportFault(f"{str(path)!r} is empty: export it again")
    if beginning.startswith(ntqq.DATABASE_MAGIC):
        raise ImportFault(
            f"{str(path)!r} is a database with neither c2c_msg_table nor group_msg_table: of QQ's files nt_msg.db has "
            "them; if it is that one, copy it again with QQ closed, together with its -wal"
        )
    known = "; ".join(f"{s.title}: {s.name}" for s in SOURCES)
    raise ImportFault(
        f"{str(path)!r} is of no format known here; if it is one of these and damaged, say --format NAME ({known})"
    )


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
    result = ImportResult(source, reading, stem=path.stem)
    with uncollected(), ThreadPoolExecutor(1, "import") as writer:
        return _load(path, archive, progress, patience_s, result, writer)


def _load(
    path: Path,
    archive: Archive | None,
    progress: Callable[[int, int], None],
    patience_s: float,
    result: ImportResult,
    writer: Executor,
) -> ImportResult:
    """Read with one core, write with another."""
    source, reading = result.source, result.reading
    store = _Store(path, archive, result, patience_s, writer) if archive else None
    if store is not None and store.imported_before():
        return result
    batch: list[Message] = []
    places: list[str] = []
    recalls: list[Recall] = []
    for item in _placed(source.read(path, reading), reading):
        if isinstance(item, Recall):
            recalls.append(item)
            continue
        if item.sender_name:  # at once: the next message may mention them
            reading.names[item.sender_id] = item.sender_name
        batch.append(item)
        places.append(reading.place)
        if len(batch) >= BATCH:
            _count(result, batch)
            if store is not None:
                store.messages(batch, places)
            batch, places = [], []
            progress(reading.done, reading.size)
    _count(result, batch)
    if not result.messages and not recalls:
        raise ImportFault(
            f"{path.name!r} holds no message of {source.title} that could be read{reasons(reading)}; export it again"
        )
    result.recalls = len(recalls)
    if store is not None:
        store.messages(batch, places)
        store.written()
        store.recalls(recalls)
        store.finished()
    progress(reading.size, reading.size)
    return result


def _placed(items: Iterator[Item], reading: Reading) -> Iterator[Item]:
    """What is read, in the scene that the owner named; the messages of a second chat are counted out."""
    scene, first = reading.told.scene, None
    for item in items:
        if scene is None:
            yield item
            continue
        first = first or item.scene
        if item.scene != first:
            reading.skip(f"another chat than the first, which --scene {scene} is")
        elif isinstance(item, Recall):
            yield replace(item, scene=scene)
        else:
            yield replace(item, scene=scene, scene_name="" if scene.private else item.scene_name)


def reasons(reading: Reading) -> str:
    """What was left out most, with its places, to go on a sentence with; nothing where nothing was."""
    if not reading.skipped:
        return ""
    worst = (f"{n} × {why} ({', '.join(reading.places[why])})" for why, n in reading.skipped.most_common(_REASONS_TOLD))
    return f": {'; '.join(worst)}"


def source_of(path: Path, name: str) -> str:
    """Whose history a path's is, for the archive: by format, file name and place; `nt_msg.db` is every device's name.

    Args:
        path: a file or folder.
        name: the format's.
    """
    place = hashlib.blake2b(str(path.resolve().parent).encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
    return f"import:{name}:{path.name}:{place}"


class _Store:
    """The archive, as an import writes it: patient while somebody else holds it, and told apart by source."""

    def __init__(self, path: Path, archive: Archive, result: ImportResult, patience_s: float, writer: Executor) -> None:
        self._path, self._archive, self._result, self._patience_s = path, archive, result, patience_s
        self._intake = Intake(archive, source_of(path, result.source.name))
        self._digest = ledger.digest(path, result.source.name, result.reading.told)
        self._writer = writer
        self._written: Future[Taken] | None = None
        self._batch: tuple[Sequence[Message], Sequence[str]] = ((), ())

    def imported_before(self) -> bool:
        """Whether this very history was imported whole; the result then tells what it held."""
        found = self._patiently(lambda: self._intake.imported(self._digest))
        if found is None:
            return False
        self._result.before = found[0]
        ledger.recount(self._result, found[1])
        return True

    def messages(self, batch: Sequence[Message], places: Sequence[str]) -> None:
        """Store a batch, once the one before is in; it is written while the next one is read."""
        self.written()
        if batch:
            self._batch = (batch, places)
            self._written = self._writer.submit(self._patiently, partial(self._intake.take, batch))

    def written(self) -> None:
        """Wait for the batch being written; what the archive can never hold is counted with its place."""
        if self._written is None:
            return
        taken, self._written = self._written.result(), None
        self._result.added += taken.added
        self._result.same += taken.same
        if not taken.refused and not taken.withheld:
            return
        place_of = {id(m): place for m, place in zip(*self._batch, strict=True)}
        for message in taken.refused:
            self._archive.lost += 1
            self._result.reading.skip("refused by the archive", place_of[id(message)])
        for message, why in taken.withheld:
            self._result.reading.skip(why, place_of[id(message)])

    def recalls(self, recalls: Sequence[Recall]) -> None:
        """Take back what was taken back."""
        for start in range(0, len(recalls), BATCH):
            some = recalls[start : start + BATCH]
            self._archive.lost += self._patiently(partial(self._intake.take_back, some))

    def finished(self) -> None:
        """Note that the history was imported whole; one of which the archive refused something was not."""
        if not self._archive.lost:
            counted = without_people(ledger.counts(self._result), self._archive.optouts.was_forgotten)
            self._patiently(lambda: self._intake.finished(self._digest, counted))

    def _patiently(self, work: Callable[[], _T]) -> _T:
        """Do it when the archive can be had.

        Raises:
            ImportFault: the archive could not be had for `patience_s`.
        """
        give_up = time.monotonic() + self._patience_s
        while True:
            try:
                return work()
            except ArchiveBusy as e:
                if time.monotonic() >= give_up:
                    raise ImportFault(
                        f"the archive cannot be written: messages of {self._path.name!r} are not in it "
                        f"({self._result.added} new ones are); stop what holds it (a running twin, "
                        "a backup) or free disk space, then import again: nothing is added twice"
                    ) from e
                time.sleep(min(_POLL_S, self._patience_s))


def _count(result: ImportResult, batch: Sequence[Message]) -> None:
    if not batch:
        return
    result.messages += len(batch)
    result.senders.update(map(attrgetter("sender_id"), batch))
    result.scenes.update(map(attrgetter("scene"), batch))
    result.scene_names.update((m.scene, m.scene_name) for m in batch if m.scene_name and not m.scene.private)
    times = [m.time for m in batch]
    first, last = min(times).timestamp(), max(times).timestamp()
    before = result.span or (first, last)
    result.span = (min(before[0], first), max(before[1], last))


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
        "known_from_elsewhere": result.same,
        "imported_before": result.before and result.before.astimezone(zone).isoformat(timespec="seconds"),
        "recalls": result.recalls,
        "scenes": {str(scene): n for scene, n in result.scenes.most_common()},
        "scene_names": {str(scene): name for scene in result.scenes if (name := _scene_name(result, scene))},
        "scenes_by_name": [str(scene) for scene, _ in result.scenes.most_common() if _by_name(scene, result.stem)],
        "people": {s: {"name": reading.names.get(s, ""), "messages": n} for s, n in result.senders.most_common(20)},
        "span": span,
        "me": mine,
        "my_messages": result.senders.get(mine or "", 0),
        "me_too": {other: result.senders[other] for other in _namesakes(result, mine)},
        "skipped": {why: {"count": n, "places": reading.places[why]} for why, n in reading.skipped.most_common()},
    }


def _namesakes(result: ImportResult, mine: str | None) -> list[str]:
    """Other ids under which the owner seems to speak: QQ's own export has names in private chats, numbers in groups.

    Two numbers that bear one name may be two people: they are no namesakes.
    """
    names = result.reading.names
    if mine is None or mine not in result.senders:
        return []
    name = names.get(mine, mine)
    others = [who for who in result.senders if who != mine and names.get(who, who) == name]
    if mine != name:
        return [who for who in others if who == name]
    return others if len(others) == 1 else []


def _scene_name(result: ImportResult, scene: Scene) -> str:
    """A group's name, or that of the other side."""
    return (result.reading.names if scene.private else {}).get(scene.id, "") or result.scene_names.get(scene, "")


def _by_name(scene: Scene, stem: str) -> bool:
    """Whether a scene seems to bear the name of a file or chat, or QQ's inner id of a peer, for want of a number."""
    return scene.id == stem or scene.id.startswith("u_") or not scene.id.isascii() or " " in scene.id


def in_words(shown: dict[str, Any], name: str, *, dry_run: bool, personas: Mapping[str, Collection[str]] = {}) -> str:
    """A summary as a person reads it.

    Args:
        shown: of `summary`.
        name: of the history.
        dry_run: nothing was stored.
        personas: the people of each persona there is already.
    """
    verb = "would be imported" if dry_run else f"read, {shown['added']} new"
    if shown["known_from_elsewhere"]:
        verb += f", {shown['known_from_elsewhere']} known from other sources"
    if shown["imported_before"]:
        verb = f"were imported on {shown['imported_before']}; the file is unchanged, nothing was read again"
    mine = f"{shown['me']} with {many(shown['my_messages'], 'message')}{_too(shown['me_too'])}"
    lines = [
        f"{name}: {shown['format']}; {many(shown['messages'], 'message')} {verb}; {many(shown['recalls'], 'recall')}",
        *([f"  {_scenes(shown)}; {' – '.join(shown['span'])}"] if shown["scenes"] else []),
        f"  people: {_people(shown['people'])}",
        f"  you are {mine} (else: --me NUMBER)"
        if shown["me"]
        else "  which of these people you are is not told: say it with --me NUMBER",
    ]
    if named := shown["scenes_by_name"]:
        some = ", ".join(named[:_PEOPLE_TOLD]) + (", …" if named[_PEOPLE_TOLD:] else "")
        lines.append(
            f"  only their name is known: {some}; what other sources tell of such a chat under its number stands "
            "beside it, twice; if you know it, import that chat alone with --scene private:NUMBER or group:NUMBER"
        )
    lines += [
        f"  {_left_out(why, left['count'])} ({', '.join(left['places'])})" for why, left in shown["skipped"].items()
    ]
    if not dry_run:
        called = shown["people"].get(shown["me"], {}).get("name")
        display = f" --display-name {shlex.quote(called)}" if called else ""
        people = shlex.quote(",".join((shown["me"], *shown["me_too"]))) if shown["me"] else "NUMBER"
        learning = [f"twin night --persona {name}" for name, people in personas.items() if shown["me"] in people]
        new = f"twin persona new NAME --people {people}{display}, then twin night --persona NAME"
        lines.append(f"  next: {' or '.join(learning) or new}")
    return "\n".join(lines)


def _left_out(why: str, count: int) -> str:
    if why.startswith(DAMAGED):
        return f"left out an unknown number of messages, in {many(count, 'place')}: {why}"
    return f"left out {count}: {why}"


def _too(namesakes: Mapping[str, int]) -> str:
    return "".join(f", and {who}, who bears the same name, with {many(n, 'message')}" for who, n in namesakes.items())


def _scenes(shown: Mapping[str, Any]) -> str:
    """How many scenes there are, and the largest of them."""
    told = []
    for scene, count in list(shown["scenes"].items())[:_SCENES_TOLD]:
        kind, _, who = scene.partition(":")
        told.append(f"{kind} {speakers.in_words([(who, shown['scene_names'].get(scene, ''), count)])}")
    more = len(shown["scenes"]) - len(told)
    return f"{many(len(shown['scenes']), 'scene')}: {', '.join(told)}" + (f", and {more} more" if more else "")


def _people(people: Mapping[str, Mapping[str, Any]]) -> str:
    """Who speaks most, with the ids that `twin persona new --people` takes."""
    told = list(people.items())[:_PEOPLE_TOLD]
    shown = speakers.in_words((sender, p["name"], p["messages"]) for sender, p in told)
    return shown + (", …" if len(people) > _PEOPLE_TOLD else "")
