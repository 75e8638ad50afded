"""Serving versions, looked at by the clock: one that does worse where it lives goes back, and the owner hears why."""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import datetime
from functools import partial

from loguru import logger

from bot import probation
from bot.drift import Outside
from bot.errors import TwinError
from bot.probation import Corrected, Person
from bot.threads import in_thread
from bot.twin import Twin, now
from plugins.retrain import texts


class Probation:
    """Looks at every persona's serving version.

    Args:
        twin: the assembled twin.
    """

    def __init__(self, twin: Twin) -> None:
        self._twin = twin
        self._task: asyncio.Task[None] | None = None
        self._person: dict[tuple[str, str], Callable[[datetime], Person]] = {}
        self._told: set[tuple[str, str]] = set()

    async def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._keep_looking())

    async def stop(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(self._twin.settings.retrain.watch_every_s)
            for name in self._twin.personas.names():
                try:
                    await self.look(name)
                except TwinError as e:
                    logger.warning("persona {} was not looked at: {}", name, e)
                except Exception as e:  # noqa: BLE001 - the worker loop's edge
                    logger.opt(exception=e).error("looking at a persona failed")

    async def look(self, name: str) -> str | None:
        """Look at a persona's serving version; gives what the owner was told, or None.

        Raises:
            ArchiveError: the store cannot be read.
            PersonaError: the persona or the version before cannot be read.
        """
        twin, personas = self._twin, self._twin.personas
        version = personas.current(name)
        if version is None or (name, version) in self._told or personas.withdrawn(name).get(version):
            return None
        spec = personas.spec(name)
        if (name, version) not in self._person:
            read = partial(probation.person, twin.archive, spec, twin.settings)
            self._person = {(name, version): probation.remembered(read)}
        # In a thread: bands are made of whole histories.
        found = await in_thread(
            probation.judge, twin.archive, name, spec, version, twin.settings, now(), self._person[name, version]
        )
        if found is None or personas.current(name) != version:
            return None
        why = reason(found)
        back = personas.withdraw(name, why, now()) if twin.settings.retrain.roll_back else None
        logger.warning("version {} of {} is outside its bounds; back to {}", version, name, back and back.name)
        self._told.add((name, version))
        text = texts.ROLLED_BACK if back else texts.WORSE
        told = text.format(persona=spec.display_name, name=name, version=version, back=back and back.name, why=why)
        await twin.tell_owner(told)
        return told


def reason(found: Corrected | list[Outside]) -> str:
    """Why, in words: counts and figures, never what was said."""
    if isinstance(found, Corrected):
        hits, answers = found.before
        before = texts.CORRECTED_BEFORE.format(corrected=hits, answers=answers) if answers else ""
        return texts.CORRECTED.format(corrected=found.corrected, answers=found.answers, before=before)
    return "；".join(
        texts.OUTSIDE.format(measure=texts.MEASURES[o.measure], value=o.value, low=o.band.low, high=o.band.high)
        for o in found
    )
