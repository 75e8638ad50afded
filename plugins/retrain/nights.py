"""One night at a time, as a child process at idle priority; progress over a pipe."""

import asyncio
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loguru import logger

from bot import processors
from bot.child import environment
from bot.doctor import missing_for_training
from bot.twin import Twin
from plugins.retrain import texts


def not_installed() -> str | None:
    """What is said where packages that train are missing; None where nights can run."""
    missing = missing_for_training()
    return texts.NOT_INSTALLED.format(missing="、".join(missing)) if missing else None


class Nights:
    """Starts, watches and stops nights.

    Args:
        twin: the assembled twin: settings, and who to tell.
        config_path: bot.toml, handed to the child.
        program: what is started with `night --persona …`.
    """

    def __init__(self, twin: Twin, config_path: Path, program: Sequence[str] = (sys.executable, "-m", "bot")) -> None:
        self._twin = twin
        self._program = program
        self._config_path = config_path
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._state: dict[str, Any] = {}
        self.last = ""
        """What the last night told the owner."""

    @property
    def running(self) -> bool:
        """Whether a night is under way."""
        return self._task is not None and not self._task.done()

    def start(self, persona: str, *, force: bool = False) -> str | None:
        """Start a night; None when it started, else why not."""
        if missing := not_installed():
            return missing
        if self.running:
            return texts.RUNNING.format(state=self.status())
        self._state = {}
        self._task = asyncio.create_task(self._guarded(persona, force))
        return None

    def status(self) -> str:
        """Where the night is, in words."""
        if not self.running:
            return texts.IDLE.format(last=texts.LAST.format(summary=self.last) if self.last else "")
        step, total = str(self._state.get("step", "snapshot")), self._state.get("total", 0)
        count = f"{self._state.get('done', 0)}/{total} " if total else ""
        return texts.STATUS.format(step=texts.STEPS.get(step, step), count=count, words=self._state.get("text", ""))

    async def cancel(self) -> bool:
        """Stop the night that runs; what it finished is kept. False when none ran."""
        if not self.running or self._task is None:
            return False
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        return True

    async def close(self) -> None:
        """Stop what runs, on shutdown."""
        await self.cancel()

    async def _guarded(self, persona: str, force: bool) -> None:
        """The worker's edge: however the night ends, the owner is told."""
        try:
            async with asyncio.timeout(self._twin.settings.retrain.timeout_s):
                self.last = await self._run(persona, force)
        except TimeoutError:
            self.last = texts.TIMEOUT.format(hours=self._twin.settings.retrain.timeout_s / 3600)
        except (OSError, ValueError) as e:  # ValueError: a line beyond the pipe's limit
            self.last = texts.FAILED.format(why=getattr(e, "strerror", None) or type(e).__name__)
        await self._twin.tell_owner(self.last)

    async def _run(self, persona: str, force: bool) -> str:
        threads = self._twin.settings.training.threads or max(1, processors.usable() - 1)
        command = ["night", "--persona", persona, "--json", "--idle", "--config", str(self._config_path)]
        self._process = await asyncio.create_subprocess_exec(
            *self._program, *command, *(["--force"] if force else []), env=environment(threads),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2], limit=1 << 20,
        )  # fmt: skip
        logger.info("a night of {} runs as process {}", persona, self._process.pid)
        try:
            return await self._follow(self._process)
        finally:
            await _end(self._process)
            self._process = None

    async def _follow(self, process: asyncio.subprocess.Process) -> str:
        assert process.stdout is not None
        assert process.stderr is not None
        errors = asyncio.create_task(process.stderr.read())
        summary = ""
        async for line in process.stdout:
            with contextlib.suppress(ValueError):
                state = json.loads(line)
                if isinstance(state, dict) and "outcome" in state:
                    summary = str(state["summary"])
                elif isinstance(state, dict):
                    self._state = state
        code = await process.wait()
        words = (await errors).decode("utf-8", "replace").strip().splitlines()
        return summary or texts.FAILED.format(why=words[-1] if words else f"exit {code}")


async def _end(process: asyncio.subprocess.Process) -> None:
    """Terminate a child that still runs; kill it if it does not go."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), 10)
    except TimeoutError:
        process.kill()
        await process.wait()
