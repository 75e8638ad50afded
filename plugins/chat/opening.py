"""Speaking first: as often as the person does, and what bot.toml plans by the clock."""

import asyncio
import random
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import Any

from apscheduler.events import EVENT_JOB_MAX_INSTANCES, JobSubmissionEvent
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger
from loguru import logger

from bot import openings, planned
from bot.config import Scheduled
from bot.errors import ArchiveError
from bot.message import Scene
from bot.openings import Rates
from bot.twin import Twin, now
from plugins.chat import texts

_TICK_S = 60
_TICK: dict[str, Any] = {"coalesce": True, "misfire_grace_time": 300}
"""After a sleep of the machine nothing is said hours late."""
_PLANNED: dict[str, Any] = {"coalesce": True, "misfire_grace_time": None}
"""Run however late: then the owner is told."""
_LEARN_EVERY = timedelta(days=1)


class Opener:
    """Opens conversations.

    Args:
        twin: the assembled twin.
        accounts: the connected accounts.
        rng: random numbers; seeded in tests.
    """

    def __init__(self, twin: Twin, accounts: Callable[[], Collection[str]], rng: random.Random | None = None) -> None:
        self._twin = twin
        self._accounts = accounts
        self._rng = rng or random.Random()
        self._rules = twin.settings.opening
        self._scheduler = AsyncIOScheduler(timezone=twin.settings.zone)
        self._rates: dict[Scene, Rates] = {}
        self._learned: datetime | None = None
        self._learning: asyncio.Task[dict[Scene, Rates]] | None = None
        self._dense: dict[str, asyncio.Task[None]] = {}
        """Planned messages that came due while one of theirs was still waited for, and who tells the owner."""

    async def start(self) -> None:
        """Begin to watch the clock, where there is anything to say first."""
        zone = self._twin.settings.zone
        if self._rules.enabled:
            self._scheduler.add_job(self.tick, "interval", seconds=_TICK_S, id="openings", **_TICK)
        for number, message in enumerate(self._rules.schedule):
            trigger = CronTrigger.from_crontab(message.cron, timezone=zone)
            self._scheduler.add_job(self.planned, trigger, args=[message], id=f"planned {number}", **_PLANNED)
        if self._scheduler.get_jobs():
            self._scheduler.add_listener(self._skipped, EVENT_JOB_MAX_INSTANCES)
            self._scheduler.start()

    async def stop(self) -> None:
        """Stop watching."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        if self._learning is not None:  # a thread cannot be stopped, and the archive it reads is closed next
            await asyncio.wait([self._learning])

    def _skipped(self, event: JobSubmissionEvent) -> None:
        """A planned message is due again while it may still be said for the time before: the owner is told once."""
        job = self._scheduler.get_job(event.job_id)
        if job is None or not job.args or event.job_id in self._dense:
            return
        text = texts.PLANNED_DENSE.format(scene=job.args[0].scene, minutes=self._rules.late_s / 60)
        self._dense[event.job_id] = asyncio.create_task(self._twin.tell_owner(text))

    async def planned(self, message: Scheduled) -> None:
        """Say what is due, or a little later; tell the owner where it comes to nothing."""
        moment, zone = now(), self._twin.settings.zone
        when = planned.due(message, moment, zone) or moment
        left_s = self._rules.late_s - (moment - when).total_seconds()
        try:
            outcome = "late"
            if left_s > -_TICK_S:
                outcome = await planned.say(self._twin.presence, message, self._account_of, max(left_s, 0.0))
        except ArchiveError as e:
            logger.warning("a planned message is not said: {}", e)
            outcome = "failed: fault"
        if planned.missed(outcome):
            why = texts.PLANNED_WHY.get(outcome) or texts.OUTCOMES.get(outcome, outcome)
            time = when.astimezone(zone).strftime("%m-%d %H:%M")
            await self._twin.tell_owner(texts.PLANNED_MISSED.format(time=time, scene=message.scene, why=why))

    async def tick(self) -> None:
        """One minute: in each scene an opening is as likely as the person's own rate says."""
        moment, settings = now(), self._twin.settings
        try:
            if self._learned is None or moment - self._learned > _LEARN_EVERY:
                self._learning = asyncio.create_task(asyncio.to_thread(self._learn, moment))
                self._rates, self._learned = await asyncio.shield(self._learning), moment
            hour = moment.astimezone(settings.zone).hour
            for scene, by_hour in self._rates.items():
                likely = by_hour[hour] * self._rules.scale * _TICK_S / 3600
                if self._rng.random() < likely and openings.may_open(self._twin.archive, scene, settings, moment):
                    self._open(scene)
        except ArchiveError as e:
            logger.warning("nothing is said first: {}", e)

    def _learn(self, moment: datetime) -> dict[Scene, Rates]:
        return openings.learn(self._twin.archive, self._twin.persona_of, self._twin.settings, moment)

    def _open(self, scene: Scene) -> None:
        account = self._account_of(scene)
        if account is None:
            logger.info("nothing is said first in a {} scene: which account is in it is not known", scene.kind)
            return
        if self._twin.presence.forbids(scene, account) != "off":  # where it is off nothing is decided
            self._twin.presence.open(scene, account, "", "own")

    def _account_of(self, scene: Scene) -> str | None:
        """The connected account that heard something there last, or spoke there last; the only one, if there is one."""
        connected = list(self._accounts())
        heard = self._twin.presence.account_of(scene)
        if heard in connected or len(connected) < 2:
            return heard if heard in connected else next(iter(connected), None)
        spoke = {a: self._twin.archive.last_spoke(scene, [a], now()) for a in connected}
        known = [(when, a) for a, when in spoke.items() if when is not None]
        return max(known)[1] if known else None
