"""Message → command, or the scene's task."""

import time
from collections.abc import Mapping
from typing import Any

from loguru import logger

from bot.errors import PersonaError, SendError
from bot.events import read
from bot.message import Message, Origin
from bot.onebot import OneBotTransport
from bot.twin import Twin


class Listener:
    """Tells commands from talk.

    Args:
        twin: the assembled twin.
        transport: sends the answers of commands.
    """

    def __init__(self, twin: Twin, transport: OneBotTransport) -> None:
        self._twin = twin
        self._transport = transport

    async def hear(self, raw: Mapping[str, Any]) -> None:
        """Take one message or poke that was recorded already."""
        account = str(raw.get("self_id", ""))
        message = read(raw)
        if not isinstance(message, Message):
            return
        # Of somebody who opted out no words are stored: commands are read off the event, and nothing else is heard.
        out = self._twin.archive.optouts.is_out(message.sender_id)
        stored = message if out else self._twin.archive.get(message.scene, message.id)
        if stored is None or stored.recalled or stored.origin is Origin.TWIN:
            return
        sender = raw.get("sender")
        role = str(sender.get("role") or "") if isinstance(sender, Mapping) else ""
        self._twin.presence.mutes.heard(account, message, role)
        always = self._twin.commands.is_always(stored)
        if self._twin.commands.is_command(stored) and not always and self._twin.presence.stale(stored):
            logger.info("a command of long ago is not obeyed any more")
            return
        if self._twin.commands.is_command(stored) and not always and not self._commands_here(stored, account):
            return
        answer = await self._run(stored, role, account)
        if answer is not None:
            await self._answer(stored, account, answer)
        elif stored.origin is Origin.HUMAN:
            if stored.sender_id == account:
                self._twin.presence.own_words(stored)
            elif not out:
                self._twin.presence.heard(stored, account)

    async def _run(self, message: Message, role: str, account: str) -> str | None:
        """A command's answer; where no persona loads, the owners read why just when they ask, others nothing."""
        try:
            return await self._twin.commands.run(message, role, account)
        except PersonaError as e:
            logger.warning("a command is not answered: {}", e)
            return str(e) if self._is_owner(message, account) else ""

    def _is_owner(self, message: Message, account: str) -> bool:
        return message.sender_id in (account, *self._twin.settings.onebot.superusers)

    def _commands_here(self, message: Message, account: str) -> bool:
        """Whether a command is answered in its scene: the owners' always are."""
        return self._is_owner(message, account) or self._twin.presence.scenes.commands(message.scene)

    async def _answer(self, message: Message, account: str, text: str) -> None:
        """Send a command's answer; stored as `system`, so that the model never sees it.

        It counts in the budget of scene and account; where that is used up, only the owner is still answered, and
        nobody where the account is muted or offline.
        """
        budget, now_s = self._twin.presence.budget, time.monotonic()
        hindrance = budget.hindrance(account, message.scene, now_s)
        if not text or hindrance == "muted" or not self._twin.presence.is_online(account):
            return
        if hindrance and not self._is_owner(message, account):
            return
        budget.spend(account, message.scene, now_s)
        segments = [{"type": "text", "data": {"text": text}}]
        try:
            message_id = await self._transport.send(account, message.scene, segments, Origin.SYSTEM)
        except SendError as e:
            budget.failed(account, message.scene, time.monotonic(), e.failure)
            logger.warning("the answer to a command was not sent: {}", e)
            return
        self._twin.record_own(message_id, message.scene, account, text)
