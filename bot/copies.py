"""A message of a group in which several of our accounts are → one message, whoever told it first.

Clients give each account's copy an id of its own (NapCat hashes the account's 19-digit number). What is the same of
both is the group's running number; where a client has none (Lagrange), sender, second and words.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from bot.message import Message, Scene
from bot.onebot import plain

_KEPT = 2000
"""Senders whose newest messages are remembered."""
_OF_EACH = 50
_KEPT_S = 120
"""Seconds between the copies of one message at most."""


@dataclass(slots=True)
class _Told:
    """A message by what its copies have in common, and its id with each account that told it."""

    seq: int | None
    second: int
    words: int
    """A hash: whose words they are may ask that they be kept nowhere."""
    ids: dict[str, str] = field(default_factory=dict)

    def same(self, other: "_Told") -> bool:
        """Whether both are copies of one message."""
        if self.seq is not None and other.seq is not None:
            return self.seq == other.seq
        return abs(self.second - other.second) <= 1 and self.words == other.words


class Copies:
    """Remembers who told what lately."""

    def __init__(self) -> None:
        self._told: OrderedDict[tuple[Scene, str], list[_Told]] = OrderedDict()
        self._stands: OrderedDict[tuple[Scene, str], str] = OrderedDict()

    def told(self, message: Message, account: str) -> bool:
        """Whether another account told a group's message before; this one is remembered.

        Args:
            message: as it came.
            account: that heard it.
        """
        if message.scene.private:
            return False
        new = _Told(message.seq, int(message.time.timestamp()), hash(plain(message.segments)), {account: message.id})
        here = self._told.setdefault((message.scene, message.sender_id), [])
        here[:] = [one for one in here if new.second - one.second <= _KEPT_S]
        self._told.move_to_end((message.scene, message.sender_id))
        for one in here:
            if one.same(new) and one.ids.setdefault(account, message.id) == message.id:
                first = next(iter(one.ids.values()))
                self._stands[message.scene, message.id] = first
                self._trim()
                return next(iter(one.ids)) != account
        here.append(new)
        del here[:-_OF_EACH]
        self._trim()
        return False

    def stands_as(self, scene: Scene, message_id: str | None) -> str | None:
        """The id under which a message is stored that another account told first."""
        return message_id and self._stands.get((scene, message_id), message_id)

    def _trim(self) -> None:
        while len(self._told) > _KEPT:
            self._told.popitem(last=False)
        while len(self._stands) > _KEPT:
            self._stands.popitem(last=False)
