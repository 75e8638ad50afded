"""QQ NT's message database (nt_msg.db: plain, encrypted, dumped as SQL, exported as JSON) → messages.

What people said to each other comes out, as bot/segments.py writes it for live events. Left out and counted: what was
never sent, gray tips but for pokes, calls, system senders, rows without a time or sender. `message_id` is the row's own
19-digit number, `seq` a group's; private chats have none that can be trusted.

A recalled message is its own row, turned into a gray tip: LLOneBot, an OneBot client on QQ NT, looks for the message by
the number of the row that changed (src/main/main.ts, `UPDATE_MSG`). So it takes back what an older copy, or another
source, told of it.

A quote is looked for by the group's `seq` (private: the peer's 16-bit counter), then by the time and sender it names,
among at least the newest 50,000 rows; `replayMsgId` (47401, 47416) is known to be wrong and is not used. A quoted
message that is not there leaves its words in the segments.
"""

import hashlib
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bot.events import POKE_ID, Recall
from bot.message import Message, Origin, Scene
from bot.segments import POKE, whole
from training.importers import ntqq_body, ntqq_database, ntqq_text
from training.importers.ntqq_rows import History, Row, Table, number
from training.importers.ntqq_wire import Element, elements
from training.importers.source import HEAD_BYTES, Item, Reading, Skipped, Source, head

DATABASE = "nt_msg.db"
DATABASE_MAGIC = ntqq_database.MAGIC
_PRIVATE_CHATS, _GROUP_CHATS = (0, 1, 99, 100), (0, 2)
_SYSTEM = {"10000", "2854196310"}
"""QQ's own voice, and Q群管家."""
_SENT, _OWN = 2, (1, 2)
_LEFT_OUT = {0: "an empty message", 1: "an empty message", 5: "a gray tip", 19: "a call"}
_RECALLED, _POKED = (5, 4), (5, 12)
_MS, _US, _LATEST_S = 10**11, 10**14, 4_102_444_800
"""From where a time is in milliseconds, in microseconds; the year 2100."""
_NEAR_S = 5
"""A quote names its message's second; clocks of several clients differ by little."""
_REMEMBERED, _LOOKED_BACK = 50_000, 1000
_OLD_CARD = re.compile(r"(.+?)(?:\(\d{5,11}\)|<[^<>@\s]+@[^<>\s]+>)")
"""`name(12345)`, `name<mail>`: cards as QQ wrote them before it knew nicknames."""


def sniff(path: Path, beginning: bytes) -> bool:
    """Whether a path is nt_msg.db, a folder with it, or a dump or export of its message tables.

    Raises:
        ImportFault: it cannot be read.
    """
    if path.is_dir():
        return (path / DATABASE).is_file()
    if ntqq_database.encrypted(beginning):
        return True
    if beginning.startswith(ntqq_database.MAGIC):
        return ntqq_database.has_messages(path)
    return ntqq_text.is_json(beginning) or ntqq_text.is_dump(path, beginning)


def items(path: Path, reading: Reading) -> Iterator[Item]:
    """Every message of the history, table by table, by id (which is by time).

    Raises:
        ImportFault: it cannot be read, is locked, or does not open with the key.
    """
    if path.is_dir():
        path = path / DATABASE
    with _opened(path, head(path), reading) as history:
        for table in history.tables:
            reader = _Reader(history, reading, table)
            for row in table.rows:
                try:
                    item = reader.message(row)
                except Skipped as why:
                    reading.skip(str(why), reader.at(row))
                    continue
                reading.place = reader.at(row)
                yield item


def _opened(path: Path, beginning: bytes, reading: Reading) -> AbstractContextManager[History]:
    if ntqq_text.is_json(beginning[:HEAD_BYTES]):
        return ntqq_text.of_json(path, reading)
    if ntqq_text.is_dump(path, beginning):
        return ntqq_text.of_dump(path, reading)
    return ntqq_database.history(path, reading)


class _Reader:
    """One table's rows as messages; remembers what quotes may point to.

    Whatever depends on few values (scene, sender, name) is worked out once for each: with it a row takes 9 µs, not 23.
    """

    def __init__(self, history: History, reading: Reading, table: Table) -> None:
        self._history, self._reading, self._table = history, reading, table
        self._chats: dict[tuple[Any, ...], _Chat] = {}
        self._senders: dict[tuple[Any, Any], str] = {}
        self._remembered = 0
        self._made_ids: Counter[str] = Counter()

    def at(self, row: Row) -> str:
        """A row's place in words."""
        return self._reading.place if row[0] is None else f"{self._table.place} row {row[0]}"

    def message(self, row: Row) -> Item:
        """The message of a row, or what it takes back.

        Raises:
            Skipped: it is none, or nothing that people said.
        """
        (row_id, seq, client_seq, chat, kind, sub_kind, sending, uid, peer_uid, conversation, peer, uin, status, time,
         card, nick, body, target, cache, *_) = row  # fmt: skip
        if (kind, sub_kind) == _RECALLED:
            return self._recall(row_id, seq, self._chat(chat, peer, peer_uid, conversation), time)
        if (kind, sub_kind) == _POKED:
            return self._poke(self._chat(chat, peer, peer_uid, conversation), time, body)
        if kind in _LEFT_OUT:
            raise Skipped(_LEFT_OUT[kind])
        if status != _SENT and status is not None:
            raise Skipped("a message that was not sent")
        where = (chat, peer, peer_uid, conversation)
        place = self._chats.get(where) or self._chat(*where)
        sender = self._senders.get((uin, uid)) or self._sender(uin, uid)
        second = time if type(time) is int and 0 < time < _LATEST_S else _seconds(time)
        parts = elements(body) if type(body) is bytes else ()
        if not parts:
            raise Skipped("a message without a body that can be read")
        told = ntqq_body.told(parts, self._history.uins.get)
        message_id = (
            str(row_id) if type(row_id) is int and 0 < row_id < 1 << 64 else self._id(row_id, place, sender, time, body)
        )
        private = place.private
        counter = client_seq if private else seq
        counter = counter if type(counter) is int and counter > 0 else number(counter)
        reply_to, kept = None, told.segments
        if told.quote is not None:
            counters = (number(target),) if private else (told.quote.seq, number(target))
            reply_to = place.quoted(told.quote, counters, second)
            if reply_to is None:
                kept = (ntqq_body.quote(told.quote, cache), *kept)
        place.said.append((int(second), counter, sender, message_id))
        self._remembered += 1
        if self._remembered > 2 * _REMEMBERED:
            self._forget()
        if not told.text and not kept:
            raise Skipped(_wordless(parts))
        if sending in _OWN:
            self._reading.owners[sender] += 1
        name = place.names.get((sender, card, nick))
        return Message(
            message_id, place.scene, sender, self._name(place, sender, card, nick) if name is None else name,
            datetime.fromtimestamp(second, UTC), told.text, Origin.HUMAN, reply_to, told.mentions, False,
            counter if counter and not private and counter < 1 << 63 else None, kept, place.name,
        )  # fmt: skip

    def _recall(self, row_id: Any, seq: Any, place: "_Chat", time: Any) -> Recall:
        message_id, counter = number(row_id), number(seq)
        if not message_id:
            raise Skipped("a recalled message")
        when = datetime.fromtimestamp(_seconds(time), UTC)
        known = counter if counter and not place.private and counter < 1 << 63 else None
        return Recall(place.scene, str(message_id), "", when, known)

    def _poke(self, place: "_Chat", time: Any, body: Any) -> Message:
        """A poke as the live one reads (bot/events.py), under the same id: in a private chat it names nobody."""
        poked = ntqq_body.poked(elements(body) if type(body) is bytes else (), self._history.uins.get)
        if poked is None:
            raise Skipped("a gray tip")
        (sender, name), (target, whom) = poked
        second = _seconds(time)
        mine = target in self._reading.owners or target == self._reading.told.me
        return Message(
            f"{POKE_ID}{int(second)}-{sender}-{target}", place.scene, sender, whole(self._called(place, sender, name)),
            datetime.fromtimestamp(second, UTC),
            POKE if mine or place.private else f"{POKE}@{self._called(place, target, whom) or target}",
            mentions=(target,), scene_name=place.name,
        )  # fmt: skip

    def _called(self, place: "_Chat", sender: str, name: str) -> str:
        return name or self._history.cards.get((place.scene.id, sender), "") or self._history.nicks.get(sender, "")

    def _chat(self, chat: Any, peer: Any, peer_uid: Any, conversation: Any) -> "_Chat":
        kind, of = self._table.kind, number(chat)
        if kind is None:
            kind = "group" if of == _GROUP_CHATS[1] or (not of and number(peer_uid)) else "private"
        if of not in (_GROUP_CHATS if kind == "group" else _PRIVATE_CHATS):
            raise Skipped(f"a chat of type {of}, not between people")
        if kind == "group":
            place = number(peer) or number(peer_uid) or number(conversation)
        else:
            place = number(peer) or number(self._history.uins.get(peer_uid))
        if not place:
            raise Skipped("a chat without a number")
        name = self._history.groups.get(str(place), "") if kind == "group" else ""
        found = _Chat(Scene(kind, str(place)), kind == "private", whole(name))
        return self._chats.setdefault((chat, peer, peer_uid, conversation), found)

    def _sender(self, uin: Any, uid: Any) -> str:
        sender = str(number(uin) or number(self._history.uins.get(uid)))
        if sender in _SYSTEM or (sender == "0" and not uid):
            raise Skipped("a system message")
        if sender == "0":
            raise Skipped("a sender without a number")
        return self._senders.setdefault((uin, uid), sender)

    def _name(self, place: "_Chat", sender: str, card: Any, nick: Any) -> str:
        """The name somebody had in a scene: card, else nickname, else what the databases beside say."""
        named, history = card if isinstance(card, str) else "", self._history
        old = _OLD_CARD.fullmatch(named)
        name = old[1] if old else named or history.cards.get((place.scene.id, sender), "")
        name = name or (nick if isinstance(nick, str) else "") or history.nicks.get(sender, "")
        if len(place.names) >= _LOOKED_BACK:
            place.names.clear()
        return place.names.setdefault((sender, card, nick), whole(name))

    def _forget(self) -> None:
        """Forget the older half of every chat."""
        for place in self._chats.values():
            del place.said[: len(place.said) // 2]
        self._remembered = sum(len(place.said) for place in self._chats.values())

    def _id(self, row_id: Any, place: "_Chat", sender: str, time: Any, body: bytes) -> str:
        """The row's number; where an export left it out, one made of what the row says."""
        if found := number(row_id):
            return str(found)
        if row_id is not None:
            raise Skipped("an id that is no whole number of 64 bits")
        digest = hashlib.sha256(f"{place.scene} {sender} {time} ".encode() + body).hexdigest()[:16]
        if len(self._made_ids) >= _REMEMBERED:
            self._made_ids.clear()
        self._made_ids[digest] += 1
        return f"nt-{digest}-{self._made_ids[digest]}"


def _wordless(parts: Sequence[Element]) -> str:
    kinds = {p.kind for p in parts}
    return "a gray tip" if ntqq_body.GRAY_TIP in kinds else "a call" if ntqq_body.CALL in kinds else "an empty message"


@dataclass(slots=True)
class _Chat:
    """One scene being read.

    Args:
        scene: which.
        private: whether it is between two.
        name: a group's.
        names: of who spoke, by (sender, card, nickname).
        said: (unix second, number in the scene or 0, sender, id) of its newest messages, in the order of their rows,
            which is that of their times.
    """

    scene: Scene
    private: bool
    name: str
    names: dict[tuple[str, Any, Any], str] = field(default_factory=dict)
    said: list[tuple[int, int, str, str]] = field(default_factory=list)

    def quoted(self, part: Element, counters: Sequence[int], second: float) -> str | None:
        """Id of the message a quote points to, or None.

        Args:
            part: the element of kind `REPLY`.
            counters: the quoted message's number in the scene, as the quote or the row names it; 0 is none.
            second: when it was quoted.
        """
        said, sender = self.said, str(part.sender)
        if part.time:
            first = bisect_left(said, (part.time - _NEAR_S,))
            near = said[first : bisect_left(said, (part.time + _NEAR_S + 1,), first)]
        else:
            near = said[-_LOOKED_BACK:]
        fit = [m for m in near if m[0] <= second and (not part.sender or m[2] == sender)]
        for counter in filter(None, counters):
            if found := [m for m in fit if m[1] == counter]:
                return found[-1][3]
        exact = [m for m in fit if m[0] == part.time and part.sender]
        return exact[0][3] if len(exact) == 1 else None


def _seconds(value: Any) -> float:
    """Unix seconds of a time column, whatever its unit.

    Raises:
        Skipped: it holds no time.
    """
    found = float(number(value))
    if found >= _MS:
        found /= 1e6 if found >= _US else 1e3
    if not 0 < found < _LATEST_S:
        raise Skipped("a message without a time")
    return found


SOURCE = Source("ntqq", "QQ NT database", sniff, items)
