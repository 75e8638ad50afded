"""Sixty-four scenes and a seeded Poisson trace: nothing lost, nobody starved, memory flat."""

import asyncio
import random
import statistics
import time
from pathlib import Path

import psutil

from bench.engine import BURST, Stage
from bench.figures import Figure, show
from bot import base, checksum, config
from bot.persona import Personas
from bot.twin import install_shipped

_SCENES, _PER_SECOND, _TURNS_MAX = 64, 0.8, 12
_MINUTE_S = 60.0


def main(settings: config.Settings, root: Path, *, full: bool, as_json: bool) -> None:
    """Measure everything and print it.

    Args:
        settings: bot.toml's.
        root: its folder.
        full: ten minutes of traffic instead of one.
        as_json: for programs.
    """
    path = base.resolve(settings.engine.base, settings.data, root)
    install_shipped(settings.data / "personas")
    digest = checksum.digest(path)
    version = Personas(settings.data / "personas", digest).find(settings.chat.persona).version
    stage = Stage(path, settings.engine, digest, version.lora if version else None)
    trace = _Trace(stage, 10 * _MINUTE_S if full else _MINUTE_S)
    stage.wait(trace.run())
    stage.close()
    show("traffic", trace.figures(), as_json=as_json)


class _Trace:
    """The traffic, and what came of it."""

    def __init__(self, stage: Stage, seconds: float) -> None:
        self._stage, self._seconds = stage, seconds
        self._rng = random.Random(11)
        self._turns = [stage.history(120, seed) for seed in range(_SCENES)]
        self._talking: set[int] = set()
        self._asked = self._answered = 0
        self._waits: list[float] = []
        self._rss: list[tuple[float, float]] = []

    async def run(self) -> None:
        """Bursts come in to random scenes; a scene that is still being answered gets its burst afterwards."""
        began, due, tasks = time.monotonic(), 0.0, set()
        while (due := due + self._rng.expovariate(_PER_SECOND)) < self._seconds:
            await asyncio.sleep(max(0.0, began + due - time.monotonic()))
            task = asyncio.create_task(self._answer(self._rng.randrange(_SCENES)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            self._rss.append((due, psutil.Process().memory_info().rss / 1e6))
        await asyncio.gather(*tasks)

    async def _answer(self, scene: int) -> None:
        self._asked += 1
        while scene in self._talking:  # noqa: ASYNC110 - seldom: two bursts in one scene within a second
            await asyncio.sleep(0.05)
        self._talking.add(scene)
        turns = self._turns[scene]
        turns += ["嗯", f"{self._asked}{BURST}"]
        if len(turns) > _TURNS_MAX:
            del turns[: _TURNS_MAX // 2 // 2 * 2]  # the oldest half goes at once, as in a window
        asked = self._stage.request(f"scene{scene}", turns, max_tokens=20)
        began = time.monotonic()
        await self._stage.engine.p_silent(asked)
        self._waits.append((time.monotonic() - began) * 1e3)
        async for _ in self._stage.engine.bubbles(asked):
            pass
        self._answered += 1
        self._talking.discard(scene)

    def figures(self) -> list[Figure]:
        """Requests lost, waits, memory."""
        waits = sorted(self._waits)
        p50, p99 = statistics.median(waits), waits[int(len(waits) * 0.99)]
        warm = [rss for at, rss in self._rss if at > self._seconds / 3]
        growth, lost = warm[-1] - warm[0], self._asked - self._answered
        return [
            Figure(f"requests lost of {self._asked} in {self._seconds:.0f} s", lost, "", goal=0, met=not lost),
            Figure("wait for the first logits, p99", p99, "ms", "median", p50, n=len(waits)),
            Figure("memory gained after the first third", growth, "MB", "memory", warm[0]),
            Figure("scenes spilled at the end", self._stage.engine.base.spill.kept_bytes / 1e6, "MB"),
        ]
