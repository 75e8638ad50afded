"""Where the accounts may not speak, kept over restarts: told by QQ, and lifted by it or by what shows that it is over.

A lift missed while the socket was down would leave the twin mute for good: who hears a group is in it, and where a
plain member speaks not all are muted.
"""

import time
from datetime import UTC, datetime

from loguru import logger

from bot.archive import Archive
from bot.budget import Budget
from bot.errors import ArchiveError
from bot.events import BanKind, Mute
from bot.message import Message, Scene

MUTE_KIND = "muted"
"""Scene-log kind: account, kind of ban, and until when (unix seconds, `inf`; a moment gone by: lifted)."""


class Mutes:
    """Tells the budget of every ban.

    Args:
        archive: where they are kept.
        budget: what asks for them before a bubble is sent.
    """

    def __init__(self, archive: Archive, budget: Budget) -> None:
        self._archive = archive
        self._budget = budget
        self._since: dict[tuple[str, Scene, BanKind], datetime] = {}
        """Bans told and not lifted."""
        try:
            for scene, since, value in archive.noted(MUTE_KIND):
                account, kind, until = value.split(" ")
                self._hold(account, scene, BanKind(kind), since, float(until))
        except ArchiveError as e:
            logger.warning("where the accounts were muted before is not known: {}", e)

    def told(self, mute: Mute) -> None:
        """An account was muted in a group, or a ban lifted; an older one of its kind than is known counts for nothing.

        Its seconds count from when QQ says it began, or from now where QQ's clock is ahead.
        """
        known = self._since.get((mute.account, mute.scene, mute.kind))
        if (known is None and not mute.seconds) or (known is not None and mute.since < known):
            return
        until = min(mute.since, datetime.now(UTC)).timestamp() + mute.seconds
        self._hold(mute.account, mute.scene, mute.kind, mute.since, until)
        self._archive.note(mute.scene, MUTE_KIND, f"{mute.account} {mute.kind} {until}", mute.since)

    def heard(self, account: str, message: Message, role: str) -> None:
        """Somebody spoke where an account hears it, as what they are in the group (`owner`, `admin`, `member`)."""
        for kind in (BanKind.GONE, *([BanKind.ALL] if role == "member" else [])):
            since = self._since.get((account, message.scene, kind))
            if since is not None and message.time > since:
                self.told(Mute(account, message.scene, 0, kind, message.time))

    def _hold(self, account: str, scene: Scene, kind: BanKind, since: datetime, until: float) -> None:
        left_s = until - datetime.now(UTC).timestamp()
        if left_s > 0:
            self._since[account, scene, kind] = since
        else:
            self._since.pop((account, scene, kind), None)
        self._budget.mute(account, scene, time.monotonic() + left_s, kind)
