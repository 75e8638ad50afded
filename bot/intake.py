"""Histories → archive, many messages at once and none twice.

One transaction a batch; a batch whose messages are all new costs one statement. Else its ids are looked up first,
then, where other sources told of the same stretch of a scene, their messages (bot/sameness.py). Which message stands
for which is stored, so that quotes and recalls find it and a second import knows it.

On SQLite a batch is one statement over a JSON array: while it runs, in C, the interpreter is free to read the next
batch on another core (docs/decisions.md).
"""

import hashlib
import json
import operator
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from bot.archive import Archive, short
from bot.errors import ArchiveBusy, ArchiveError
from bot.events import Recall
from bot.message import Message, Origin, Scene
from bot.optouts import Why
from bot.rows import COLUMNS, SAME_ID_MS, UNSTORABLE, messages_table, milliseconds, put, row_of, take_back, values_of
from bot.sameness import SENT_EARLY_S, SENT_LATE_S, Others, Stored, vaguely

_schema = sa.MetaData()
_pk = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
imports_table = sa.Table(
    "imports",
    _schema,
    sa.Column("pk", _pk, primary_key=True),
    *(sa.Column(n, sa.Text) for n in ("digest", "source")),
    sa.Column("time_ms", sa.BigInteger),
    sa.Column("summary", sa.JSON),
)
same_table = sa.Table(
    "same_messages",
    _schema,
    sa.Column("pk", _pk, primary_key=True),
    *(sa.Column(n, sa.Text) for n in ("scene", "message_id", "stored_as", "source")),
    sa.Column("time_ms", sa.BigInteger),
)
_INTO = f"INSERT INTO messages ({', '.join(COLUMNS)})"
_ONCE = "ON CONFLICT (scene, message_id) DO NOTHING"
_SQLITE_ROWS = f"{_INTO} VALUES ({', '.join('?' * len(COLUMNS))}) {_ONCE}"
_FROM_JSON = ", ".join(f"json_extract(value, '$[{i}]')" for i in range(len(COLUMNS)))
_SQLITE_BATCH = f"{_INTO} SELECT {_FROM_JSON} FROM json_each(?) WHERE true {_ONCE}"
_NUL = "\\u0000"
_SQLITE_PRAGMAS = ("cache_size=-32000", "wal_autocheckpoint=4000")
"""32 MB of pages and 16 MB of log: with SQLite's own 2 and 4, three indexes are read and written over and over (5.1 s
of 300,000 messages became 3.0)."""
_DAY_MS = 86_400_000
_IDS = 500
"""Ids asked for at once."""


@dataclass(slots=True)
class Taken:
    """What became of a batch: how many were new, were another source's; what can never be held, or may not be."""

    added: int = 0
    same: int = 0
    refused: list[Message] = field(default_factory=list)
    withheld: list[tuple[Message, Why]] = field(default_factory=list)


class Intake:
    """One source's messages on their way into an archive.

    Args:
        archive: where to.
        source: whose history: the same text for the same file. Only messages of other sources are looked at as
            possibly the same.
    """

    def __init__(self, archive: Archive, source: str) -> None:
        of_forgotten = any(archive.optouts.was_forgotten(number) for number in re.findall(r"\d+", source))
        self._archive, self._source = archive, without_file_name(source) if of_forgotten else source
        self._engine = archive.engine
        self._flavour = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        self._spans: dict[str, tuple[int, int]] | None = None
        self._all_new = True
        self._quotes_as_they_are: bool | None = None
        self._claimed_before: set[tuple[str, str]] = set()
        """(scene, id) in the archive of what the batch before told again: a second may go on in the next batch."""
        self._called: dict[Scene, dict[str, set[str]]] = defaultdict(dict)
        """What people who were forgotten are called in a scene."""

    # -- messages ---------------------------------------------------------------------------------

    def take(self, batch: Sequence[Message]) -> Taken:
        """Store what is not stored yet, in one transaction.

        Raises:
            ArchiveBusy: the archive cannot be written just now (locked, disk full). Taking the batch again later adds
                nothing twice.
            ArchiveError: it cannot be written.
        """
        self._archive.optouts.reload()  # the daemon may have written there since
        taken, said_as = Taken(), dict[int, Message]()
        kept = list(self._kept(batch, taken.withheld, said_as)) if self._archive.optouts.any else batch
        if kept:
            with self._busy():
                stored = self._take_or_halve(kept)
            taken.added, taken.same = stored.added, stored.same
            taken.refused = [said_as.get(id(m), m) for m in stored.refused]
        return taken

    def _kept(
        self, batch: Sequence[Message], withheld: list[tuple[Message, Why]], said_as: dict[int, Message]
    ) -> Iterator[Message]:
        """The batch as people who opted out or were forgotten let it be stored."""
        for message in batch:
            called = self._called[message.scene]
            kept, why = self._archive.optouts.kept(message, called)
            if why is not None:
                withheld.append((message, why))
                if why is Why.FORGOTTEN and message.sender_name:  # others may mention them by it
                    called.setdefault(message.sender_id, set()).add(message.sender_name)
            if kept is not None:
                said_as[id(kept)] = message
                yield kept

    def _take_or_halve(self, batch: Sequence[Message]) -> Taken:
        """One bad message must not hold up the others: it is found by halving."""
        try:
            return self._take(batch)
        except UNSTORABLE:
            if len(batch) == 1:
                return Taken(refused=list(batch))
        middle = len(batch) // 2
        one, other = self._take_or_halve(batch[:middle]), self._take_or_halve(batch[middle:])
        return Taken(one.added + other.added, one.same + other.same, one.refused + other.refused)

    def _take(self, batch: Sequence[Message]) -> Taken:
        with self._engine.connect() as connection:
            if self._flavour is sqlite:
                for pragma in _SQLITE_PRAGMAS:
                    connection.exec_driver_sql(f"PRAGMA {pragma}")
            if self._spans is None:
                self._spans = self._others_spans(connection)
            if self._quotes_as_they_are is None:
                self._quotes_as_they_are = connection.execute(sa.select(same_table.c.pk).limit(1)).first() is None
            quotes = not self._quotes_as_they_are and any(m.reply_to for m in batch)
            if self._all_new and not quotes and not self._meets_others(batch):
                if self._insert(connection, batch) == len(batch):
                    connection.commit()
                    return Taken(len(batch))
                connection.rollback()
                self._all_new = False
            taken = self._sorted_out(connection, batch)
            connection.commit()
            self._all_new = taken.added == len(batch)
            return taken

    def _sorted_out(self, connection: sa.Connection, batch: Sequence[Message]) -> Taken:
        taken = Taken()
        known = _Known(connection, batch)
        others = self._others(connection, known.unknown(batch))
        claimed = set(known.claims(batch))
        for place, message_id in claimed | self._claimed_before:
            if place in others:
                others[place].claim(message_id)
        self._claimed_before = claimed
        fresh = [message for message in map(known.fresh, batch) if message is not None]
        found: dict[int, Stored] = {}
        for reads in (operator.eq, vaguely) if others else ():
            for at, message in enumerate(fresh):
                there = others.get(str(message.scene))
                if at not in found and there is not None and (stored := there.take(message, reads)) is not None:
                    found[at] = stored
                    known.same(str(message.scene), message.id, stored.id)
        new = [
            replace(message, reply_to=known.stands_as(str(message.scene), message.reply_to))
            for at, message in enumerate(fresh)
            if at not in found
        ]
        same = [
            {"scene": str(fresh[at].scene), "message_id": fresh[at].id, "stored_as": stored.id,
             "time_ms": stored.time_ms, "source": self._source}
            for at, stored in found.items()
        ]  # fmt: skip
        taken.added = self._insert(connection, new)
        taken.same = len(same)
        if same:
            self._quotes_as_they_are = False
            statement = self._flavour.insert(same_table).on_conflict_do_nothing(index_elements=["scene", "message_id"])
            connection.execute(statement, same)
        return taken

    def _insert(self, connection: sa.Connection, messages: Sequence[Message]) -> int:
        if not messages:
            return 0
        if self._flavour is sqlite:
            rows = [values_of(m, self._source) for m in messages]
            batch = json.dumps(rows, ensure_ascii=False)
            options = {"preserve_rowcount": True}
            if _NUL in batch:  # ends a text in SQLite's JSON
                return connection.exec_driver_sql(_SQLITE_ROWS, rows, execution_options=options).rowcount
            return connection.exec_driver_sql(_SQLITE_BATCH, (batch,), execution_options=options).rowcount
        return put(connection, [row_of(m, self._source) for m in messages])

    # -- other sources ----------------------------------------------------------------------------

    def _others_spans(self, connection: sa.Connection) -> dict[str, tuple[int, int]]:
        """First and last millisecond of what other sources told of each scene."""
        c = messages_table.c
        rows = connection.execute(
            sa.select(c.scene, sa.func.min(c.time_ms), sa.func.max(c.time_ms))
            .where(c.source != self._source)
            .group_by(c.scene)
        )
        return {
            scene: (first - SENT_EARLY_S * 1000, last + SENT_LATE_S * 1000) for scene, first, last in map(tuple, rows)
        }

    def _meets_others(self, batch: Iterable[Message]) -> bool:
        if not self._spans:
            return False
        return any(_within(self._spans.get(str(m.scene)), m) for m in batch)

    def _others(self, connection: sa.Connection, messages: Iterable[Message]) -> dict[str, Others]:
        """What other sources told around these messages, by scene."""
        by_scene: dict[str, list[int]] = defaultdict(list)
        for message in messages:
            if _within((self._spans or {}).get(str(message.scene)), message):
                by_scene[str(message.scene)].append(milliseconds(message.time))
        found = {}
        for scene, times in by_scene.items():
            stored: dict[str, Stored] = {}
            for first, last in _stretches(sorted(times)):
                stored.update((s.id, s) for s in self._stored(connection, scene, first, last))
            if stored:
                found[scene] = Others.of(sorted(stored.values(), key=lambda s: s.time_ms))
        return found

    def _stored(self, connection: sa.Connection, scene: str, first_ms: int, last_ms: int) -> Iterator[Stored]:
        c, t = messages_table.c, same_table.c
        here = (c.scene == scene, c.time_ms.between(first_ms, last_ms))
        columns = (c.message_id, c.sender_id, c.time_ms, c.text, c.seq, c.recalled, c.origin)
        taken = set(
            connection.scalars(
                sa.select(t.stored_as).where(
                    t.scene == scene, t.time_ms.between(first_ms, last_ms), t.source == self._source
                )
            )
        )
        rows = connection.execute(sa.select(*columns).where(*here, c.source != self._source)).all()
        ours = [r.message_id for r in rows if r.origin != Origin.HUMAN.value]
        sent: dict[str, Any] = {}
        for some in _chunks(ours):
            query = sa.select(c.message_id, c.segments).where(c.scene == scene, c.message_id.in_(some))
            sent |= {r.message_id: r.segments for r in connection.execute(query)}
        for row in rows:
            message_id, sender, time_ms, text, seq, recalled, origin = row
            yield Stored(
                message_id, sender, time_ms, text, seq, recalled, Origin(origin), tuple(sent.get(message_id, ())),
                message_id in taken,
            )  # fmt: skip

    # -- recalls ----------------------------------------------------------------------------------

    def take_back(self, recalls: Sequence[Recall]) -> int:
        """Take back what a history says was taken back, in one transaction; gives how many the archive cannot hold.

        What is taken back is the message of that id, the one stored in its place, or, of a group, another source's of
        the same number and day; of what is not there the id is remembered, so that no later import brings it.

        Raises:
            ArchiveBusy: the archive cannot be written just now. Doing it again later is the same.
            ArchiveError: it cannot be written.
        """
        try:
            with self._busy(), self._engine.begin() as connection:
                for recall in recalls:
                    if self._archive.optouts.leaves_nothing(recall.scene, moment=recall.time):
                        continue
                    # `friend_recall` names the sender for the scene; a history that names nobody knows the scene.
                    named = recall.operator_id and recall.scene.private
                    scene = self._archive.scene_of_recall(recall.scene, recall.message_id) if named else recall.scene
                    take_back(connection, scene, _standing(connection, scene, recall), recall.time)
        except UNSTORABLE:
            if len(recalls) == 1:
                return 1
            return sum(self.take_back([recall]) for recall in recalls)
        return 0

    # -- the ledger -------------------------------------------------------------------------------

    def imported(self, digest: str) -> tuple[datetime, dict[str, Any]] | None:
        """When a history of this digest was imported whole (aware UTC), and its summary; None if it was not.

        Raises:
            ArchiveBusy: the archive cannot be read just now.
            ArchiveError: it cannot be read.
        """
        c = imports_table.c
        with self._busy(), self._engine.connect() as connection:
            row = connection.execute(sa.select(c.time_ms, c.summary).where(c.digest == digest)).first()
        return None if row is None else (datetime.fromtimestamp(row.time_ms / 1000, UTC), row.summary)

    def finished(self, digest: str, summary: dict[str, Any]) -> None:
        """Note that a history was imported whole.

        Raises:
            ArchiveBusy: the archive cannot be written just now.
            ArchiveError: it cannot be written.
        """
        row = {
            "digest": digest, "source": self._source, "time_ms": milliseconds(datetime.now(UTC)),
            "summary": summary,
        }  # fmt: skip
        statement = self._flavour.insert(imports_table).on_conflict_do_nothing(index_elements=["digest"])
        with self._busy(), self._engine.begin() as connection:
            connection.execute(statement, row)

    def _busy(self) -> "_Faults":
        return _Faults(self._archive)


def without_file_name(source: str) -> str:
    """A source (`import:format:file:place`) with a hash for the file's name, which may say whose chat it is.

    The same for the same name: what a file of that name tells later is still the same source's.
    """
    *kind, name = source.split(":", 2)
    return ":".join((*kind, hashlib.sha256(name.encode()).hexdigest()[:12]))


def without_people(summary: dict[str, Any], gone: Callable[[str], bool]) -> dict[str, Any]:
    """What is noted of an imported history, without some people and private chats with them.

    Args:
        summary: of `Intake.finished`; its `senders`, `owners` and `names` are by QQ number, its `scenes` by scene.
        gone: whether to leave somebody out, by number.
    """
    left = {
        key: {who: value for who, value in summary[key].items() if not gone(who.removeprefix("private:"))}
        for key in ("senders", "owners", "names", "scenes")
        if isinstance(summary.get(key), dict)
    }
    return {**summary, **left}


class _Faults:
    """SQLAlchemy's errors as the archive's."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, OperationalError):
            raise ArchiveBusy(f"the archive {self._archive.shown} is busy: {short(error)}") from error
        if isinstance(error, SQLAlchemyError):
            raise ArchiveError(f"the archive {self._archive.shown} failed: {short(error)}") from error


class _Known:
    """What the archive knows of a batch's ids."""

    def __init__(self, connection: sa.Connection, batch: Sequence[Message]) -> None:
        c = messages_table.c
        self._stored: dict[tuple[str, str], tuple[int, bool]] = {}
        self._same: dict[tuple[str, str], str] = {}
        ids: dict[str, set[str]] = defaultdict(set)
        quoted: dict[str, set[str]] = defaultdict(set)
        for message in batch:
            ids[str(message.scene)].add(message.id)
            if message.reply_to:
                quoted[str(message.scene)].add(message.reply_to)
        for scene, wanted in ids.items():
            for some in _chunks(sorted(wanted)):
                rows = connection.execute(
                    sa.select(c.message_id, c.time_ms, c.recalled).where(c.scene == scene, c.message_id.in_(some))
                )
                self._stored |= {(scene, r.message_id): (r.time_ms, r.recalled) for r in rows}
        if connection.execute(sa.select(same_table.c.pk).limit(1)).first() is None:
            return
        for message in batch:
            ids[str(message.scene)].add(self._id(message))
        for scene, wanted in ids.items():
            same = _same_as(connection, scene, sorted(wanted | quoted[scene]))
            self._same |= {(scene, message_id): stored_as for message_id, stored_as in same.items()}

    def _id(self, message: Message) -> str:
        """Ids are 31-bit hashes: the same id at another time is another message, and gets its time."""
        stored, time_ms = self._stored.get((str(message.scene), message.id)), milliseconds(message.time)
        if stored is None or stored[1] or abs(stored[0] - time_ms) < SAME_ID_MS:
            return message.id
        return f"{message.id}@{time_ms // 1000}"

    def fresh(self, message: Message) -> Message | None:
        """The message with the id it is to be stored with; None if it is there, or was in the batch before."""
        place, own = str(message.scene), self._id(message)
        if (place, own) in self._same or (place, own) in self._stored:
            return None
        self._stored[place, own] = (milliseconds(message.time), False)
        return message if own == message.id else replace(message, id=own)

    def unknown(self, batch: Sequence[Message]) -> list[Message]:
        """Messages that may have to be stored."""
        places = ((m, (str(m.scene), self._id(m))) for m in batch)
        return [m for m, place in places if place not in self._stored and place not in self._same]

    def claims(self, batch: Sequence[Message]) -> Iterator[tuple[str, str]]:
        """(scene, id) in the archive of messages that are known by their ids."""
        for message in batch:
            place, own = str(message.scene), self._id(message)
            if (place, own) in self._same:
                yield place, self._same[place, own]
            elif (place, own) in self._stored:
                yield place, own

    def same(self, scene: str, message_id: str, stored_as: str) -> None:
        """Remember which stored message another id is."""
        self._same[(scene, message_id)] = stored_as

    def stands_as(self, scene: str, message_id: str | None) -> str | None:
        """The id a quoted message is stored under."""
        return message_id and self._same.get((scene, message_id), message_id)


def _standing(connection: sa.Connection, scene: Scene, recall: Recall) -> str:
    """The id under which the archive has what was taken back; the recall's own where it has nothing."""
    message_id, c = recall.message_id, messages_table.c
    if found := _same_as(connection, str(scene), [message_id]).get(message_id):
        return found
    here = sa.select(c.message_id).where(c.scene == str(scene))
    if recall.seq is None or connection.execute(here.where(c.message_id == message_id)).first() is not None:
        return message_id
    around = milliseconds(recall.time)
    same = here.where(
        c.time_ms.between(around - _DAY_MS, around + _DAY_MS), c.seq == recall.seq, c.origin == Origin.HUMAN.value
    )
    row = connection.execute(same.limit(1)).first()
    return message_id if row is None else str(row.message_id)


def _same_as(connection: sa.Connection, scene: str, ids: Sequence[str]) -> dict[str, str]:
    c = same_table.c
    found: dict[str, str] = {}
    for some in _chunks(ids):
        query = sa.select(c.message_id, c.stored_as).where(c.scene == scene, c.message_id.in_(some))
        found |= {row.message_id: row.stored_as for row in connection.execute(query)}
    return found


def _within(span: tuple[int, int] | None, message: Message) -> bool:
    return span is not None and span[0] <= message.time.timestamp() * 1000 <= span[1]


def _stretches(times: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Sorted milliseconds as stretches without long gaps, each with the room in which its messages can stand."""
    first = last = times[0]
    for time_ms in (*times[1:], None):
        if time_ms is None or time_ms - last > 2 * SENT_LATE_S * 1000:
            yield first - SENT_LATE_S * 1000, last + SENT_EARLY_S * 1000 + 999
            first = time_ms if time_ms is not None else first
        last = time_ms if time_ms is not None else last


def _chunks(items: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), _IDS):
        yield items[start : start + _IDS]
