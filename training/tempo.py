"""Corpus → how long the person takes: before an answer by situation, for reading, for typing, between bubbles.

Reading and typing are slopes over characters, what they leave is kept as deciles. A situation seldom seen leans on the
coarser one it is part of, and that one in the end on what people chatting take.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from bot.decision import local_hour
from bot.message import Origin
from bot.pacing import DEFAULT_DELAY_S, DEFAULT_GAP_S, TYPE_S_PER_CHAR, situations
from bot.persona import Tempo
from training.corpus import Corpus

LEAN = 20
"""Observations that weigh as much as the coarser situation: half of what 20 answers say is theirs."""
_PAIRS = 4000
"""Pairs of observations a slope is the median of."""
_TYPE_MAX, _READ_MAX = 1.0, 0.5
_GAP_MAX_S, _READ_WITHIN_S = 30.0, 120.0
"""Longer gaps and waits are something else than typing and reading."""
_DECILES = np.linspace(0, 1, 11)
Array: TypeAlias = npt.NDArray[np.float64]
Of: TypeAlias = tuple[str, ...]
"""A situation, coarse to fine."""


def learn(corpus: Corpus) -> Tempo | None:
    """The person's tempo; None where they never answered or said two bubbles in a row."""
    answers: dict[Of, list[tuple[float, int, int]]] = defaultdict(list)
    gaps: list[tuple[float, int]] = []
    for part in corpus.of_logs().scenes:
        for exchange in part.exchanges:
            said = exchange.said
            gaps += [
                ((b.time - a.time).total_seconds(), len(b.text))
                for a, b in pairwise(said)
                if a.origin is b.origin is Origin.HUMAN
            ]
            if exchange.heard and said and said[0].origin is Origin.HUMAN:
                of = situations(
                    private=part.scene.private, cold=exchange.opened is not None,
                    hour=local_hour(exchange.decided_at, corpus.zone),
                )  # fmt: skip
                waited = (said[0].time - exchange.heard[-1].time).total_seconds()
                answers[of].append((max(0.0, waited), len(exchange.heard[-1].text), len(said[0].text)))
    if not answers and not gaps:
        return None
    gap_s, gap_chars = _columns([g for g in gaps if g[0] <= _GAP_MAX_S], 2)
    per_typed = _leaning(slope(gap_chars, gap_s), len(gap_s), TYPE_S_PER_CHAR, _TYPE_MAX)
    # Who comes back after an hour did not read for an hour.
    under_way = [a for of, rows in answers.items() if of[1].endswith("mid") for a in rows if a[0] <= _READ_WITHIN_S]
    waited_s, heard, first = _columns(under_way, 3)
    per_read = _leaning(slope(heard, waited_s - per_typed * first), len(waited_s), 0.0, _READ_MAX)
    typed = per_typed * float(np.median(gap_chars)) if len(gap_chars) else 0.0
    usual = per_typed * _median(first) + per_read * _median(heard)
    left = {
        of: [max(0.0, wait - per_read * h - per_typed * f) for wait, h, f in rows] for of, rows in answers.items()
    }  # fmt: skip
    return Tempo(
        answer_s=_by_situation(left, _less(DEFAULT_DELAY_S, usual)),
        gap_s=leaning(np.maximum(gap_s - per_typed * gap_chars, 0.0), _less(DEFAULT_GAP_S, typed)),
        read_s_per_char=round(per_read, 4),
        type_s_per_char=round(per_typed, 4),
    )


def leaning(seen: Sequence[float] | Array, parent: Sequence[float]) -> tuple[float, ...]:
    """Deciles of what was seen, drawn towards a parent's by `LEAN`: the weighted barycentre of both distributions.

    Averaged are the quantile functions (in one dimension the Wasserstein barycentre), of log(1 + s): an answer that
    came an hour late must not move the others.

    Args:
        seen: seconds, in any order.
        parent: 11 ascending quantiles in seconds.
    """
    own = np.quantile(np.log1p(seen), _DECILES) if len(seen) else np.zeros(11)
    mixed = (len(seen) * own + LEAN * np.log1p(parent)) / (len(seen) + LEAN)
    return tuple(round(float(x), 2) for x in np.expm1(mixed))


def slope(x: Array, y: Array) -> float | None:
    """Theil–Sen: the median of the slopes between pairs of points, drawn at random if they are many; None without any.

    Outliers, of which delays are full, do not move it.
    """
    if len(x) < 2:
        return None
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, len(x), (2, _PAIRS))
    apart = x[one] != x[other]
    if not apart.any():
        return None
    return float(np.median((y[one] - y[other])[apart] / (x[one] - x[other])[apart]))


def _leaning(found: float | None, n: int, usual: float, most: float) -> float:
    """A slope drawn towards the usual one as deciles are, within what a person can do."""
    own = usual if found is None else min(max(found, 0.0), most)
    return (n * own + LEAN * usual) / (n + LEAN)


def _by_situation(left: Mapping[Of, Sequence[float]], usual: Sequence[float]) -> dict[str, tuple[float, ...]]:
    """Deciles of every situation and of the coarser ones it is part of; in none of them anything counts twice."""

    def seen(within: str, without: str | None) -> list[float]:
        return [s for of, seconds in left.items() if within in of and without not in of for s in seconds]

    found: dict[str, tuple[float, ...]] = {}
    for path in {of[:depth] for of in left for depth in range(1, len(of) + 1)}:
        deciles = tuple(usual)
        for name, finer in zip(path, (*path[1:], None), strict=True):
            deciles = leaning(seen(name, finer), deciles)
        found[path[-1]] = deciles
    return dict(sorted(found.items()))


def _less(quantiles: Sequence[float], seconds: float) -> tuple[float, ...]:
    return tuple(max(0.0, q - seconds) for q in quantiles)


def _columns(rows: Sequence[Sequence[float]], n: int) -> Array:
    return np.array(rows, dtype=float).reshape(-1, n).T


def _median(values: Array) -> float:
    return float(np.median(values)) if len(values) else 0.0
