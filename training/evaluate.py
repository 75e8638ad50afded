"""Held-out windows and a scorer → figures with their uncertainty, the calibration of speaking, and the person's pace.

Everything is scored in llama.cpp, as it will be served. The calibration is fitted on the tune split and never sees the
test split; every figure is of the test split. Words of one conversation depend on each other, so intervals come from
resampling whole conversations, not words.
"""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Protocol, TypeAlias

import numpy as np
from loguru import logger
from pydantic import BaseModel, ConfigDict
from sklearn.linear_model import LogisticRegression

from bot.decision import FEATURES, Moment, decide, features
from bot.message import Origin
from bot.persona import Calibration, Pacing
from training import tempo
from training.corpus import Corpus
from training.likeness import silence
from training.likeness.figure import Array, Figure, ratio_figure
from training.samples import Label, Split, Window

HELD_OUT = (Split.TUNE, Split.TEST, Split.NEWEST)
"""What no version under judgement was trained on."""
_MIN_OF_A_CLASS = 8
"""Answers and silences each that a calibration needs; with fewer, nine weights would be noise."""
_APART = timedelta(minutes=30)
"""Between talks of the newest day, as `[conversation] conversation_gap_s` has it unless set."""
_MIN_PACES = 5
"""Measurements that quantiles need."""
_L2 = 1.0
"""scikit-learn's C on standardized features: mild, and keeps weights finite where a split is separable."""


Values: TypeAlias = tuple[float, float]
"""What a model gives a label: -log p summed over its trained tokens (nats), and P(silent)."""


class Measure(Protocol):
    """What scoring needs; `bot.scorer.Scorer` is the real one."""

    def log_probs(self, ids: Sequence[int], wanted: Sequence[tuple[int, int]]) -> Array:
        """Log p(token | ids[:position]) in nats for each wanted (position, token)."""
        ...


@dataclass(frozen=True, slots=True)
class Scored:
    """A held-out label as a model sees it.

    Args:
        label: the decision point.
        nll: -log p summed over its trained tokens (nats).
        tokens: how many those are.
        p_silent: probability of end-of-turn as the first token.
        cluster: labels of one number depend on each other: a conversation, with its neighbour if that is held out too.
    """

    label: Label
    nll: float
    tokens: int
    p_silent: float
    cluster: int

    @property
    def key(self) -> tuple[str, str]:
        """Names the label in any model's scores."""
        return (self.label.scene, self.label.message_id)


class Metrics(BaseModel):
    """Figures of one model on the test split. None: it could not be measured, for want of answers or silences."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    loss: Figure | None
    """Held-out loss on the person's words and silences (nats per token)."""
    loss_words: Figure | None
    """The same without silences."""
    decisions: int
    """Decision points of the test split."""
    silences: int
    """Silences among them."""
    auc_text: Figure | None
    """AUC of P(silent) alone, silence against answer."""
    auc_features: Figure | None
    """AUC of what the text does not show, fitted on the tune split: the baseline."""
    auc_both: Figure | None
    """AUC of both together, as served."""
    auc_gain: Figure | None = None
    """AUC as served less that of the baseline, paired: what the text adds."""
    brier: Figure | None
    """Mean squared error of the served P(speak)."""
    brier_constant: float | None
    """The same when always saying the tune split's rate: what must be beaten."""
    calibrated: bool
    """Whether the tune split had enough answers and silences to fit a calibration; if not, `bot.persona.deciding` says
    what serves."""


def score(
    windows: Sequence[Window],
    scorer: Measure,
    end_id: int,
    splits: Collection[Split] = HELD_OUT,
    progress: Callable[[int, int], None] | None = None,
) -> list[Scored]:
    """Score all labels of some splits.

    Args:
        windows: from `training.samples.windows`, whole and in order.
        scorer: base with or without LoRA.
        end_id: end-of-turn.
        splits: which.
        progress: told (windows done, of how many).
    """
    values: list[Values] = []
    for number, window in enumerate(windows):
        labels = held_out([window], splits)
        if labels:
            values += _score_window(window, labels, scorer, end_id)
        if progress:
            progress(number + 1, len(windows))
    return scored(windows, values, splits)


def scored(windows: Sequence[Window], values: Iterable[Values], splits: Collection[Split] = HELD_OUT) -> list[Scored]:
    """The labels of some splits with what a model gave them before, in the order of `held_out`."""
    clusters = _clusters(windows)
    return [
        Scored(x, nll, len(x.trained), p_silent, clusters[x.scene, x.message_id])
        for x, (nll, p_silent) in zip(held_out(windows, splits), values, strict=True)
    ]


def held_out(windows: Sequence[Window], splits: Collection[Split] = HELD_OUT) -> list[Label]:
    """The labels that `score` scores, in its order."""
    return [x for w in windows for x in w.labels if x.split in splits and (x.trained or x.decision)]


def _clusters(windows: Sequence[Window]) -> dict[tuple[str, str], int]:
    """Runs of consecutive labels of one split in one scene, numbered; of the newest day, its talks."""
    numbers: dict[tuple[str, str], int] = {}
    current, before = 0, None
    last: datetime | None = None
    for label in (x for w in windows for x in w.labels):
        now = (label.scene, label.split)
        gap = label.when - last if label.when is not None and last is not None else timedelta(0)
        current += now != before or (label.split is Split.NEWEST and gap > _APART)
        before, last = now, label.when
        numbers[label.scene, label.message_id] = current
    return numbers


def _score_window(window: Window, labels: Sequence[Label], scorer: Measure, end_id: int) -> list[Values]:
    wanted: list[tuple[int, int]] = []
    for label in labels:
        wanted.append((label.start, end_id))
        wanted += [(i, window.ids[i]) for i in label.trained]
    values = iter(scorer.log_probs(window.ids, wanted))
    found: list[Values] = []
    for label in labels:
        p_silent = math.exp(next(values))
        found.append((-sum(float(next(values)) for _ in label.trained), p_silent))
    return found


def fit_calibration(
    scored: Iterable[Scored], silence_keep: float = 1.0, names: Sequence[str] = FEATURES
) -> Calibration | None:
    """The logistic model of speaking, fitted on the tune split's decision points.

    Args:
        scored: labels of any splits; only tune is used.
        silence_keep: part of the silences that was trained.
        names: features of the fit, from `bot.decision.FEATURES`.

    Returns:
        None when the tune split has too few answers or silences; `bot.decision.UNCALIBRATED` serves then.
    """
    decisions = _decisions(scored, Split.TUNE)
    silences = sum(x.label.silence for x in decisions)
    if min(silences, len(decisions) - silences) < _MIN_OF_A_CLASS:
        logger.warning(
            "no calibration: {} answers and {} silences in the tune split, at least {} of each are needed",
            len(decisions) - silences, silences, _MIN_OF_A_CLASS,
        )  # fmt: skip
        return None
    rows = np.array([[values[n] for n in names] for values in (features(_moment(x), silence_keep) for x in decisions)])
    mean, spread = rows.mean(0), rows.std(0)
    used = spread > 1e-9
    model = LogisticRegression(C=_L2, max_iter=1000)
    speaks = np.array([not x.label.silence for x in decisions])
    model.fit((rows[:, used] - mean[used]) / spread[used], speaks)
    weights = model.coef_[0] / spread[used]
    intercept = float(model.intercept_[0] - (weights * mean[used]).sum())
    kept = [name for name, use in zip(names, used, strict=True) if use]
    return Calibration(
        intercept=round(intercept, 6),
        weights={name: round(float(w), 6) for name, w in zip(kept, weights, strict=True)},
        silence_keep=silence_keep,
    )


def metrics(scored: Sequence[Scored], calibration: Calibration | None, *, fitted: bool = True) -> Metrics:
    """Figures of the test split.

    Args:
        scored: labels of tune and test; tune serves the feature baseline's fit alone.
        calibration: what serves; None: the built-in one.
        fitted: whether that was fitted, and is not P(silent) as the model gives it.
    """
    test = [x for x in scored if x.label.split is Split.TEST]
    decisions = _decisions(scored, Split.TEST)
    tuned = _decisions(scored, Split.TUNE)
    baseline = fit_calibration(scored, names=[n for n in FEATURES if n != "log_odds"])
    served = _p_speak(decisions, calibration)
    truth = np.array([not x.label.silence for x in decisions], dtype=np.float64)
    rate = float(np.mean([not x.label.silence for x in tuned])) if tuned else None
    return Metrics(
        loss=loss_figure(test),
        loss_words=loss_figure([x for x in test if not x.label.silence]),
        decisions=len(decisions),
        silences=int(len(truth) - truth.sum()),
        auc_text=_auc(decisions, np.array([-x.p_silent for x in decisions])),
        auc_features=_auc(decisions, _p_speak(decisions, baseline)) if baseline else None,
        auc_both=_auc(decisions, served) if calibration else None,
        auc_gain=_auc_gain(decisions, served, _p_speak(decisions, baseline)) if calibration and baseline else None,
        brier=ratio_figure((served - truth) ** 2, np.ones(len(truth)), [x.cluster for x in decisions]),
        brier_constant=float(((rate - truth) ** 2).mean()) if rate is not None and len(truth) else None,
        calibrated=fitted and calibration is not None,
    )


def loss_figure(scored: Sequence[Scored]) -> Figure | None:
    """Mean loss in nats per token; None without a token."""
    return ratio_figure(
        np.array([x.nll for x in scored]), np.array([float(x.tokens) for x in scored]), [x.cluster for x in scored]
    )


def paired_difference(new: Sequence[Scored], old: Sequence[Scored]) -> Figure | None:
    """Loss of `new` less loss of `old` on the labels both have, in nats per token; None without any."""
    before = {x.key: x for x in old}
    both = [(x, before[x.key]) for x in new if x.key in before and before[x.key].tokens == x.tokens]
    return ratio_figure(
        np.array([a.nll - b.nll for a, b in both]),
        np.array([float(a.tokens) for a, _ in both]),
        [a.cluster for a, _ in both],
    )


def undone(scored: Sequence[Scored], silence_keep: float) -> list[Scored]:
    """Scores as they would be had all silences been trained: what `silence_keep` takes from P(silent) is given back.

    A model that saw a part of the silences speaks too readily by just that part. Calibration puts it right, the loss
    does not, and a version with another part than the serving one's would be worse at every night.

    Args:
        scored: of a model.
        silence_keep: the part of the silences that it was trained on.
    """
    return [replace(x, nll=x.nll + _excess(x, silence_keep)) if x.label.decision and x.tokens else x for x in scored]


def _excess(x: Scored, silence_keep: float) -> float:
    """What a label's -log p lacks: of the end of turn for a silence, of any other first token for an answer (nats)."""
    silent = min(max(x.p_silent, 1e-12), 1 - 1e-12)
    odds = silent / (1 - silent) / silence_keep
    if x.label.silence:
        return math.log(silent) - math.log(odds / (1 + odds))
    return math.log1p(-silent) + math.log1p(odds)


def _auc(decisions: Sequence[Scored], speak: Array) -> Figure | None:
    """AUC of a score of speaking with its 95 % interval; None with one class only."""
    return silence.auc(np.array([not x.label.silence for x in decisions]), speak, [x.cluster for x in decisions])


def _auc_gain(decisions: Sequence[Scored], served: Array, baseline: Array) -> Figure | None:
    truth = np.array([not x.label.silence for x in decisions])
    return silence.auc_difference(truth, served, baseline, [x.cluster for x in decisions])


def points(scored: Iterable[Scored], calibration: Calibration | None, split: Split = Split.TEST) -> list[silence.Point]:
    """The decision points of a split with P(speak) as the daemon would have it, without configured shifts."""
    decisions = _decisions(scored, split)
    return [
        silence.Point(
            not x.label.silence, float(p), x.label.scene, x.label.moment.hour,
            x.label.moment.mentioned or x.label.moment.quoted or x.label.moment.named, x.cluster,
        )
        for x, p in zip(decisions, _p_speak(decisions, calibration), strict=True)
    ]  # fmt: skip


def _decisions(scored: Iterable[Scored], split: Split) -> list[Scored]:
    return [x for x in scored if x.label.decision and x.label.split is split and math.isfinite(x.p_silent)]


def _moment(scored: Scored) -> Moment:
    return replace(scored.label.moment, p_silent=scored.p_silent)


def _p_speak(decisions: Sequence[Scored], calibration: Calibration | None) -> Array:
    """P(speak) as the daemon would have it, without configured shifts."""
    return np.array([decide(_moment(x), calibration, {}, 0.5).p_speak for x in decisions])


def pacing(corpus: Corpus) -> Pacing:
    """How long the person takes to answer and between bubbles: deciles (empty: too little was seen), by situation."""
    delays: dict[bool, list[float]] = {True: [], False: []}
    gaps: list[float] = []
    again = 0
    for part in corpus.scenes:
        if part.of_set:
            continue
        for exchange in part.exchanges:
            said = exchange.said
            if exchange.heard and said and said[0].origin is Origin.HUMAN:
                delays[part.scene.private].append((said[0].time - exchange.heard[-1].time).total_seconds())
            gaps += [
                (b.time - a.time).total_seconds() for a, b in pairwise(said) if a.origin is b.origin is Origin.HUMAN
            ]
            again += sum(a.text == b.text for a, b in pairwise(said) if a.origin is b.origin is Origin.HUMAN)
    return Pacing(
        private_delay_s=_deciles(delays[True]),
        group_delay_s=_deciles(delays[False]),
        bubble_gap_s=_deciles(gaps),
        repeat_share=round(again / len(gaps), 4) if len(gaps) >= _MIN_PACES else 0.0,
        tempo=tempo.learn(corpus),
    )


def _deciles(seconds: Sequence[float]) -> tuple[float, ...]:
    if len(seconds) < _MIN_PACES:
        return ()
    return tuple(round(float(x), 2) for x in np.quantile(np.maximum(seconds, 0.0), np.linspace(0, 1, 11)))
