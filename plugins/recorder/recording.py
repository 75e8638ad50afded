"""Event → archive: who made a message, and whether it is new."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace

from bot import corrections
from bot.copies import Copies
from bot.errors import ArchiveError
from bot.events import Mute, Online, Recall
from bot.message import Message, Origin
from bot.onebot import Outbox
from bot.optouts import Why
from bot.segments import UNKNOWN
from bot.twin import Twin

_NAMELESS_S, _NAMELESS_MAX = 60.0, 2_000
"""Seconds for which nobody is asked for again whose name is not known, and how many of them are remembered."""
_NAMES_PER_SECOND = 20
"""Names that are looked up at most: a message may hold hundreds of ats. Others show their number."""


class Recorder:
    """Stores messages and recalls.

    Args:
        twin: the assembled twin.
        outbox: tells the echo of our own sends from the person's words.
        accounts: the connected accounts.
    """

    def __init__(self, twin: Twin, outbox: Outbox, accounts: Callable[[], Collection[str]] = frozenset) -> None:
        self._twin = twin
        self._outbox = outbox
        self._accounts = accounts
        self._copies = Copies()
        self._names: dict[str, str] = {}
        self._nameless: OrderedDict[str, float] = OrderedDict()
        self._asking = 0, 0

    def name_of(self, sender_id: str) -> str | None:
        """Newest nickname seen for a QQ number; none of somebody who asked to be forgotten."""
        if self._twin.archive.optouts.why(sender_id) is Why.FORGOTTEN:
            self._names.pop(sender_id, None)
            return None
        if sender_id not in self._names:
            asked = self._nameless.get(sender_id, -math.inf)
            if time.monotonic() - asked < _NAMELESS_S or not self._may_ask():
                return None
            name = self._twin.archive.name_of(sender_id)
            if name is None:
                self._nameless[sender_id] = time.monotonic()
                while len(self._nameless) > _NAMELESS_MAX:
                    self._nameless.popitem(last=False)
                return None
            self._names[sender_id] = name
        return self._names[sender_id]

    def _may_ask(self) -> bool:
        """Whether the archive may be asked for one more name in this second."""
        second = int(time.monotonic())
        if second != self._asking[0]:
            self._asking = second, 0
        self._asking = second, self._asking[1] + 1
        return self._asking[1] <= _NAMES_PER_SECOND

    def odd(self, kind: str) -> None:
        """Count what was not as it should be."""
        self._twin.odd[kind] += 1

    def is_out(self, sender_id: str) -> bool:
        """Whether somebody opted out: nothing of what they send is looked at further."""
        return self._twin.archive.optouts.is_out(sender_id)

    async def message(self, message: Message, account: str) -> bool:
        """Store a message; False for a replay, which nobody answers.

        On the bot's own account, an echo of our send is the twin's (or the system's), and nobody answers it either;
        anything else there is the person's. So is what another of our accounts hears of it; what several of them hear
        is stored once, and answered from the one that heard it first.
        """
        if UNKNOWN in message.text:
            self.odd("unknown")
        if message.sender_name and not self.is_out(message.sender_id):
            self._names[message.sender_id] = message.sender_name
        if message.sender_id == account:
            echo = await self._outbox.echo_of(message.scene, message.id, message.segments)
            if echo is not None and not echo.answered:  # else whoever sent it stores it, in its place
                self._twin.record(replace(message, origin=echo.origin))
            if echo is not None or self._is_ours(message):
                return False
        elif message.sender_id in self._accounts():
            if await self._outbox.heard(message) is not None:  # whoever sent it stores it
                return False
        if len(self._accounts()) > 1 and self._copies.told(message, account):
            return False
        quoted = self._copies.stands_as(message.scene, message.reply_to)
        message = replace(message, reply_to=quoted and self._twin.archive.stored_as(message.scene, quoted))
        new = self._twin.record(message)
        await self._twin.watch_archive()
        return new

    def _is_ours(self, message: Message) -> bool:
        """Whether it echoes a send of before a restart."""
        try:
            stored = self._twin.archive.get(message.scene, message.id)
        except ArchiveError:
            return False
        return stored is not None and stored.origin is not Origin.HUMAN

    def mute(self, mute: Mute) -> None:
        """Say nothing in a group from the account that is muted there."""
        self._twin.presence.mutes.told(mute)

    def online(self, state: Online) -> None:
        """Say nothing from an account that QQ logged out."""
        self._twin.presence.online(state.account, state.online)

    async def recall(self, recall: Recall) -> None:
        """Mark a message as taken back; an answer prepared on its ground is decided anew.

        Of the twin's own words, taken back by an owner or on its account, it may be a correction.
        """
        archive, presence = self._twin.archive, self._twin.presence
        scene = archive.scene_of_recall(recall.scene, recall.message_id)
        message_id = archive.stored_as(scene, recall.message_id)
        with suppress(ArchiveError):
            own = archive.get(scene, message_id)
            owners = {*self._twin.settings.onebot.superusers, *([own.sender_id] if own is not None else [])}
            if own is not None and own.origin is Origin.TWIN:
                presence.withdrawn(scene)
            if recall.operator_id in owners:
                corrections.recalled(
                    archive, scene, message_id, by=recall.operator_id,
                    persona=presence.scenes.persona(scene), now=recall.time,
                )  # fmt: skip
        archive.recall(scene, message_id, recall.time)
        presence.recalled(scene, message_id)
