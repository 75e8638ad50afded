"""`twin corpus clean --model`: a corpus → what its model says of it, kept; and what came of it, in numbers."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

from bot.config import Settings
from training import modelclean
from training.corpus import Corpus
from training.judge import BACK_OFF_S, Judge, Tally
from training.taskwords import Task, Words
from training.verdicts import FILE, Verdicts

Progress = Callable[[str, int, int], None]
"""Called with the task, samples done and all."""


def judged(
    corpus: Corpus,
    settings: Settings,
    progress: Progress = lambda *_: None,
    back_off_s: Sequence[float] = BACK_OFF_S,
) -> dict[str, Any]:
    """Ask the model what is not known yet; gives what it cost and what changed, as plain values.

    Args:
        corpus: as it was built, without what the model said before.
        settings: `[cleaning]`, and `[corpus] pairing`.
        progress: told of every batch.
        back_off_s: pauses between attempts at a server that does not answer.

    Raises:
        EngineError: the server does not answer at all.
        TrainingError: no model is set, the server has another, it failed for good, or its answers cannot be kept.
    """
    words = Words(settings.data, settings.cleaning)
    words.install()
    with closing(Verdicts(settings.data / FILE)) as verdicts:
        tallies = asyncio.run(_asked(corpus, settings, words, verdicts, progress, back_off_s))
        found = modelclean.applied(corpus, settings, verdicts)
        told: dict[str, Any] = {task: _told(tally) for task, tally in tallies.items()}
        if "score" in told:
            told["score"]["scores"] = _scores(corpus, settings, words, verdicts)
        changed = ("masked_low_score", "questions_written", "fragments_joined")
        told["changed"] = {name: found.counts.get(name, 0) for name in changed}
        told["costs_of_all_runs"] = verdicts.costs()
        return told


async def _asked(
    corpus: Corpus,
    settings: Settings,
    words: Words,
    verdicts: Verdicts,
    progress: Progress,
    back_off_s: Sequence[float],
) -> dict[Task, Tally]:
    judge = Judge(settings.cleaning, verdicts, back_off_s)
    try:
        await judge.meet()
        tallies: dict[Task, Tally] = {}
        for task in modelclean.tasks(settings):
            samples = [asked.sample for asked in modelclean.samples(task, corpus, words, verdicts, settings)]
            tallies[task] = await judge.ask(task, words.of(task), samples, _under(task, progress))
        return tallies
    finally:
        await judge.close()


def _under(task: Task, progress: Progress) -> Callable[[int, int], None]:
    return lambda done, size: progress(task, done, size)


def _told(tally: Tally) -> dict[str, Any]:
    shown = {name: value for name, value in asdict(tally).items() if name not in ("bytes", "seconds")}
    return {**shown, "seconds": round(tally.seconds, 1), "kB_per_minute": round(tally.kb_per_minute, 1)}


def _scores(corpus: Corpus, settings: Settings, words: Words, verdicts: Verdicts) -> dict[str, int]:
    """How many answers have each score, and how many have none."""
    said = (verdicts.of(a.sample.key) for a in modelclean.samples("score", corpus, words, verdicts, settings))
    found = Counter("none" if score is None else str(score) for score in said)
    return {name: found[name] for name in (*map(str, modelclean.SCORES), "none")}
