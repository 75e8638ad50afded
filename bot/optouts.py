"""Who does not want to be learned from, and who asked to be forgotten; and what of a message may be kept then.

An append-only log of `out`, `in` and `forgotten` by person, with times: so a history imported later is treated as the
live messages of its time were. Of somebody out, a message leaves a row without words, as one that was taken back does:
it keeps its place in the conversation, is never shown to the model, answered or learned from. Of somebody forgotten
that row does not say who it was, and a private chat with them leaves nothing at all. Their number is then known here
by its hash alone: enough to know them when they come again, too little to read it off (not too little for whoever
tries all numbers).
"""

import hashlib
import re
import time
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from loguru import logger
from sqlalchemy.exc import SQLAlchemyError

from bot.errors import ArchiveBusy
from bot.events import POKE_ID
from bot.message import Message, Origin, Scene, Segment

_schema = sa.MetaData()
optouts_table = sa.Table(
    "optouts",
    _schema,
    sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
    *(sa.Column(n, sa.Text) for n in ("person", "kind", "told_by")),
    sa.Column("time_ms", sa.BigInteger),
)
NOBODY = "某人"
"""Stands for the name of somebody who was forgotten."""
RELOAD_S = 2.0
"""Seconds after which the log is read again: `twin forget` writes it beside a running daemon."""
_HASHED = "sha256:"
_NUMBERS = ("qq", "user_id", "uin", "sender_id")
"""Under these, clients say whose words are quoted or forwarded."""
_OF_NOBODY = ("text", "at", "face")
"""Segments that quote nobody: most there are, and an import looks at hundreds of thousands."""
_AFTER_NAME = r"(?=[\s↵,，。！？!?：:、@\[]|$)"


class Why(StrEnum):
    """Why a message is kept without its words, or not at all; as an import counts it."""

    OUT = "without its words: by somebody who opted out"
    FORGOTTEN = "by somebody, or in a private chat with somebody, who asked to be forgotten"


@dataclass(frozen=True, slots=True)
class _Wish:
    """One entry: what, from when (unix milliseconds), by `self` or `owner`."""

    time_ms: int
    kind: str
    by: str


class OptOuts:
    """The wishes of everybody, read from the archive and remembered.

    Args:
        engine: where the archive is; its schema has the table.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._wishes: dict[str, list[_Wish]] = {}
        self._keys: dict[str, str] = {}
        self._read_at = 0.0
        self._load()

    # -- who --------------------------------------------------------------------------------------

    @property
    def any(self) -> bool:
        """Whether anybody ever wished anything."""
        self._refresh()
        return bool(self._wishes)

    def why(self, person: str, moment: datetime | None = None) -> Why | None:
        """Why what somebody said at a moment (None: says now) may not be kept; None if it may.

        While somebody is out, what they said before is not taken in either.
        """
        wishes = self._of(person)
        if not wishes:
            return None
        if moment is None:
            return _told(wishes[-1])
        time_ms = round(moment.timestamp() * 1000)
        if any(w.kind == "forgotten" and w.time_ms >= time_ms for w in wishes):
            return Why.FORGOTTEN
        place = bisect_right([w.time_ms for w in wishes], time_ms)
        return (_told(wishes[place - 1]) if place else None) or _told(wishes[-1])

    def is_out(self, person: str) -> bool:
        """Whether somebody is not to be learned from, shown to the model or answered."""
        return self.why(person) is not None

    def out_by(self, person: str) -> str | None:
        """Who opted them out, `self` or `owner`; None if they are not out."""
        return self._of(person)[-1].by if self.is_out(person) else None

    def back(self, person: str, moment: datetime) -> datetime | None:
        """When somebody came back (`in`) after a moment; None if they did not."""
        time_ms = round(moment.timestamp() * 1000)
        found = next((w.time_ms for w in self._of(person) if w.kind == "in" and w.time_ms > time_ms), None)
        return None if found is None else datetime.fromtimestamp(found / 1000, UTC)

    def was_forgotten(self, person: str) -> bool:
        """Whether somebody asked to be forgotten, be it long ago."""
        return any(w.kind == "forgotten" for w in self._of(person))

    def hidden(self) -> frozenset[str]:
        """Numbers of those whose stored words are not to be read; of those forgotten none are stored."""
        self._refresh()
        return frozenset(p for p in self._wishes if not p.startswith(_HASHED) and self.is_out(p))

    # -- what is kept -----------------------------------------------------------------------------

    def leaves_nothing(self, scene: Scene, message_id: str = "", moment: datetime | None = None) -> bool:
        """Whether not even a row without words may be stored, for where it stands or its id would say who was there.

        So it is in a private chat with somebody forgotten, and with a poke by or at them: its id says who poked whom.

        Args:
            scene: where.
            message_id: of the message, if it is about one.
            moment: when (None: now).
        """
        if not self.any:
            return False
        told = message_id.split("-")[2:] if message_id.startswith(POKE_ID) else []
        return any(self.why(p, moment) is Why.FORGOTTEN for p in (*told, *([scene.id] if scene.private else [])))

    def kept(self, message: Message, names: Mapping[str, Iterable[str]] = {}) -> tuple[Message | None, Why | None]:
        """A message as it may be stored (None: not at all), and why if that is not as it was said.

        Args:
            message: what was said or typed; the twin's own words are nobody's wish.
            names: further names of people who were forgotten, by number, for mentions of them.
        """
        if not self.any:
            return message, None
        if self.leaves_nothing(message.scene, message.id, message.time):
            return None, Why.FORGOTTEN
        if message.origin is Origin.TWIN:
            return message, None
        why = self.why(message.sender_id, message.time)
        if why is not None:
            return without_words(message, named=why is Why.OUT), why
        if any(s.get("type") == "reply" for s in message.segments):  # of whom its words are, it need not say
            message = replace(message, segments=without_quoted_words(message.segments))
        for person in {*message.mentions, *names, *_borne(message.segments)}:
            match self.why(person, message.time):
                case Why.FORGOTTEN:
                    message = without_mention(message, person, names.get(person, ()))
                case Why.OUT:
                    message = _without_forwarded(message, person)
        return message, None

    # -- the log ----------------------------------------------------------------------------------

    def note(self, person: str, kind: str, by: str, moment: datetime) -> None:
        """Write down a wish: `out` or `in`.

        Raises:
            ArchiveBusy: it cannot be written just now.
        """
        key = person if kind == "out" or not self.was_forgotten(person) else _hashed(person)
        row = {"person": key, "kind": kind, "told_by": by, "time_ms": round(moment.timestamp() * 1000)}
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.insert(optouts_table).values(row))
        except SQLAlchemyError as e:
            raise ArchiveBusy(f"a wish cannot be written down: {type(e).__name__}") from e
        self._load()

    def forget(self, connection: sa.Connection, person: str, by: str, moment: datetime) -> None:
        """Put one entry without the number in the place of all of somebody's; `reload` when it is committed.

        As of the whole second: QQ's times have no others, and a later wish of that second must count.
        """
        row = {"person": _hashed(person), "kind": "forgotten", "told_by": by, "time_ms": int(moment.timestamp()) * 1000}
        connection.execute(sa.delete(optouts_table).where(optouts_table.c.person.in_([person, _hashed(person)])))
        connection.execute(sa.insert(optouts_table).values(row))

    def reload(self) -> None:
        """Read the log again."""
        self._load()

    def _of(self, person: str) -> list[_Wish]:
        self._refresh()
        if not self._wishes:
            return []
        if person not in self._keys:
            if len(self._keys) > 100_000:
                self._keys.clear()
            self._keys[person] = _hashed(person)
        own, hashed = self._wishes.get(person), self._wishes.get(self._keys[person])
        if own and hashed:
            return sorted([*hashed, *own], key=lambda w: w.time_ms)
        return own or hashed or []

    def _refresh(self) -> None:
        if time.monotonic() - self._read_at > RELOAD_S:
            self._load()

    def _load(self) -> None:
        c, found = optouts_table.c, dict[str, list[_Wish]]()
        self._read_at = time.monotonic()
        try:
            with self._engine.connect() as connection:
                rows = connection.execute(
                    sa.select(c.person, c.time_ms, c.kind, c.told_by).order_by(c.time_ms, c.pk)
                ).all()
        except SQLAlchemyError as e:
            logger.warning("who opted out cannot be read again: {}", type(e).__name__)
            return
        for person, *wish in map(tuple, rows):
            found.setdefault(person, []).append(_Wish(*wish))
        self._wishes = found


def without_words(message: Message, *, named: bool) -> Message:
    """What is kept of a message: that there was one, and when; of whom, only if `named`.

    Of a command typed in chat never: rows of the program's own lines are told by a sender without a name.
    """
    who = message.sender_id if named and message.origin is Origin.HUMAN else ""
    return replace(
        message, sender_id=who, sender_name="", text="", reply_to=None, mentions=(), recalled=True, segments=()
    )


def without_mention(message: Message, person: str, names: Iterable[str] = ()) -> Message:
    """Somebody else's message with `@某人` for one person, and their raw segments without what bears their number.

    Args:
        message: not of that person.
        person: QQ number.
        names: what they were called, beside what the segments call them.
    """
    at = [_data(s) for s in message.segments if s.get("type") == "at" and str(_data(s).get("qq")) == person]
    called = {person, *names, *(str(data.get("name") or "").lstrip("@") for data in at)} - {""}
    text, segments = message.text, list[Segment]()
    for name in sorted(called, key=len, reverse=True):
        text, found = re.subn(f"@{re.escape(name)}{_AFTER_NAME}", f"@{NOBODY}", text)
        if not found and person in message.mentions:  # QQ puts a blank behind a mention, other programs may not
            text = text.replace(f"@{name}", f"@{NOBODY}")
    for segment in message.segments:
        if segment.get("type") == "at" and str(_data(segment).get("qq")) == person:
            segments.append({"type": "text", "data": {"text": f"@{NOBODY}"}})
        elif (kept := _bare(segment, person)) is not None:
            segments.append(kept)
    mentions = tuple(m for m in message.mentions if m != person)
    return replace(message, text=text, mentions=mentions, segments=tuple(segments))


def without_quoted_words(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Raw segments in which a quote only names the message it quotes: some clients put its words there."""
    return tuple(
        {"type": "reply", "data": {k: v for k, v in _data(s).items() if k == "id"}} if s.get("type") == "reply" else s
        for s in segments
    )


def _bare(segment: Segment, person: str) -> Segment | None:
    """A segment without what bears somebody's number; None: nothing is left, or it is nested beyond what is kept."""
    try:
        bare: Segment | None = _scrubbed(segment, person)
    except RecursionError:
        return None
    return bare


def _scrubbed(value: Any, person: str) -> Any:
    """JSON without every object that bears somebody's number, as a forwarded message of theirs does; None: nothing."""
    if isinstance(value, Mapping):
        of = value.get("sender")
        own = [*value.values(), *(of.values() if isinstance(of, Mapping) else ())]
        if any(isinstance(v, str | int) and str(v) == person for v in own):
            return None
        kept = {k: _scrubbed(v, person) for k, v in value.items()}
        gone = value.get("data") is not None and kept.get("data") is None
        return None if gone else {k: v for k, v in kept.items() if v is not None or value[k] is None}
    if isinstance(value, list | tuple):
        return [kept for v in value if (kept := _scrubbed(v, person)) is not None]
    return value


def _without_forwarded(message: Message, person: str) -> Message:
    """Somebody else's message without what they forwarded or quoted of one person; a mention of them stays."""
    bare = (s if s.get("type") == "at" else _bare(s, person) for s in message.segments)
    return replace(message, segments=tuple(s for s in bare if s is not None))


def _borne(segments: Sequence[Segment]) -> set[str]:
    """Numbers that raw segments bear beside those of mentions, at any depth: whose words they quote or forward."""
    left: list[Any] = [s for s in segments if s.get("type") not in _OF_NOBODY]
    found = set[str]()
    while left:
        value = left.pop()
        if isinstance(value, dict):
            found.update(str(value[key]) for key in _NUMBERS if key in value)
            left.extend(value.values())
        elif isinstance(value, list | tuple):
            left.extend(value)
    return found


def _data(segment: Segment) -> Mapping[str, Any]:
    data = segment.get("data")
    return data if isinstance(data, Mapping) else {}


def _told(wish: _Wish) -> Why | None:
    return {"out": Why.OUT, "forgotten": Why.FORGOTTEN}.get(wish.kind)


def _hashed(person: str) -> str:
    return _HASHED + hashlib.sha256(f"qqtwin forgotten {person}".encode()).hexdigest()
