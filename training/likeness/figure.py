"""A measured value with its 95 % interval: the one bootstrap all measures share.

Words and decisions of one conversation depend on each other, so whole conversations are resampled. Seeded: the same
cases give the same interval.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

RESAMPLES = 2000
"""Bootstrap draws."""
_MIN_CLUSTERS = 8
"""Fewer conversations than this say nothing of their spread: single cases are resampled instead, and it is shown."""
_Z = 1.96
"""Of the normal distribution, 95 % lie so many standard deviations around the mean."""
_CELLS = 4_000_000
"""Weights held at once (draws x cases): 32 MB."""

Array: TypeAlias = npt.NDArray[np.float64]
Statistic: TypeAlias = Callable[[Array], Array]
"""Weights (draws, cases) → values (draws,); NaN where a draw has none."""


class Figure(BaseModel):
    """A measured value with its 95 % interval."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    value: float
    low: float
    high: float
    n: int
    """Tokens of a loss, cases otherwise."""
    resampled: Literal["conversation", "label"]
    """What the bootstrap drew; by label, the interval is too narrow."""


def bootstrap(
    statistic: Statistic,
    clusters: Sequence[Hashable],
    *,
    n: int | None = None,
    resamples: int = RESAMPLES,
    centred: bool = False,
    seed: int = 0,
) -> Figure | None:
    """A statistic with its 95 % percentile interval (Efron & Tibshirani 1993, ch. 13) from resampled conversations.

    Args:
        statistic: of weighted cases.
        clusters: the conversation of each case; cases of one are drawn together.
        n: what to report as the number of cases; None: their number.
        resamples: draws.
        centred: put the interval around the value. For distances: of resampled cases they are larger than of the
            cases themselves (each drawn set is another sample more), by about as much as their own noise.
        seed: of the draws.

    Returns:
        None without cases, or where the statistic is not defined for them.
    """
    if not len(clusters):
        return None
    value = float(statistic(np.ones((1, len(clusters))))[0])
    if not np.isfinite(value):
        return None
    groups, by = grouped(clusters)
    number = int(groups.max()) + 1
    rng, at_once = np.random.default_rng(seed), max(1, _CELLS // len(clusters))
    parts = []
    for start in range(0, resamples, at_once):
        counts = rng.multinomial(number, np.full(number, 1 / number), min(at_once, resamples - start))
        parts.append(statistic(counts[:, groups].astype(np.float64)))
    drawn = np.concatenate(parts)
    drawn = drawn[np.isfinite(drawn)]
    low, high = (float(x) for x in np.quantile(drawn, [0.025, 0.975])) if len(drawn) else (-np.inf, np.inf)
    if centred and len(drawn):
        shift = value - float(drawn.mean())
        low, high = low + shift, high + shift
    return Figure(value=value, low=low, high=high, n=len(clusters) if n is None else n, resampled=by)


def ratio_figure(sums: Array, weights: Array, clusters: Sequence[Hashable], seed: int = 0) -> Figure | None:
    """Σ sums / Σ weights with its interval; None if the weights add to 0. Its `n` is the sum of the weights."""
    if not len(weights) or weights.sum() <= 0:
        return None
    groups, by = grouped(clusters)
    totals, sizes = (np.bincount(groups, x).astype(np.float64) for x in (sums, weights))
    found = bootstrap(ratio_of(totals, sizes), range(len(totals)), n=int(weights.sum()), seed=seed)
    return found.model_copy(update={"resampled": by}) if found else None


def mean_figure(values: Sequence[float] | Sequence[bool], clusters: Sequence[Hashable]) -> Figure | None:
    """The mean of one value a case with its interval; None without any.

    Of yes and no the share. Where all cases agree no draw differs, though the next case may: the interval is Wilson's
    (1927) then, of the conversations and not of the cases.
    """
    numbers = np.asarray(values, dtype=np.float64)
    found = ratio_figure(numbers, np.ones(len(numbers)), clusters)
    if found is None or np.asarray(values).dtype != np.bool_ or len(set(values)) > 1:
        return found
    number = int(grouped(clusters)[0].max()) + 1
    surely = number / (number + _Z**2)
    return found.model_copy(update={"low": surely} if found.value else {"high": 1 - surely})


def ratio_of(sums: Array, weights: Array) -> Statistic:
    """Σ sums / Σ weights as a statistic of weighted cases."""

    def statistic(drawn: Array) -> Array:
        sizes = drawn @ weights
        return quotient(drawn @ sums, sizes)

    return statistic


def quotient(above: Array, below: Array) -> Array:
    """Above / below by draw; NaN where there is nothing to divide by."""
    found = np.full(above.shape, np.nan)
    np.divide(above, below, out=found, where=below > 0)
    return found


def grouped(clusters: Sequence[Hashable]) -> tuple[npt.NDArray[np.int64], Literal["conversation", "label"]]:
    """Numbers of the conversations of cases, and what is resampled: single cases where conversations are too few."""
    numbers: dict[Hashable, int] = {}
    groups = np.array([numbers.setdefault(c, len(numbers)) for c in clusters], dtype=np.int64)
    if len(numbers) < _MIN_CLUSTERS:
        return np.arange(len(clusters)), "label"
    return groups, "conversation"
