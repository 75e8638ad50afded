"""How long a night with 200 new messages takes, step by step: going on from the LoRA that serves, or afresh.

The night before learned a little of the rest and judged it, so that scores and answers of what did not change since are
kept, as in a daemon's every night but its first.
"""

import time
from pathlib import Path
from typing import Any, Literal

from bench.drift import read
from bench.figures import Figure, show
from bench.history import FAMILY
from bot import base, checksum, config, doctor
from bot.archive import Archive
from bot.message import Message
from bot.persona import Personas, new_persona
from bot.twin import SHIPPED
from training.nightly import Night

NEW = 200
_FIRST_STEPS = 24
"""Optimizer steps of the night before: enough for a version."""
_GOAL_MIN = 10.0


def main(settings: config.Settings, root: Path, *, full: bool, as_json: bool) -> None:
    """Measure and print.

    Args:
        settings: bot.toml's; what it sets of [training] holds.
        root: its folder.
        full: also a night that begins afresh, which reads all of the history again.
        as_json: for programs.
    """
    path = base.resolve(settings.engine.base, settings.data, root)
    file = FAMILY if FAMILY.is_file() else SHIPPED.parent / "history.jsonl"
    every, me, name = read(file, settings.data / "bench-whole-night")
    figures = _night(settings, path, every, me, name, "continue")
    if full:
        figures += _night(settings, path, every, me, name, "fresh")
    show("night", figures, as_json=as_json, of=settings.training)


def _night(
    settings: config.Settings, base_path: Path, every: list[Message], me: str, name: str,
    start: Literal["continue", "fresh"],
) -> list[Figure]:  # fmt: skip
    work, digest = settings.data / "bench-whole-night" / start, checksum.digest(base_path)
    inner = settings.model_copy(update={"paths": config.Paths(data=work)})
    personas = Personas(work / "personas", digest)
    new_persona(personas.root, "night", name, (me,))
    _append(inner, every[:-NEW])
    before = Night(_training(inner, max_steps=_FIRST_STEPS), "night", base_path, digest, doctor.plain_progress(), None)
    first = before.run(force=True)
    if first.kind not in ("published", "refused"):
        raise SystemExit(f"the night before did not come to its end: {first.summary}")
    if first.kind == "refused":
        personas.publish("night", before.folder / "result", force=True)
    _append(inner, every[-NEW:])
    clock = _Clock()
    made = Night(_training(inner, start=start), "night", base_path, digest, clock, None).run(force=True)
    took = clock.total / 60
    goal = _GOAL_MIN if start == "continue" else None
    met = None if goal is None else took <= goal
    return [
        Figure(f"a night with {NEW} new messages, {start} ({made.kind})", took, "min", goal=goal, met=met),
        *(Figure(f"of it {step}, {start}", seconds / 60, "min") for step, seconds in clock.steps.items()),
    ]


def _training(settings: config.Settings, **changed: Any) -> config.Settings:
    return settings.model_copy(update={"training": settings.training.model_copy(update=changed)})


def _append(settings: config.Settings, messages: list[Message]) -> None:
    archive = Archive(settings.archive_url)
    archive.append(messages, "bench")
    archive.close()


class _Clock:
    """Told of a night's steps: what each of them took, in seconds."""

    def __init__(self) -> None:
        self.steps: dict[str, float] = {}
        self._step, self._since = "start", time.monotonic()

    @property
    def total(self) -> float:
        """All of it so far."""
        self._until("end")
        return sum(self.steps.values())

    def __call__(self, step: str, _done: int, _total: int, _words: str) -> None:
        self._until(step)

    def _until(self, step: str) -> None:
        now = time.monotonic()
        self.steps[self._step] = self.steps.get(self._step, 0.0) + now - self._since
        self._step, self._since = step, now
