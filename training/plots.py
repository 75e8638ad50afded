"""Corpus → PNGs of what `twin corpus stats` tells: hours, delays, lengths, bubbles a turn, months."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training import stats
from training.corpus import Corpus

_SIZE = (7.0, 4.0)


def write(corpus: Corpus, folder: Path) -> list[Path]:
    """Write the plots; gives their paths. Labels are English: matplotlib ships no font with Chinese characters.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = list(stats.own(corpus))
    months = Counter(f"{m.time.astimezone(corpus.zone):%Y-%m}" for m in own)
    turns = stats.bubbles_per_turn(corpus)
    waits = {k: stats.delays(corpus, private=k == "private") for k in ("private", "group")}
    return [
        _bars(folder / "hours.png", "own bubbles by local hour", range(24), stats.hours(corpus)),
        _bars(folder / "months.png", "own bubbles by month", sorted(months), [months[m] for m in sorted(months)]),
        _bars(folder / "turns.png", "turns by their bubbles", sorted(turns), [turns[n] for n in sorted(turns)]),
        _spread(folder / "lengths.png", "characters of a bubble", {"own": [len(m.text) for m in own]}),
        _spread(folder / "delays.png", "seconds until an answer", waits),
    ]


def _bars(file: Path, title: str, names: Sequence[Any], values: Sequence[int]) -> Path:
    figure, axes = _figure(title)
    axes.bar([str(n) for n in names], values)
    axes.tick_params(axis="x", labelrotation=90 if len(names) > 24 else 0)
    figure.savefig(file)
    return file


def _spread(file: Path, title: str, series: Mapping[str, Sequence[float]]) -> Path:
    """Part of the values up to x, x logarithmic: the long tail and the bulk are both seen."""
    figure, axes = _figure(title)
    for name, values in series.items():
        if values:
            axes.step(np.sort(np.maximum(values, 1)), np.arange(1, len(values) + 1) / len(values), label=name)
    axes.set_xscale("log")
    axes.set_ylabel("part")
    if any(series.values()):
        axes.legend()
    figure.savefig(file)
    return file


def _figure(title: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes
