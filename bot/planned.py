"""A message by the clock: said when it is due, made up for where something forbids it, else the owner is told."""

import asyncio
import time
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo

from apscheduler.triggers.cron import CronTrigger

from bot.archive import SAID
from bot.config import Scheduled
from bot.errors import SendFailure
from bot.message import Scene
from bot.presence import Presence

NOBODY = "nobody"
"""Outcome where no connected account is known to be in the scene."""
RETRY_S = 30.0
_TRIES = 3
"""Times the model is asked, where others speak first or nothing comes that can be sent."""
_LONG_AGO = timedelta(days=1)
_FINAL = ("off", "stopped", "optout")
"""Not tried again: the owner switched the scene off or stops the program, or whose chat it is opted out."""
_NEVER_LEFT = f"failed: {SendFailure.OFFLINE.value}"
"""The one failed send that is tried again; its line to the owner does not say what came of that."""


async def say(
    presence: Presence, planned: Scheduled, account_of: Callable[[Scene], str | None], late_s: float,
    retry_s: float = RETRY_S,
) -> str:  # fmt: skip
    """Say what is due, as soon as nothing forbids it any more; gives how that ended, as in `Decision`, or `NOBODY`.

    What was perhaps delivered is never said again. A hindrance is written down once, not at every try.

    Args:
        presence: speaks.
        planned: what, and where.
        account_of: the account that is in a scene, None while none is known.
        late_s: how late it may still be said (seconds from now).
        retry_s: pause between two tries.
    """
    scene, until = Scene.parse(planned.scene), time.monotonic() + late_s
    tries, opened = 0, False
    while True:
        account = account_of(scene)
        hindrance = NOBODY if account is None else presence.forbids(scene, account) if opened else None
        if hindrance is None:
            assert account is not None
            ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            hindrance, opened = presence.open(scene, account, planned.prompt, "schedule", ended), True
            if hindrance is None:
                hindrance, tries = await ended, tries + 1
        if _settled(hindrance) or tries == _TRIES or time.monotonic() + retry_s > until:
            return hindrance
        await asyncio.sleep(retry_s)


def due(planned: Scheduled, now: datetime, zone: tzinfo) -> datetime | None:
    """When it was due last, at most a day ago."""
    trigger = CronTrigger.from_crontab(planned.cron, timezone=zone)
    last, following = None, trigger.get_next_fire_time(None, now - _LONG_AGO)
    while following is not None and following <= now:
        last, following = following, trigger.get_next_fire_time(following, following)
    return last


def missed(outcome: str) -> bool:
    """Whether the owner has to be told: it was not said, and nobody has told them why."""
    told = outcome.startswith("failed: ") and outcome not in ("failed: fault", _NEVER_LEFT)
    return outcome not in (*SAID, "stopped") and not told


def _settled(outcome: str) -> bool:
    """Whether there is no use in trying again: it was said, perhaps said, or is not to be."""
    return outcome in (*SAID, *_FINAL) or (outcome.startswith("failed: ") and outcome != _NEVER_LEFT)
