"""Speaking first: as often as the person does, and what bot.toml plans by the clock."""

import asyncio
import random
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import Any

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger
from loguru import logger

from bot.archive import Archive
from bot.config import Scheduled
from bot.errors import ArchiveError, PersonaError
from bot.message import Origin, Scene
from bot.openings import LOOKBACK, Rates, rates
from bot.twin import Twin, now

_TICK_S = 60
_JOB: dict[str, Any] = {"coalesce": True, "misfire_grace_time": 300}
"""After a sleep of the machine nothing is said hours late."""
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

    async def start(self) -> None:
        """Begin to watch the clock, where there is anything to say first."""
        zone = self._twin.settings.zone
        if self._rules.enabled:
            self._scheduler.add_job(self.tick, "interval", seconds=_TICK_S, id="openings", **_JOB)
        for number, planned in enumerate(self._rules.schedule):
            trigger = CronTrigger.from_crontab(planned.cron, timezone=zone)
            self._scheduler.add_job(self.planned, trigger, args=[planned], id=f"planned {number}", **_JOB)
        if self._scheduler.get_jobs():
            self._scheduler.start()

    async def stop(self) -> None:
        """Stop watching."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        if self._learning is not None:  # a thread cannot be stopped, and the archive it reads is closed next
            await asyncio.wait([self._learning])

    async def planned(self, message: Scheduled) -> None:
        """Say what is due."""
        self._open(Scene.parse(message.scene), message.prompt, "schedule")

    async def tick(self) -> None:
        """One minute: in each scene an opening is as likely as the person's own rate says."""
        moment = now()
        try:
            if self._learned is None or moment - self._learned > _LEARN_EVERY:
                self._learning = asyncio.create_task(asyncio.to_thread(self._learn, moment))
                self._rates, self._learned = await asyncio.shield(self._learning), moment
            hour = moment.astimezone(self._twin.settings.zone).hour
            for scene, by_hour in self._rates.items():
                likely = by_hour[hour] * self._rules.scale * _TICK_S / 3600
                if self._rng.random() < likely and self._may_open(scene, moment):
                    self._open(scene, "", "own")
        except ArchiveError as e:
            logger.warning("nothing is said first: {}", e)

    def _open(self, scene: Scene, prompt: str, kind: str) -> None:
        account = self._twin.presence.account_of(scene) or self._only_account()
        if account is None:
            logger.info("nothing is said first in a {} scene: which account is in it is not known", scene.kind)
            return
        try:
            hindrance = self._twin.presence.open(scene, account, prompt, kind)
        except ArchiveError as e:
            logger.warning("nothing is said first: {}", e)
            return
        if hindrance is not None:
            logger.info("nothing is said first in a {} scene: {}", scene.kind, hindrance)

    def _only_account(self) -> str | None:
        connected = list(self._accounts())
        return connected[0] if len(connected) == 1 else None

    def _may_open(self, scene: Scene, moment: datetime) -> bool:
        """Whether nothing is going on there, no opening of ours stands unanswered, and today's are not used up."""
        twin = self._twin
        last = twin.archive.window(scene, 1)
        if not last or (moment - last[-1].time).total_seconds() <= twin.settings.conversation.conversation_gap_s:
            return False
        newest = twin.archive.decisions(scene)
        if last[-1].origin is Origin.TWIN and newest and newest[0].why.get("opening"):
            return False
        midnight = moment.astimezone(twin.settings.zone).replace(hour=0, minute=0, second=0, microsecond=0)
        today = twin.archive.decisions_since(midnight, scene)
        opened: int = sum(d.why.get("opening") == "own" and d.outcome == "spoke" for d in today)
        return opened < self._rules.per_day

    def _learn(self, moment: datetime) -> dict[Scene, Rates]:
        twin, found = self._twin, {}
        for summary in twin.archive.scenes():
            scene = summary.scene
            try:
                people = frozenset(twin.persona_of(scene).spec.people)
            except PersonaError:
                continue
            by_hour = _rates(twin.archive, scene, people, twin, moment)
            if any(by_hour):
                found[scene] = by_hour
        logger.info("openings are learned of {} scenes", len(found))
        return found


def _rates(archive: Archive, scene: Scene, people: frozenset[str], twin: Twin, moment: datetime) -> Rates:
    said = archive.times(scene, moment - LOOKBACK)
    rules = twin.settings.conversation
    return rates(said, archive.timeline(scene, "state"), people, rules, twin.settings.zone)
