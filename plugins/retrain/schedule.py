"""When nights run: a crontab line in the person's time zone, with jitter; a missed night runs after the start."""

import json
from datetime import datetime, timedelta

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger
from loguru import logger

from bot.config import Settings
from bot.doctor import TRAINING_MISSING, missing_for_training
from plugins.retrain.nights import Nights

_AFTER_START = timedelta(minutes=2)


class Schedule:
    """Runs nights by the clock.

    Args:
        settings: `[retrain]`, the time zone, the persona.
        nights: starts them.
    """

    def __init__(self, settings: Settings, nights: Nights) -> None:
        self._settings = settings
        self._nights = nights
        self._scheduler = AsyncIOScheduler(timezone=settings.zone)
        self._note = settings.data / "last_night.json"

    async def start(self) -> None:
        """Begin to watch the clock; says so when nights cannot run here."""
        retrain = self._settings.retrain
        if not retrain.enabled:
            return
        if missing := missing_for_training():
            logger.warning("nights do not run: {}", TRAINING_MISSING.format(missing=", ".join(missing)))
            return
        trigger = CronTrigger.from_crontab(retrain.cron, timezone=self._settings.zone)
        self._scheduler.add_job(self.night, trigger, jitter=retrain.jitter_s or None, id="night", coalesce=True)
        now = datetime.now(self._settings.zone)
        if self.missed(trigger, now):
            logger.info("the last night was missed; it runs in {} minutes", _AFTER_START.seconds // 60)
            self._scheduler.add_job(self.night, "date", run_date=now + _AFTER_START, id="missed")
        elif not self._note.exists():
            self._write(now)
        self._scheduler.start()

    async def stop(self) -> None:
        """Stop watching."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)

    async def night(self) -> None:
        """One scheduled night."""
        self._write(datetime.now(self._settings.zone))
        refused = self._nights.start(self._settings.chat.persona)
        if refused:
            logger.warning("no night: {}", refused)

    def missed(self, trigger: CronTrigger, now: datetime) -> bool:
        """Whether a night should have started since the last one, and the bot was off."""
        try:
            last = datetime.fromisoformat(json.loads(self._note.read_text("utf-8"))["started"])
        except (OSError, ValueError, KeyError):
            return False
        due = trigger.get_next_fire_time(None, last + timedelta(seconds=self._settings.retrain.jitter_s + 1))
        return due is not None and due < now

    def _write(self, moment: datetime) -> None:
        self._note.write_text(json.dumps({"started": moment.isoformat()}), "utf-8")
