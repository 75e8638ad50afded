"""/corpus backfill: what the connected client still knows of this scene → the archive, one scene at a time."""

import asyncio
import contextlib

from bot.backfill import PAUSE_S, Backfill, Filled
from bot.commands import Call, Who
from bot.errors import TwinError
from bot.message import Scene
from bot.twin import Twin
from plugins.recorder import texts
from plugins.recorder.calling import caller


class Backfilling:
    """Starts, watches and stops backfills.

    Args:
        twin: the assembled twin.
        pause_s: seconds between two pages.
    """

    def __init__(self, twin: Twin, pause_s: float = PAUSE_S) -> None:
        self._twin = twin
        self._pause_s = pause_s
        self._task: asyncio.Task[None] | None = None
        self._scene: Scene | None = None
        self._filled = Filled()

    def register(self) -> None:
        """Register the command; it is the owners' alone."""
        self._twin.commands.add("corpus", Who.SUPERUSER, self._run)

    async def _run(self, call: Call) -> str:
        match call.args:
            case ("backfill",):
                return self._start(call.scene, call.account)
            case ("backfill", "status"):
                return self._status() if self._running else texts.IDLE
            case ("backfill", "cancel"):
                was = self._running
                await self.close()
                return texts.STOPPED if was else texts.IDLE
            case _:
                return texts.USAGE

    @property
    def _running(self) -> bool:
        return self._task is not None and not self._task.done()

    def _start(self, scene: Scene, account: str) -> str:
        if self._running:
            return self._status()
        self._scene, self._filled = scene, Filled()
        self._task = asyncio.create_task(self._fill(scene, account))
        return texts.STARTED

    def _status(self) -> str:
        return texts.RUNNING.format(scene=self._scene, progress=self._progress())

    def _progress(self) -> str:
        filled = self._filled
        oldest = filled.oldest.astimezone(self._twin.settings.zone).strftime("%Y-%m-%d") if filled.oldest else "—"
        told = texts.PROGRESS.format(pages=filled.pages, messages=filled.messages, added=filled.added, oldest=oldest)
        left = [
            texts.LEFT_OUT_OF.format(why=texts.LEFT_OUT_WHY.get(why) or texts.UNREADABLE.format(why=why), count=count)
            for why, count in filled.skipped.most_common()
        ]
        return told + (texts.LEFT_OUT.format(reasons="、".join(left)) if left else "")

    async def _fill(self, scene: Scene, account: str) -> None:
        """The worker's edge: however it ends, the owner is told."""

        def told(filled: Filled) -> None:
            self._filled = filled

        try:
            self._filled = await Backfill(caller(account), self._twin.archive, self._pause_s).fill(scene, told)
        except TwinError as e:
            await self._twin.tell_owner(texts.FAILED.format(scene=scene, why=e))
        else:
            await self._twin.tell_owner(texts.DONE.format(scene=scene, progress=self._progress()))

    async def close(self) -> None:
        """Stop what runs; what it read is kept."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
