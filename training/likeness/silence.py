"""When they speak and when they are silent: probabilities at decision points → figures of how well that is met.

The daemon draws: it speaks with P(speak). So a reply rate is the mean of P(speak), and `f1_drawn` is what the drawn
decisions come to; `f1` decides at one half. `agreement` is the part decided as the person did: a silence where they
were silent is right.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.likeness.figure import Array, Figure, Statistic, bootstrap, mean_figure, quotient, ratio_figure

_AUC_RESAMPLES = 500
_BINS = 10
"""Bins of equal width for the calibration error (Guo et al. 2017)."""
THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class Point:
    """A decision point.

    Args:
        speaks: whether the person spoke.
        p_speak: the twin's probability of speaking, as served.
        scene: where.
        hour: local hour, 0–24.
        addressed: whether the person was mentioned, quoted or named.
        cluster: its conversation.
    """

    speaks: bool
    p_speak: float
    scene: str
    hour: float
    addressed: bool
    cluster: int


@dataclass(frozen=True, slots=True)
class Rate:
    """How often the person answers and how often the twin would.

    Args:
        person: part of the decision points at which they spoke.
        twin: mean P(speak) there.
        gap: twin less person.
    """

    person: Figure
    twin: Figure
    gap: Figure


def figures(points: Sequence[Point]) -> dict[str, Figure]:
    """All figures by name; one that cannot be measured (nobody spoke, nobody was silent) is left out."""
    truth, p = _truth(points), _p(points)
    clusters = [x.cluster for x in points]
    error = bootstrap(_calibration_error(truth, p), clusters, centred=True)
    found = {
        "auc": auc(truth, p, clusters),
        "average_precision": bootstrap(_average_precision(~truth, 1 - p), clusters, resamples=_AUC_RESAMPLES),
        "brier": brier(points),
        "agreement": mean_figure(np.where(truth, p, 1 - p).tolist(), clusters),
        "ece": error and error.model_copy(update={"low": max(0.0, error.low)}),
        "f1": bootstrap(_f1(truth, (p >= THRESHOLD).astype(np.float64)), clusters),
        "f1_drawn": bootstrap(_f1(truth, p), clusters),
    }
    both = bool(truth.any() and not truth.all())
    return {k: v for k, v in found.items() if v is not None and (both or k in ("brier", "ece", "agreement"))}


def brier(points: Sequence[Point]) -> Figure | None:
    """Mean squared error of P(speak)."""
    return ratio_figure(_squared(points), np.ones(len(points)), [x.cluster for x in points])


def brier_difference(new: Sequence[Point], old: Sequence[Point]) -> Figure | None:
    """Brier of `new` less that of `old` over the same decision points, paired; below 0 is better."""
    return ratio_figure(_squared(new) - _squared(old), np.ones(len(new)), [x.cluster for x in new])


def rates(points: Sequence[Point]) -> dict[str, Rate]:
    """Reply rates by group: `all`, `addressed`, `not addressed`, each `scene …`, and quarters of the day `00-06 h`."""
    groups: Mapping[str, Callable[[Point], bool]] = {
        "all": lambda _: True,
        "addressed": lambda x: x.addressed,
        "not addressed": lambda x: not x.addressed,
    }
    found = {name: _rate([x for x in points if chosen(x)]) for name, chosen in groups.items()}
    for hour in (0, 6, 12, 18):
        found[f"{hour:02}-{hour + 6:02} h"] = _rate([x for x in points if hour <= x.hour < hour + 6])
    for scene in sorted({x.scene for x in points}):
        found[f"scene {scene}"] = _rate([x for x in points if x.scene == scene])
    return {name: rate for name, rate in found.items() if rate is not None}


def _rate(points: Sequence[Point]) -> Rate | None:
    truth, p, clusters = _truth(points), _p(points), [x.cluster for x in points]
    person, twin, gap = (mean_figure(v.tolist(), clusters) for v in (truth, p, p - truth))
    return Rate(person, twin, gap) if person and twin and gap else None


def auc(
    truth: npt.NDArray[np.bool_], scores: Array, clusters: Sequence[int], resamples: int = _AUC_RESAMPLES
) -> Figure | None:
    """Area under the ROC curve with its interval; None with one class only, or scores that are no numbers."""
    if not len(truth) or truth.all() or not truth.any() or not np.isfinite(scores).all():
        return None
    return bootstrap(lambda w: weighted_aucs(truth, scores, w), clusters, resamples=resamples)


def auc_difference(truth: npt.NDArray[np.bool_], new: Array, old: Array, clusters: Sequence[int]) -> Figure | None:
    """AUC of `new` scores less that of `old` ones on the same points, paired; None as for `auc`."""
    if auc(truth, new, clusters, 1) is None or auc(truth, old, clusters, 1) is None:
        return None
    return bootstrap(
        lambda w: weighted_aucs(truth, new, w) - weighted_aucs(truth, old, w), clusters, resamples=_AUC_RESAMPLES
    )


def weighted_aucs(truth: npt.NDArray[np.bool_], scores: Array, weights: Array) -> Array:
    """AUCs under many weightings at once, (draws,); scikit-learn's one by one would take seconds. NaN: one class only.

    Args:
        truth: class of each point, (n,).
        scores: higher for True, (n,).
        weights: how often each point was drawn, (draws, n).
    """
    positive, negative = _by_score(truth, scores, weights)
    below = negative.cumsum(1) - negative / 2
    pairs = positive.sum(1) * negative.sum(1)
    return quotient((positive * below).sum(1), pairs)


def _by_score(truth: npt.NDArray[np.bool_], scores: Array, weights: Array) -> tuple[Array, Array]:
    """Weights of both classes at each distinct score, ascending: (draws, distinct scores)."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    positive = np.add.reduceat(weights[:, order] * truth[order], starts, axis=1)
    negative = np.add.reduceat(weights[:, order] * ~truth[order], starts, axis=1)
    return positive, negative


def _average_precision(truth: npt.NDArray[np.bool_], scores: Array) -> Statistic:
    """Σ (recall_k - recall_k-1) precision_k over distinct scores, as scikit-learn has it."""

    def statistic(weights: Array) -> Array:
        positive, negative = (x[:, ::-1] for x in _by_score(truth, scores, weights))
        hits, taken = positive.cumsum(1), (positive + negative).cumsum(1)
        precision = np.divide(hits, taken, out=np.zeros_like(hits), where=taken > 0)
        return quotient((precision * positive).sum(1), positive.sum(1))

    return statistic


def _calibration_error(truth: npt.NDArray[np.bool_], p: Array) -> Statistic:
    """Σ over bins of |Σ (p - truth)| / Σ 1."""
    bins = np.eye(_BINS)[np.minimum((p * _BINS).astype(int), _BINS - 1)]
    return lambda weights: np.abs((weights * (p - truth)) @ bins).sum(1) / weights.sum(1)


def _f1(truth: npt.NDArray[np.bool_], speaks: Array) -> Statistic:
    """2 TP / (2 TP + FP + FN), decisions being probabilities."""

    def statistic(weights: Array) -> Array:
        said, meant = weights @ speaks, weights @ truth.astype(np.float64)
        return quotient(2 * (weights @ (speaks * truth)), said + meant)

    return statistic


def _truth(points: Sequence[Point]) -> npt.NDArray[np.bool_]:
    return np.array([x.speaks for x in points], dtype=np.bool_)


def _p(points: Sequence[Point]) -> Array:
    return np.array([x.p_speak for x in points], dtype=np.float64)


def _squared(points: Sequence[Point]) -> Array:
    return np.asarray((_p(points) - _truth(points)) ** 2, dtype=np.float64)
