"""The archive's tables, and messages as their rows.

Only what names a table's columns in SQL is here; what is asked of them is `bot.archive` and `bot.intake`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from loguru import logger
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, IntegrityError

from bot.message import Message, Origin, Scene, as_told

_schema = sa.MetaData()
_pk = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
messages_table = sa.Table(
    "messages",
    _schema,
    sa.Column("pk", _pk, primary_key=True),
    *(sa.Column(n, sa.Text) for n in ("scene", "message_id", "sender_id", "sender_name", "text", "origin")),
    *(sa.Column(n, sa.Text) for n in ("reply_to", "scene_name", "source")),
    sa.Column("seq", sa.BigInteger),
    sa.Column("time_ms", sa.BigInteger),
    sa.Column("mentions", sa.JSON),
    sa.Column("segments", sa.JSON),
    sa.Column("recalled", sa.Boolean),
)
COLUMNS = tuple(column.name for column in messages_table.columns if not column.primary_key)
"""Of a message, in the table's order."""
decisions_table = sa.Table(
    "decisions",
    _schema,
    sa.Column("pk", _pk, primary_key=True),
    *(sa.Column(n, sa.Text) for n in ("scene", "message_id", "persona", "version", "outcome")),
    sa.Column("time_ms", sa.BigInteger),
    sa.Column("why", sa.JSON),
)
scene_log_table = sa.Table(
    "scene_log",
    _schema,
    sa.Column("pk", _pk, primary_key=True),
    *(sa.Column(n, sa.Text) for n in ("scene", "kind", "value")),
    sa.Column("time_ms", sa.BigInteger),
)
_SEGMENTS_DEPTH = 100
"""Raw segments nested deeper are not kept: `json` recurses, on the stack of whoever reads them, too (OneBot has 10)."""
SAME_ID_MS = 60_000
"""Messages of one id are one message when their times differ by less."""
UNSTORABLE = (IntegrityError, DataError, ValueError, OverflowError, TypeError, RecursionError)
"""What a message raises that the store can never hold (PostgreSQL and NUL, a number of more than 64 bits)."""
_ONCE = {
    name: flavour.insert(messages_table).on_conflict_do_nothing(index_elements=["scene", "message_id"])
    for name, flavour in (("sqlite", sqlite), ("postgresql", postgresql))
}
ORDER = (messages_table.c.time_ms, messages_table.c.seq, messages_table.c.pk)


def insert(
    connection: sa.Connection, batch: Sequence[tuple[Message, str]], renamed: dict[tuple[Scene, str], str]
) -> int:
    """Insert what is new; gives how many that were.

    Ids are 31-bit hashes: the same id at another time is another message, and gets its time.

    Args:
        connection: in a transaction.
        batch: messages, and the source of each.
        renamed: is told under which id a message is stored whose own was met before.
    """
    if len(batch) == 1 and (added := put(connection, [row_of(*batch[0])])):
        return added  # nearly every live message: its id was never met
    c = messages_table.c
    by_scene: dict[str, list[str]] = {}
    for message, _ in batch:
        by_scene.setdefault(str(message.scene), []).append(message.id)
    known: dict[tuple[str, str], tuple[int, bool]] = {}
    for scene, ids in by_scene.items():
        rows = connection.execute(
            sa.select(c.message_id, c.time_ms, c.recalled).where(c.scene == scene, c.message_id.in_(ids))
        )
        known |= {(scene, r.message_id): (r.time_ms, r.recalled) for r in rows}
    values = []
    for message, source in batch:
        place, time_ms = (str(message.scene), message.id), milliseconds(message.time)
        stored = known.get(place)
        if stored is not None and (stored[1] or abs(stored[0] - time_ms) < SAME_ID_MS):
            continue
        if stored is not None:
            message = replace(message, id=f"{message.id}@{time_ms // 1000}")
            renamed[message.scene, as_told(message.id)] = message.id
        known.setdefault(place, (time_ms, False))
        values.append(row_of(message, source))
    return put(connection, values) if values else 0


def named(message_id: str) -> sa.ColumnElement[bool]:
    """Rows of the messages that a client names so (see `insert`); the bounds are there for the index alone."""
    c, met = messages_table.c, f"{message_id}@"
    bounds = c.message_id.between(message_id, f"{met}9999999999")
    return sa.and_(bounds, sa.or_(c.message_id == message_id, c.message_id.startswith(met, autoescape=True)))


def put(connection: sa.Connection, values: list[dict[str, Any]]) -> int:
    """Insert rows whose (scene, message_id) is not there; gives how many."""
    done = connection.execute(_ONCE[connection.dialect.name], values, execution_options={"preserve_rowcount": True})
    return done.rowcount


def take_back(connection: sa.Connection, scene: Scene, message_id: str, time: datetime) -> None:
    """Forget a message's words; of one that is not there, leave a tombstone."""
    c = messages_table.c
    blank = {"recalled": True, "text": "", "segments": [], "mentions": []}
    done = connection.execute(
        sa.update(messages_table).where(c.scene == str(scene), c.message_id == message_id).values(blank)
    )
    if done.rowcount:
        return
    connection.execute(
        sa.insert(messages_table).values(
            scene=str(scene), message_id=message_id, sender_id="", sender_name="", scene_name="",
            time_ms=milliseconds(time), origin=Origin.SYSTEM.value, source="recall", **blank,
        )
    )  # fmt: skip


def row_of(message: Message, source: str) -> dict[str, Any]:
    """A message as a row of `messages_table`."""
    row = _cells(message, source, list(message.mentions), _plain(message.segments))
    return dict(zip(COLUMNS, row, strict=True))


def values_of(message: Message, source: str) -> tuple[Any, ...]:
    """The same in the order of `COLUMNS`, with its JSON written out.

    Raises:
        OverflowError: its number has more than 64 bits.
    """
    if message.seq is not None and not -(1 << 63) <= message.seq < 1 << 63:
        raise OverflowError("seq")
    mentions = json.dumps(message.mentions) if message.mentions else "[]"
    return _cells(message, source, mentions, segments_json(message.segments) if message.segments else "[]")


def _cells(m: Message, source: str, mentions: Any, segments: Any) -> tuple[Any, ...]:
    """What a row holds, in the order of `COLUMNS`."""
    return (
        str(m.scene), m.id, m.sender_id, m.sender_name, m.text, m.origin.value, m.reply_to, m.scene_name, source, m.seq,
        milliseconds(m.time), mentions, segments, m.recalled,
    )  # fmt: skip


def segments_json(segments: Sequence[Any]) -> str:
    """Segments as the JSON that is stored: what `row_of` has, written out in a third of the time."""
    try:
        text = json.dumps(segments, default=str)
    except RecursionError:
        text = ""
    # What has no more brackets than that is nested no deeper.
    return text if 0 < text.count("[") + text.count("{") <= _SEGMENTS_DEPTH else json.dumps(_plain(segments))


def _plain(segments: Sequence[Any]) -> Any:
    """Segments as JSON has them; none where they are nested too deeply, for the message counts and its text is kept."""
    level: list[Any] = [segments]
    for _ in range(_SEGMENTS_DEPTH):
        level = [
            inner
            for value in level
            for inner in (
                value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
            )
        ]
        if not level:
            return json.loads(json.dumps(segments, default=str))
    logger.warning("a message is stored without its raw segments: nested more than {} deep", _SEGMENTS_DEPTH)
    return []


def message_of(row: sa.Row[Any]) -> Message:
    """A row of `messages_table` as a message."""
    return Message(
        id=row.message_id, scene=Scene.parse(row.scene), sender_id=row.sender_id, sender_name=row.sender_name,
        time=time_of(row.time_ms), text=row.text, origin=Origin(row.origin), reply_to=row.reply_to,
        mentions=tuple(row.mentions), recalled=row.recalled, seq=row.seq, segments=tuple(row.segments),
        scene_name=row.scene_name,
    )  # fmt: skip


def messages_of(scene: Scene, rows: Iterable[sa.Row[Any]]) -> list[Message]:
    """Rows of `Archive._columns`, JSON parsed where there is any, as messages of a scene."""
    return [
        Message(
            key, scene, sender, name, time_of(ms), text, Origin(origin), reply_to,
            () if mentions == "[]" else tuple(json.loads(mentions)), recalled, seq,
            tuple(json.loads(raw)) if raw else (), scene_name,
        )
        for key, sender, name, ms, text, origin, reply_to, mentions, recalled, seq, scene_name, raw in map(tuple, rows)
    ]  # fmt: skip


def is_replay(message: Message, other: Message) -> bool:
    """Whether a message is another one once more: its id at nearly its time."""
    same = (message.scene, message.id) == (other.scene, other.id)
    return same and abs((message.time - other.time).total_seconds()) * 1000 < SAME_ID_MS


def milliseconds(time: datetime) -> int:
    """Unix milliseconds."""
    return round(time.timestamp() * 1000)


def time_of(ms: int) -> datetime:
    """Of Unix milliseconds, in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC)
