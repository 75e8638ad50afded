"""After an outage: what was said meanwhile where the twin is on → the archive. Recorded, and not answered."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

from loguru import logger

from bot.backfill import PAUSE_S, Backfill, Call
from bot.errors import ArchiveError, ImportFault
from bot.message import Message, Scene
from bot.twin import Twin
from plugins.recorder.calling import caller

_SCENES_MAX = 30
_WISHES = ("optout", "optin")
_WITHIN = timedelta(days=7)
"""Of scenes that were quiet for longer nothing is asked: QQ's servers answer, and the account is a person's."""


class Catcher:
    """Asks a client that connects for what was missed.

    Args:
        twin: the assembled twin.
        call_of: an account → what calls its client.
        pause_s: seconds between two pages.
    """

    def __init__(self, twin: Twin, call_of: Callable[[str], Call] = caller, pause_s: float = PAUSE_S) -> None:
        self._twin = twin
        self._call_of = call_of
        self._pause_s = pause_s
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def connected(self, account: str) -> None:
        """An account's client connected; what an earlier connection of it still asks for is asked for anew."""
        if (earlier := self._tasks.get(account)) is not None:
            earlier.cancel()
        # QQ's seconds are whole: what was said in this one may still come by itself.
        self._tasks[account] = asyncio.create_task(self._catch_up(account, datetime.now(UTC).replace(microsecond=0)))

    async def close(self) -> None:
        """Stop asking; what was read is kept."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _catch_up(self, account: str, until: datetime) -> None:
        """The worker's edge: nobody waits for it to hear of a fault."""
        try:
            await self._ask(account, until)
        except Exception as e:  # noqa: BLE001 - the worker's edge
            logger.opt(exception=e).error("what account {} missed is not all asked for", account)

    async def _ask(self, account: str, until: datetime) -> None:
        """Ask for what was missed; a scene that cannot be asked for, the account not being in it, is left as it is."""
        pages = added = 0
        wishes: list[Message] = []
        try:
            backfill = Backfill(self._call_of(account), self._twin.archive, self._pause_s)
            for scene, since in self._scenes(account, until):
                try:
                    is_command = partial(self._is_command, wishes=wishes, since=since)
                    filled = await backfill.catch_up(scene, since, until, is_command)
                except ImportFault as e:
                    logger.info("what was missed in a {} scene is not known: {}", scene.kind, e)
                    continue
                pages, added = pages + filled.pages, added + filled.added
                if not filled.done:
                    logger.warning("more was missed in a {} scene than is asked for: /corpus backfill", scene.kind)
        except ArchiveError as e:
            logger.warning("what was missed is not asked for: {}", e)
        finally:
            await self._obey(wishes, account)
        logger.info("account {}: {} missed messages in {} pages", account, added, pages)

    def _is_command(self, message: Message, wishes: list[Message], since: datetime) -> bool:
        if message.time >= since and self._twin.commands.name_of(message) in _WISHES:  # before, it came by itself
            wishes.append(message)
        return self._twin.commands.is_command(message)

    async def _obey(self, wishes: list[Message], account: str) -> None:
        """What people wished of what is kept of them counts from when they said it; it is not answered so late."""
        for message in sorted(wishes, key=lambda m: m.time):
            await self._twin.commands.run(message, "member", account)

    def _scenes(self, account: str, now: datetime) -> list[tuple[Scene, datetime]]:
        """Where the twin is on, and when was spoken there last, the newest first; not what another account hears."""
        presence, found = self._twin.presence, []
        for scene in presence.scenes.all_on():
            last = self._twin.archive.last_before(scene, now)
            if last is not None and now - last < _WITHIN and presence.account_of(scene) in (None, account):
                found.append((scene, last))
        return sorted(found, key=lambda scene: scene[1], reverse=True)[:_SCENES_MAX]
