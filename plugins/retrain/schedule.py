"""When nights run: a crontab line in the person's time zone, with jitter; a missed or unfinished one after start."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger
from loguru import logger

from bot.twin import Twin
from plugins.retrain.nights import Nights, not_installed

_AFTER_START = timedelta(minutes=2)
_ONCE: dict[str, Any] = {"coalesce": True, "misfire_grace_time": None}
"""A machine that slept at the time runs the night when it wakes, once."""


class Schedule:
    """Runs nights by the clock.

    Args:
        twin: the assembled twin: `[retrain]`, the time zone, the persona; and who to tell.
        nights: starts them.
    """

    def __init__(self, twin: Twin, nights: Nights) -> None:
        self._twin = twin
        self._settings = settings = twin.settings
        self._nights = nights
        self._scheduler = AsyncIOScheduler(timezone=settings.zone)
        self._note = settings.data / "last_night.json"

    async def start(self) -> None:
        """Begin to watch the clock; where nights cannot run, the owner is told so, now and not every night."""
        retrain = self._settings.retrain
        if not retrain.enabled:
            return
        if missing := not_installed():
            await self._twin.tell_owner(missing)
            return
        trigger = CronTrigger.from_crontab(retrain.cron, timezone=self._settings.zone)
        now = datetime.now(self._settings.zone)
        missed, unfinished = self.missed(trigger, now), self.unfinished()
        trigger.jitter = retrain.jitter_s or None  # add_job ignores its own `jitter` beside a trigger
        self._scheduler.add_job(self.night, trigger, id="night", **_ONCE)
        if missed or unfinished:
            logger.info("the last night was missed or broken off; it runs in {} minutes", _AFTER_START.seconds // 60)
            job = {"args": [unfinished], "id": "missed", "run_date": now + _AFTER_START, **_ONCE}
            self._scheduler.add_job(self.night, "date", **job)
        elif not self._note.exists():
            self._write(now)
        self._scheduler.start()

    def next_night(self) -> datetime | None:
        """When the next one starts; None where none is planned."""
        due = [job.next_run_time for job in self._scheduler.get_jobs() if job.next_run_time is not None]
        return min(due, default=None) if self._scheduler.running else None

    async def stop(self) -> None:
        """Stop watching."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)

    async def night(self, persona: str | None = None) -> None:
        """One scheduled night.

        Args:
            persona: whose; None: the one of `[chat] persona`.
        """
        refused = self._nights.start(persona or self._settings.chat.persona)
        if refused:
            logger.warning("no night: {}", refused)
        else:
            self._write(datetime.now(self._settings.zone))

    def unfinished(self) -> str | None:
        """The persona whose last night was broken off (training.nightly leaves the files), or None."""
        for persona in sorted((self._settings.data / "runs").glob("*/")):
            for run in sorted(persona.glob("*/"), reverse=True):
                if _is_night(run / "snapshot.json"):
                    if not (run / "done.json").exists():
                        return persona.name
                    break
        return None

    def missed(self, trigger: CronTrigger, now: datetime) -> bool:
        """Whether a night should have started since the last one, and the bot was off."""
        try:
            last = datetime.fromisoformat(json.loads(self._note.read_text("utf-8"))["started"])
        except (OSError, ValueError, KeyError, TypeError):
            return False
        due = trigger.get_next_fire_time(None, last + timedelta(seconds=self._settings.retrain.jitter_s + 1))
        return due is not None and due < now

    def _write(self, moment: datetime) -> None:
        beside = self._note.with_name(f".{self._note.name}.tmp")
        beside.write_text(json.dumps({"started": moment.isoformat()}), "utf-8")
        beside.replace(self._note)


def _is_night(snapshot: Path) -> bool:
    try:
        return json.loads(snapshot.read_text("utf-8")).get("night") is True
    except (OSError, ValueError, AttributeError):
        return False
