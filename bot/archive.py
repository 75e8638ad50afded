"""The message store: append, window, recall, decisions, and what the twin was doing in a scene.

SQLAlchemy Core over SQLite (WAL) or PostgreSQL. A message is stored once by (scene, message_id), so a second
import and a replayed event add nothing. Reading order is (time, the client's own sequence, arrival): OneBot's time
has whole seconds, and frames overtake each other.

Every method is synchronous and short (on SQLite under a millisecond; a window of 360 messages takes some), so the
daemon calls them on its event loop.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time as clock
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.util import CommandError
from loguru import logger
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from bot.errors import ArchiveBusy, ArchiveError
from bot.message import Message, Origin, Scene, as_told
from bot.optouts import OptOuts, without_words
from bot.rows import (
    ORDER,
    UNSTORABLE,
    decisions_table,
    insert,
    is_replay,
    message_of,
    messages_of,
    messages_table,
    milliseconds,
    named,
    scene_log_table,
    take_back,
    time_of,
)

WAITING_MAX = 20_000
"""Messages held in memory while the store cannot be written; at 1 KB each, 20 MB."""

_TABLES = ("messages", "decisions", "scene_log", "imports", "same_messages", "optouts")
"""Every table of the schema."""
_LATEST_KEPT_S = 2.0
"""Seconds for which what was noted last is remembered: it is asked for four times a look."""
_FRESH_MAX = 2_000
"""Messages just stored that are not read back to be heard."""
SAID = ("spoke", "cut short")
"""Outcomes of decisions of which at least one bubble was sent."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What the twin decided at a decision point, and why.

    Args:
        scene: where.
        message_id: the last message of the burst decided on.
        time: when, aware UTC.
        persona: who decided.
        version: its version, None for the bare base.
        outcome: `spoke`, `silent`, `empty`, `cut short`; what stopped it: `cancelled` (by newer words), `held`, `off`,
            `recalled`, `optout`, `stopped`; what forbade it: `offline`, `muted`, `paused`, `budget`, `quiet`, `stale`,
            and to speak first also `off`, `held`, `busy`; or `failed: …`.
        why: numbers behind it (never message text).
    """

    scene: Scene
    message_id: str
    time: datetime
    persona: str
    version: str | None
    outcome: str
    why: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SceneSummary:
    """How much of a scene is stored: message count, first and last time (aware UTC)."""

    scene: Scene
    name: str
    messages: int
    first: datetime
    last: datetime


class Archive:
    """The message store at a SQLAlchemy URL; migrated to the newest schema when opened.

    Raises:
        ArchiveError: the store cannot be opened or migrated.
    """

    def __init__(self, url: str) -> None:
        self._url = sa.engine.make_url(url)
        self._waiting: deque[tuple[Message, str]] = deque()
        self._recalls: list[tuple[Scene, str, datetime]] = []
        self._fresh: OrderedDict[tuple[Scene, str], Message] = OrderedDict()
        self._renamed: dict[tuple[Scene, str], str] = {}
        """Of what was written last, the ids that had been met before, and those they are stored under."""
        self._log: deque[tuple[sa.Table, dict[str, Any]]] = deque(maxlen=WAITING_MAX)
        self._latest: dict[tuple[Scene, str], tuple[float, tuple[str, datetime] | None]] = {}
        self._held_up = False
        self._writing_back = threading.Lock()
        self.lost = 0
        """Messages dropped: beyond `WAITING_MAX` while the store was broken, or of a kind it can never hold."""
        try:
            if self._url.get_backend_name() == "sqlite" and self._url.database:
                Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
            # Parameters are what people wrote: an error's text must not carry them into the log.
            self._engine = sa.create_engine(self._url, connect_args=self._connect_args(), hide_parameters=True)
            if self._url.get_backend_name() == "sqlite":
                sa.event.listen(self._engine, "connect", _sqlite_pragmas)
            self._migrate()
        except (SQLAlchemyError, OSError) as e:
            raise ArchiveError(f"the archive {self.shown} cannot be opened: {short(e)}") from e
        except CommandError as e:
            raise ArchiveError(
                f"the archive {self.shown} has a schema that is not known here ({e}): a newer qqtwin made it; "
                "update this one"
            ) from e
        self.optouts = OptOuts(self._engine)
        """Who is not to be learned from: their stored words read as if they were taken back."""

    def _connect_args(self) -> dict[str, Any]:
        return {"check_same_thread": False, "timeout": 0.25} if self._url.get_backend_name() == "sqlite" else {}

    @property
    def engine(self) -> sa.Engine:
        """Where the store is, for `bot.intake`."""
        return self._engine

    @property
    def shown(self) -> str:
        """Its URL without the password."""
        return repr(self._url.render_as_string(hide_password=True))

    def _migrate(self) -> None:
        config = AlembicConfig()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self._engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def checkpoint(self) -> None:
        """Write SQLite's log back into the file, beside whoever reads and writes; to be called in a thread.

        Where nobody does, a commit does it, once the log is long: 10 ms and more, in the middle of a message.
        """
        if self._url.get_backend_name() != "sqlite":
            return
        with contextlib.suppress(SQLAlchemyError), self._writing_back, self._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        """Write what still waits, if possible, and close the store."""
        self.flush()
        self._engine.dispose()

    @property
    def waiting(self) -> int:
        """Messages in memory because the store could not be written."""
        return len(self._waiting)

    @property
    def behind(self) -> bool:
        """Whether anything is in memory because the store could not be written."""
        return bool(self._waiting or self._recalls or self._log)

    # -- messages ---------------------------------------------------------------------------------

    def append(self, messages: Iterable[Message], source: str = "live") -> int:
        """Store messages not stored yet; gives how many were new.

        When the store cannot be written (disk full, locked), they wait in memory, are seen by `window`, and are
        written by the next call that can.
        """
        self._waiting.extend((m, source) for m in messages if not self.optouts.leaves_nothing(m.scene, m.id, m.time))
        while len(self._waiting) > WAITING_MAX:
            self._waiting.popleft()
            self.lost += 1
        return self.flush()

    def add(self, message: Message) -> bool:
        """Store one live message; False if it is a replay of one that is stored, or waits, already.

        `get` gives it for a while without asking the store, under the id it came with.

        Raises:
            ArchiveError: it cannot be written, and waits in memory.
        """
        if any(is_replay(message, m) for m, _ in self._waiting):
            return False
        self.flush()  # what waited is not counted with it
        new = self.append([message]) > 0 or self.waiting > 0
        if new:
            place = message.scene, message.id
            self._fresh[place] = replace(message, id=self._renamed.get(place, message.id))
            while len(self._fresh) > _FRESH_MAX:
                self._fresh.popitem(last=False)
        return new

    def flush(self) -> int:
        """Write what waits; gives how many messages were added, 0 if the store still refuses."""
        if not self.behind:
            return 0
        if self._held_up:  # `twin forget` may have been what held the archive
            self.reconsider()
        batch = list(self._waiting)
        self._renamed.clear()
        try:
            with self._engine.begin() as connection:
                added = sum(insert(connection, chunk, self._renamed) for chunk in _chunks(batch, 500))
                for recall in self._recalls:
                    take_back(connection, *recall)
                for table, row in self._log:
                    connection.execute(sa.insert(table).values(row))
        except OperationalError as e:
            logger.warning("archive not writable, {} messages wait in memory: {}", len(batch), short(e))
            self._held_up = True
            return 0
        except UNSTORABLE:
            return self._flush_singly()
        except SQLAlchemyError as e:
            raise ArchiveError(f"the archive {self.shown} cannot be written: {short(e)}") from e
        self._held_up = False
        self._waiting.clear()
        self._recalls.clear()
        self._log.clear()
        return added

    def _flush_singly(self) -> int:
        """Write one by one what could not be written together: one bad message must not hold up the others."""
        added = 0
        while self._waiting:
            try:
                with self._engine.begin() as connection:
                    added += insert(connection, [self._waiting[0]], self._renamed)
            except OperationalError:
                return added
            except UNSTORABLE as e:
                logger.error("a message cannot be stored and is dropped: {}", type(e).__name__)
                self.lost += 1
            self._waiting.popleft()
        while self._recalls:
            try:
                with self._engine.begin() as connection:
                    take_back(connection, *self._recalls[0])
            except OperationalError:
                return added
            except UNSTORABLE as e:
                logger.error("a recall cannot be stored and is dropped: {}", type(e).__name__)
            self._recalls.pop(0)
        while self._log:
            table, row = self._log[0]
            try:
                with self._engine.begin() as connection:
                    connection.execute(sa.insert(table).values(row))
            except OperationalError:
                return added
            except UNSTORABLE as e:
                logger.error("a row of {} cannot be stored and is dropped: {}", table.name, type(e).__name__)
            self._log.popleft()
        return added

    def recall(self, scene: Scene, message_id: str, time: datetime) -> bool:
        """Mark a message as taken back and forget its words; True if it was stored.

        An unknown id leaves a tombstone, so that a later backfill does not bring the words back. Like a message, a
        recall waits in memory while the store cannot be written. Of a private chat with somebody who was forgotten
        nothing is stored.
        """
        if self.optouts.leaves_nothing(scene, moment=time):
            return False
        scene = self.scene_of_recall(scene, message_id)
        self._fresh.pop((scene, as_told(message_id)), None)
        self._recalls.append((scene, message_id, time))
        try:
            stored = self.get(scene, message_id) is not None
        except ArchiveError:
            stored = False  # It cannot be read; the recall waits all the same.
        self.flush()
        return stored

    def scene_of_recall(self, scene: Scene, message_id: str) -> Scene:
        """Where a recalled message stands.

        `friend_recall` names the sender alone: of the account's own words that is not the friend they were said to.

        Args:
            scene: the group, or the private chat with the sender, as the notice reads.
            message_id: of the recalled message.
        """
        if not scene.private:
            return scene
        for m, _ in self._waiting:
            if m.scene.private and m.id == message_id and m.sender_id == scene.id:
                return m.scene
        c = messages_table.c
        own = (named(message_id), c.sender_id == scene.id, c.scene.startswith("private:"))
        try:
            rows = self._read(sa.select(c.scene).where(*own).order_by(c.time_ms.desc()).limit(1))
        except ArchiveError:
            return scene
        return Scene.parse(rows[0][0]) if rows else scene

    def stored_as(self, scene: Scene, message_id: str) -> str:
        """The id under which a message is stored that a client names: of several that had its id, the newest one's."""
        if any((m.scene, m.id) == (scene, message_id) for m, _ in self._waiting):
            return message_id
        c = messages_table.c
        try:  # sorted here: for the first by time SQLite would walk the whole scene
            rows = self._read(sa.select(c.time_ms, c.message_id).where(c.scene == str(scene), named(message_id)))
        except ArchiveError as e:
            logger.warning("whether an id was met before is not known: {}", e)
            return message_id
        return str(max(map(tuple, rows))[1]) if rows else message_id

    def get(self, scene: Scene, message_id: str) -> Message | None:
        """One message, or None."""
        found = next((m for m, _ in self._waiting if m.scene == scene and m.id == message_id), None)
        fresh = self._fresh.get((scene, message_id))
        if found is None and fresh is not None and self.optouts.kept(fresh)[0] == fresh:
            found = fresh  # else another process wrote down a wish, and the store is asked
        if found is None:
            c = messages_table.c
            rows = self._read(sa.select(messages_table).where(c.scene == str(scene), c.message_id == message_id))
            found = message_of(rows[0]) if rows else None
        if found is not None and message_id in self._taken_back(scene):
            return replace(found, recalled=True, text="", segments=(), mentions=())
        return without_words(found, named=True) if found is not None and self._is_hidden(found) else found

    def _is_hidden(self, message: Message) -> bool:
        """Whether a message is of somebody who opted out; what the twin says from their account is not."""
        return message.origin is Origin.HUMAN and message.sender_id in self.optouts.hidden()

    def _not_hidden(self) -> sa.ColumnElement[bool]:
        """The same of rows, turned round."""
        c, hidden = messages_table.c, self.optouts.hidden()
        return sa.or_(c.origin != Origin.HUMAN.value, c.sender_id.not_in(hidden)) if hidden else sa.true()

    def _taken_back(self, scene: Scene) -> set[str]:
        """Ids of a scene whose recall waits in memory."""
        return {message_id for place, message_id, _ in self._recalls if place == scene}

    def window(
        self, scene: Scene, limit: int, after: datetime | None = None, *, segments_of: str | None = None
    ) -> list[Message]:
        """The newest `limit` messages the model may see (not recalled, not system), oldest first.

        With the raw segments of texts that contain `segments_of` alone, if it is given: half of a look's time went
        into parsing them.
        """
        c = messages_table.c
        query = sa.select(*self._columns(segments_of)).where(
            c.scene == str(scene), c.recalled.is_(False), c.origin != Origin.SYSTEM.value, self._not_hidden()
        )
        if after is not None:
            query = query.where(c.time_ms > milliseconds(after))
        rows = self._read(query.order_by(*(column.desc() for column in ORDER)).limit(limit))
        found = messages_of(scene, reversed(rows))
        pending = [m for m, _ in self._waiting if m.scene == scene and m.origin is not Origin.SYSTEM]
        pending = [m for m in pending if not m.recalled and not self._is_hidden(m)]
        if pending:
            known = {m.id for m in found}
            found += [m for m in pending if m.id not in known and (after is None or m.time > after)]
            found.sort(key=lambda m: (m.time, m.seq or 0))
        gone = self._taken_back(scene)
        return [m for m in found if m.id not in gone][-limit:]

    def history(
        self, scene: Scene, until: datetime | None = None, *, recalled: bool = False, segments_of: str | None = None
    ) -> list[Message]:
        """All of a scene that may be learned from (not system), oldest first; what was taken back only if asked for.

        Without the raw segments: text is what is learned from, and to parse those of 300,000 messages takes seconds.
        Those of texts that contain `segments_of` are there if it is given.
        """
        c = messages_table.c
        query = sa.select(*self._columns(segments_of)).where(c.scene == str(scene), c.origin != Origin.SYSTEM.value)
        if not recalled:
            query = query.where(c.recalled.is_(False), self._not_hidden())
        if until is not None:
            query = query.where(c.time_ms <= milliseconds(until))
        found = messages_of(scene, self._read(query.order_by(*ORDER)))
        hidden = self.optouts.hidden()
        if not hidden:
            return found
        return [
            without_words(m, named=True) if m.sender_id in hidden and m.origin is Origin.HUMAN else m for m in found
        ]

    def times(self, scene: Scene, since: datetime) -> list[Message]:
        """Who spoke when in a scene after a moment (not system, not recalled), oldest first; without words."""
        c = messages_table.c
        query = sa.select(c.message_id, c.sender_id, c.time_ms, c.origin).where(
            c.scene == str(scene), c.origin != Origin.SYSTEM.value, c.recalled.is_(False),
            c.time_ms > milliseconds(since), self._not_hidden(),
        )  # fmt: skip
        rows = self._read(query.order_by(*ORDER))
        return [
            Message(key, scene, who, "", time_of(ms), "", Origin(origin)) for key, who, ms, origin in map(tuple, rows)
        ]

    def _columns(self, segments_of: str | None) -> tuple[sa.ColumnElement[Any], ...]:
        """What `messages_of` reads."""
        c = messages_table.c
        return (
            c.message_id, c.sender_id, c.sender_name, c.time_ms, c.text, c.origin, c.reply_to,
            sa.cast(c.mentions, sa.Text), c.recalled, c.seq, c.scene_name, self._segments_column(segments_of),
        )  # fmt: skip

    @staticmethod
    def _segments_column(of: str | None) -> sa.ColumnElement[Any]:
        """Raw segments as text where the message's text contains `of`, else NULL."""
        if of is None:
            return sa.null()
        c = messages_table.c
        return sa.case((c.text.contains(of, autoescape=True), sa.cast(c.segments, sa.Text)), else_=sa.null())

    def scenes(self) -> list[SceneSummary]:
        """Every scene with its size, largest first."""
        c = messages_table.c
        query = sa.select(
            c.scene, sa.func.max(c.scene_name), sa.func.count(), sa.func.min(c.time_ms), sa.func.max(c.time_ms)
        ).group_by(c.scene)
        rows = self._read(query.order_by(sa.func.count().desc(), c.scene))
        return [SceneSummary(Scene.parse(s), n, k, time_of(a), time_of(b)) for s, n, k, a, b in map(tuple, rows)]

    def name_of(self, sender_id: str, scene: Scene | None = None) -> str | None:
        """The newest name somebody used (in a scene, if given); None if there is none or the store cannot be read."""
        c = messages_table.c
        query = sa.select(c.sender_name).where(c.sender_id == sender_id, c.sender_name != "")
        if scene is not None:
            query = query.where(c.scene == str(scene))
        try:
            rows = self._read(query.order_by(c.time_ms.desc()).limit(1))
        except ArchiveError as e:
            logger.warning("a name was not looked up: {}", e)
            return None
        return rows[0][0] if rows else None

    def people(self, limit: int) -> list[tuple[str, str, int]]:
        """Who said most, as (id, newest name or "", messages), most messages first."""
        c = messages_table.c
        query = sa.select(c.sender_id, sa.func.count()).where(
            c.origin == Origin.HUMAN.value, c.recalled.is_(False), self._not_hidden()
        )  # fmt: skip
        rows = self._read(query.group_by(c.sender_id).order_by(sa.func.count().desc(), c.sender_id).limit(limit))
        return [(who, self.name_of(who) or "", n) for who, n in map(tuple, rows)]

    def containing(self, text: str, sender_ids: Collection[str], limit: int) -> list[Message]:
        """The newest messages of these people that contain a text, newest first."""
        c = messages_table.c
        query = sa.select(messages_table).where(
            c.sender_id.in_(sender_ids), c.text.contains(text, autoescape=True), c.origin == Origin.HUMAN.value,
            self._not_hidden(),
        )  # fmt: skip
        return [message_of(row) for row in self._read(query.order_by(c.time_ms.desc()).limit(limit))]

    def speakers(self, scene: Scene, limit: int = 200) -> dict[str, set[str]]:
        """Names used among the newest `limit` messages of a scene, each with the ids that bear it."""
        names: dict[str, set[str]] = {}
        for message in self.window(scene, limit):
            if message.sender_name:
                names.setdefault(message.sender_name, set()).add(message.sender_id)
        return names

    def last_spoke(self, scene: Scene, sender_ids: Sequence[str], before: datetime) -> datetime | None:
        """When one of `sender_ids` last spoke in a scene before a moment, or None."""
        c = messages_table.c
        query = sa.select(sa.func.max(c.time_ms)).where(
            c.scene == str(scene), c.sender_id.in_(sender_ids), c.time_ms < milliseconds(before)
        )
        newest = self._read(query)[0][0]
        return None if newest is None else time_of(newest)

    def last_before(self, scene: Scene, before: datetime) -> datetime | None:
        """When anything was stored of a scene last before a moment, or None."""
        c = messages_table.c
        query = sa.select(sa.func.max(c.time_ms)).where(c.scene == str(scene), c.time_ms < milliseconds(before))
        newest = self._read(query)[0][0]
        return None if newest is None else time_of(newest)

    def count(self, sender_ids: Sequence[str], after: datetime | None = None) -> int:
        """Human messages of these people, optionally since a moment."""
        c = messages_table.c
        query = sa.select(sa.func.count()).where(
            c.sender_id.in_(sender_ids), c.origin == Origin.HUMAN.value, c.recalled.is_(False), self._not_hidden()
        )
        if after is not None:
            query = query.where(c.time_ms > milliseconds(after))
        return int(self._read(query)[0][0])

    def answer(self, bubble: Message) -> list[Message]:
        """Every bubble of the answer a twin's bubble belongs to, oldest first; those taken back without their words.

        They share the time of the first and the number of what was answered (bot/presence.py).
        """
        c = messages_table.c
        query = sa.select(messages_table).where(
            c.scene == str(bubble.scene), c.time_ms == milliseconds(bubble.time),
            c.seq.is_not_distinct_from(bubble.seq), c.origin == Origin.TWIN.value,
        )  # fmt: skip
        found = [message_of(row) for row in self._read(query.order_by(c.pk))]
        known, gone = {m.id for m in found}, self._taken_back(bubble.scene)
        for m, _ in self._waiting:
            if (m.scene, m.time, m.seq, m.origin) == (bubble.scene, bubble.time, bubble.seq, Origin.TWIN):
                found += [m] if m.id not in known else []
        return [replace(m, recalled=True, text="", segments=()) if m.id in gone else m for m in found]

    def retell(self, scene: Scene, message_id: str, text: str) -> None:
        """Give a stored message another text, such as the words of a voice message; one taken back stays without.

        Args:
            scene: where.
            message_id: as the client names it.
            text: canonical text.
        """
        if (fresh := self._fresh.get((scene, message_id))) is not None:
            self._fresh[scene, message_id] = replace(fresh, text=text)
        for place, (m, source) in enumerate(self._waiting):
            if m.scene == scene and m.id == message_id:
                self._waiting[place] = (replace(m, text=text), source)
                return
        c = messages_table.c
        where = (c.scene == str(scene), c.message_id == self.stored_as(scene, message_id), c.recalled.is_(False))
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.update(messages_table).where(*where).values(text=text))
        except (SQLAlchemyError, *UNSTORABLE) as e:
            raise ArchiveError(f"the archive {self.shown} cannot be written: {short(e)}") from e

    def sent_since(self, time: datetime) -> list[tuple[str, Scene, datetime]]:
        """From which account, where and when the program sent something after a moment; in order.

        That is bubbles, answers to commands and reports.

        Its own lines bear no name, unlike the commands people typed, which are kept as `system`, too.
        """
        c = messages_table.c
        ours = sa.or_(
            c.origin == Origin.TWIN.value,
            sa.and_(c.origin == Origin.SYSTEM.value, c.sender_name == "", c.sender_id != "", c.source == "live"),
        )
        query = sa.select(c.sender_id, c.scene, c.time_ms).where(ours, c.time_ms > milliseconds(time))
        rows = map(tuple, self._read(query.order_by(c.time_ms)))
        return [(account, Scene.parse(scene), time_of(ms)) for account, scene, ms in rows]

    # -- decisions --------------------------------------------------------------------------------

    def decide(self, decision: Decision) -> None:
        """Store a decision beside the messages; like a message, it waits in memory while the store refuses."""
        if self.optouts.leaves_nothing(decision.scene):
            return
        of = "" if self.optouts.leaves_nothing(decision.scene, decision.message_id) else decision.message_id
        row = {
            "scene": str(decision.scene), "message_id": of, "time_ms": milliseconds(decision.time),
            "persona": decision.persona, "version": decision.version, "outcome": decision.outcome, "why": decision.why,
        }  # fmt: skip
        self._log.append((decisions_table, row))
        self.flush()

    def decisions(self, scene: Scene, limit: int = 1) -> list[Decision]:
        """The newest decisions of a scene, newest first."""
        c = decisions_table.c
        query = sa.select(decisions_table).where(c.scene == str(scene)).order_by(c.time_ms.desc(), c.pk.desc())
        rows = [r._asdict() for r in reversed(self._read(query.limit(limit)))]
        rows += [row for table, row in list(self._log) if table is decisions_table and row["scene"] == str(scene)]
        columns = ("message_id", "time_ms", "persona", "version", "outcome", "why")
        newest = [[r[name] for name in columns] for r in rows[: -limit - 1 : -1]]
        return [Decision(scene, of, time_of(ms), *rest) for of, ms, *rest in newest]

    def decisions_since(self, time: datetime, scene: Scene | None = None) -> list[Decision]:
        """Every decision since a moment (in a scene, if given), oldest first."""
        c = decisions_table.c
        query = sa.select(decisions_table).where(c.time_ms >= milliseconds(time))
        if scene is not None:
            query = query.where(c.scene == str(scene))
        rows = self._read(query.order_by(c.time_ms, c.pk))
        return [
            Decision(Scene.parse(r.scene), r.message_id, time_of(r.time_ms), r.persona, r.version, r.outcome, r.why)
            for r in rows
        ]

    def decision_on(self, scene: Scene, message_id: str) -> Decision | None:
        """The newest decision on a message or a burst that it is part of; None if nothing was decided on it.

        Of a message of the twin's it is the one whose answer that belongs to.
        """
        about = self.get(scene, message_id)
        if about is None:
            return None
        c = decisions_table.c
        query = sa.select(decisions_table).where(c.scene == str(scene))
        if about.origin is Origin.TWIN:
            # A decision is stored when its answer ends: the first that spoke after the bubble.
            query = query.where(c.time_ms >= milliseconds(about.time), c.outcome.in_(SAID))
            query = query.order_by(c.time_ms, c.pk)
        else:
            query = query.where(c.message_id == message_id).order_by(c.time_ms.desc(), c.pk.desc())
        rows = self._read(query.limit(1))
        if not rows:
            return self._decision_after(about) if about.origin is not Origin.TWIN else None
        r = rows[0]
        return Decision(scene, r.message_id, time_of(r.time_ms), r.persona, r.version, r.outcome, r.why)

    def _decision_after(self, about: Message) -> Decision | None:
        """The decision on a burst that a message is part of, but not the last of."""
        d, m = decisions_table.c, messages_table.c
        # Of what was said no earlier: a decision on words before it may have ended after it came.
        decided = (m.scene == d.scene, m.message_id == d.message_id, m.time_ms >= milliseconds(about.time))
        following = (
            sa.select(decisions_table, m.time_ms.label("of_ms"))
            .where(d.scene == str(about.scene), d.time_ms >= milliseconds(about.time), *decided)
            .order_by(d.time_ms, d.pk).limit(1)
        )  # fmt: skip
        rows = self._read(following)
        if not rows:
            return None
        r = rows[0]
        burst = (
            sa.select(m.message_id)
            .where(m.scene == str(about.scene), m.origin == Origin.HUMAN.value, m.time_ms <= r.of_ms)
            .order_by(*(column.desc() for column in ORDER)).limit(r.why.get("burst", 0))
        )  # fmt: skip
        if about.id not in {row.message_id for row in self._read(burst)}:
            return None
        return Decision(about.scene, r.message_id, time_of(r.time_ms), r.persona, r.version, r.outcome, r.why)

    # -- what the twin was doing ------------------------------------------------------------------

    def note(self, scene: Scene, kind: str, value: str, time: datetime) -> None:
        """Log a change in a scene: kind `state` (on, off, held), `persona` (a name) or `memory` (clear).

        Like a message, it waits in memory while the store cannot be written.
        """
        if self.optouts.leaves_nothing(scene):
            return
        self._latest.pop((scene, kind), None)
        self._log.append(
            (scene_log_table, {"scene": str(scene), "kind": kind, "value": value, "time_ms": milliseconds(time)})
        )
        self.flush()

    def latest(self, scene: Scene, kind: str) -> tuple[str, datetime] | None:
        """The newest value of a kind and when it was set, or None; what another process set, some seconds later."""
        asked, found = self._latest.get((scene, kind), (-math.inf, None))
        if clock.monotonic() - asked > _LATEST_KEPT_S:
            log = self.timeline(scene, kind, limit=1)
            found = (log[-1][1], log[-1][0]) if log else None
            self._latest[scene, kind] = clock.monotonic(), found
        return found

    def timeline(self, scene: Scene, kind: str, limit: int | None = None) -> list[tuple[datetime, str]]:
        """All (or the newest `limit`) changes of a kind in a scene, oldest first."""
        c = scene_log_table.c
        query = sa.select(c.time_ms, c.value).where(c.scene == str(scene), c.kind == kind)
        rows = self._read(query.order_by(c.time_ms.desc(), c.pk.desc()).limit(limit))
        found = [(t, value) for t, value in reversed(rows)]
        waiting = [row for table, row in list(self._log) if table is scene_log_table]
        found += [(r["time_ms"], r["value"]) for r in waiting if (r["scene"], r["kind"]) == (str(scene), kind)]
        found.sort(key=lambda change: change[0])
        return [(time_of(t), value) for t, value in found[-limit if limit else 0 :]]

    def noted(self, kind: str, scene: Scene | None = None) -> list[tuple[Scene, datetime, str]]:
        """Every value of a kind in all scenes (or one) with when it was set, oldest first."""
        c = scene_log_table.c
        query = sa.select(c.scene, c.time_ms, c.value).where(c.kind == kind)
        if scene is not None:
            query = query.where(c.scene == str(scene))
        found = [tuple(row) for row in self._read(query.order_by(c.time_ms, c.pk))]
        waiting = [row for table, row in list(self._log) if table is scene_log_table and row["kind"] == kind]
        found += [(r["scene"], r["time_ms"], r["value"]) for r in waiting if scene in (None, Scene.parse(r["scene"]))]
        return [(Scene.parse(place), time_of(ms), value) for place, ms, value in found]

    def unnote(self, kind: str, rows: Iterable[tuple[Scene, str]]) -> int:
        """Delete values of a kind for good; gives how many rows that were.

        Raises:
            ArchiveError: the store cannot be written.
        """
        self.flush()
        self._latest.clear()
        c, gone = scene_log_table.c, 0
        try:
            with self._engine.begin() as connection:
                for scene, value in set(rows):
                    which = (c.scene == str(scene), c.kind == kind, c.value == value)
                    gone += connection.execute(sa.delete(scene_log_table).where(*which)).rowcount
        except SQLAlchemyError as e:
            raise ArchiveError(f"the archive {self.shown} cannot be written: {short(e)}") from e
        return gone

    # -- what must not be here any more -----------------------------------------------------------

    def withhold(self, person: str, since: datetime, until: datetime | None) -> None:
        """Take the words off what somebody said since they opted out, where they came before the wish was read.

        Of the wish's own second, QQ's shortest, what was stored before it counts as said before it.

        Args:
            person: QQ number.
            since: when they opted out.
            until: when they were back; None: they are not.

        Raises:
            ArchiveBusy: it cannot be written just now.
        """
        self.flush()
        self._fresh.clear()
        if self.behind:
            raise ArchiveBusy(f"the archive {self.shown} cannot be written just now")
        c = messages_table.c
        when = [c.time_ms > milliseconds(since), *([c.time_ms < milliseconds(until)] if until is not None else [])]
        blank: dict[str, Any] = {
            "sender_name": "", "text": "", "reply_to": None, "mentions": [], "segments": [], "recalled": True,
        }  # fmt: skip
        said = (c.sender_id == person, c.origin == Origin.HUMAN.value, *when)
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.update(messages_table).where(*said).values(blank))
        except SQLAlchemyError as e:
            raise ArchiveBusy(f"the archive {self.shown} cannot be written: {short(e)}") from e

    def reconsider(self) -> None:
        """Treat what waits in memory as it is to be treated since somebody asked to be forgotten."""
        self._fresh.clear()
        self._latest.clear()
        gone = self.optouts.leaves_nothing
        waiting = [(self.optouts.kept(m)[0], source) for m, source in self._waiting]
        self._waiting = deque((m, source) for m, source in waiting if m is not None)
        self._recalls = [r for r in self._recalls if not gone(r[0], moment=r[2])]
        rows = [(t, row) for t, row in self._log if not gone(Scene.parse(row["scene"]))]
        self._log = deque(rows, maxlen=WAITING_MAX)

    def compact(self) -> None:
        """Write the whole store anew, so that nothing deleted is left in a page or in SQLite's write-ahead log.

        Takes a second for some 100 MB, in which nobody else can write; to be called in a thread.

        Raises:
            ArchiveBusy: somebody else reads or writes; the same call may work later. What was deleted reads as zeros in
                SQLite all the same, once its log is written back.
        """
        try:
            with self._engine.connect() as connection:
                connection = connection.execution_options(isolation_level="AUTOCOMMIT")
                if connection.dialect.name == "postgresql":
                    connection.exec_driver_sql(f"VACUUM (FULL) {', '.join(_TABLES)}")
                    return
                connection.exec_driver_sql("VACUUM")
                with self._writing_back:  # of two at once the second is refused
                    busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0]
        except SQLAlchemyError as e:
            raise ArchiveBusy(f"the archive {self.shown} cannot be written anew: {short(e)}") from e
        if busy:
            raise ArchiveBusy(f"the archive {self.shown} cannot be written anew: its write-ahead log is being read")

    # -- below ------------------------------------------------------------------------------------

    def _read(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        try:
            with self._engine.connect() as connection:
                return connection.execute(query).all()
        except (SQLAlchemyError, *UNSTORABLE) as e:
            raise ArchiveError(f"the archive {self.shown} cannot be read: {short(e)}") from e


def _sqlite_pragmas(connection: Any, _: Any) -> None:
    # NORMAL under WAL survives kill -9 (only a power cut may lose the last transactions) and does not fsync each one.
    # What is deleted or taken back is overwritten with zeros. The log is written back beside (`Archive.checkpoint`).
    for pragma in (
        "journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "secure_delete=ON", "wal_autocheckpoint=8000",
    ):  # fmt: skip
        connection.execute(f"PRAGMA {pragma}")


def short(error: Exception) -> str:
    """A database's error in one line, without what was to be written."""
    cause = getattr(error, "orig", None) or error
    return f"{type(cause).__name__}: {cause}".splitlines()[0][:200]


def _chunks(items: list[tuple[Message, str]], size: int) -> Iterator[list[tuple[Message, str]]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
