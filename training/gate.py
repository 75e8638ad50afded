"""Scores of a new version beside the serving version's and the bare base's → may it be published, and why not.

A version passes if it is proven, not if nothing speaks against it: too little held out to judge is a refusal too.
Comparisons are paired (the same labels under both models), because the difference of two models on one label varies
far less than the labels do. The limits are `[gate]`'s, with their reasons.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from bot.config import Gate
from bot.persona import Calibration
from training.evaluate import Metrics, Scored, loss_figure, paired_difference, points
from training.likeness import assessment, silence, use
from training.likeness.assessment import Likeness
from training.likeness.figure import Figure, ratio_figure
from training.samples import Split


class Fault(StrEnum):
    """Why a version is refused."""

    NOT_A_NUMBER = "a figure of the new version is not a number"
    NOTHING_HELD_OUT = "too few held-out labels to judge it by"
    NOT_COMPARABLE = "the models were not scored on the same labels"
    WORSE_THAN_SERVING = "held-out loss is worse than the serving version's"
    NOT_BETTER_THAN_BASE = "held-out loss is not better than the bare base's"
    PARITY = "the exported files are not equal to what was trained"
    WENT_BACK = "it is the version that was rolled back by itself"
    TAKEN_BACK = "it is the version that was rolled back by hand"
    WORSE_ON_NEWEST = "loss on the newest day is worse than the serving version's"
    WORSE_SILENCE = "P(speak) is worse than the serving version's"
    WORSE_STYLE = "the style is further from the person's than the serving version's"
    WORSE_SILENCE_THAN_BASE = "P(speak) is worse than that of the bare base's rule"
    DECLINED = "held-out loss has risen over the last versions"
    MUTE = "it would answer far less often than the person"
    TALKATIVE = "it would answer far more often than the person"
    LEAKS = "answers tell what was learned word for word"
    SILENCE_COLLAPSED = "P(silent) is higher where the person answers"
    NO_ANSWERS = "no sample answer to look at"
    EMPTY_ANSWERS = "sample answers are empty"
    CONTROL_TOKENS = "sample answers hold template tokens"
    BAD_ANSWERS = "too many sample answers loop or copy"


_LABELS, _ENOUGH = 2, 8
"""Held-out labels that a verdict takes at least, and decision points or newest labels that they are judged by. Of equal
versions one label finds half surely better, two a quarter, five a twelfth; of eighty answers two may be held out."""
_TOO_OFTEN = ((1.5, 0.1), (1.0, 0.25))
"""More than so many times the person's reply rate and so much is too often, the first of one who seldom answers."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason for a refusal.

    Args:
        fault: which.
        figure: what was measured, where a figure says it.
        count: how many, where something was counted.
    """

    fault: Fault
    figure: Figure | None = None
    count: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the report's table; None where there is nothing to show.

    Args:
        name: of the measure.
        new: the new version.
        serving: the serving version.
        base: the base with the persona's prompt.
        difference: new less serving (of P(speak), where nothing serves, less base), paired, where they are compared.
        passed: whether a limit on it is kept; None: it is shown, not judged.
    """

    name: str
    new: Figure | None
    serving: Figure | None
    base: Figure | None
    difference: Figure | None = None
    passed: bool | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's answer.

    Args:
        passed: whether it may be published.
        reasons: why not; empty when it passed.
        rows: figures side by side.
        against_serving: loss of the new less that of the serving version, paired; below 0 is better.
        against_base: the same against the bare base.
        likeness: the measures at held-out places, where they were taken.
        behind: nats per token by which the loss lies above the best of the versions before it: the differences of one
            version and the next, added up while they lead away from it.
    """

    passed: bool
    reasons: tuple[Reason, ...]
    rows: tuple[Row, ...]
    against_serving: Figure | None = None
    against_base: Figure | None = None
    likeness: Likeness | None = None
    behind: float = 0.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model's scores and the figures made of them.

    Args:
        scored: all its labels; the gate reads the test split.
        metrics: `training.evaluate.metrics` of them.
        calibration: of its P(speak), as served; None: the built-in one.
    """

    scored: Sequence[Scored]
    metrics: Metrics
    calibration: Calibration | None = None


def verdict(
    new: Candidate,
    serving: Candidate | None,
    base: Candidate,
    parity_passed: bool,
    answers: Sequence[use.Answer],
    likeness: Likeness | None = None,
    rules: Gate = Gate(),  # noqa: B008 - frozen
    *,
    went_back: Fault | None = None,
    behind: float = 0.0,
) -> Verdict:
    """Judge a new version.

    Args:
        new: the version to judge.
        serving: the version that serves, scored on the same windows; None when there is none.
        base: the bare base, scored on the same windows.
        parity_passed: `export.parity.Parity.passed`.
        answers: what it says at held-out moments where the person spoke.
        likeness: the measures of its answers there; without them style and leaks are not judged.
        rules: bot.toml's `[gate]`.
        went_back: `WENT_BACK` or `TAKEN_BACK` where it is, by its weights, what was rolled back before.
        behind: nats per token by which the serving version's loss lies above the best of the versions before it.
    """
    reasons = [Reason(went_back)] if went_back else []
    test = _test(new.scored)
    if not all(math.isfinite(x.nll) and math.isfinite(x.p_silent) for x in new.scored):
        reasons.append(Reason(Fault.NOT_A_NUMBER))
    elif sum(x.tokens > 0 for x in test) < _LABELS:
        reasons.append(Reason(Fault.NOTHING_HELD_OUT))
    against_base = _compared(test, base, reasons)
    against_serving = _compared(test, serving, reasons) if serving else None
    if against_base is not None and not against_base.high < 0:
        reasons.append(Reason(Fault.NOT_BETTER_THAN_BASE, against_base))
    declined = None if against_serving is None else shifted(against_serving, behind)
    if against_serving is not None and worse(against_serving, rules.words_worse_max):
        reasons.append(Reason(Fault.WORSE_THAN_SERVING, against_serving))
    elif declined is not None and declined.value > max(
        behind, rules.words_worse_max
    ):  # who comes nearer is not refused
        reasons.append(Reason(Fault.DECLINED, declined))
    differences = {"loss": against_serving, **_more_differences(new, serving, base, likeness)}
    newest, quiet, style = (differences[name] for name in ("newest", "brier", "style"))
    # Of fewer talks than an interval needs, one that went badly by chance would be "surely" worse.
    if newest is not None and newest.low > 0 and newest.resampled == "conversation":
        reasons.append(Reason(Fault.WORSE_ON_NEWEST, newest))
    if quiet is not None and serving is None and quiet.low > 0:
        reasons.append(Reason(Fault.WORSE_SILENCE_THAN_BASE, quiet))
    if quiet is not None and serving is not None and worse(quiet, rules.silence_worse_max):
        reasons.append(Reason(Fault.WORSE_SILENCE, quiet))
    if style is not None and worse(style, rules.style_worse_max):
        reasons.append(Reason(Fault.WORSE_STYLE, style))
    if not parity_passed:
        reasons.append(Reason(Fault.PARITY))
    auc = new.metrics.auc_text
    if auc is not None and auc.high < 0.5:
        reasons.append(Reason(Fault.SILENCE_COLLAPSED, auc))
    decided = points(new.scored, new.calibration)
    if (quieter := _mute(decided, rules.reply_rate_min)) is not None:
        reasons.append(Reason(Fault.MUTE, quieter))
    if (louder := _talkative(decided)) is not None:
        reasons.append(Reason(Fault.TALKATIVE, louder))
    if likeness is not None and likeness.leaks.judged > rules.leaks_max:
        reasons.append(Reason(Fault.LEAKS, count=likeness.leaks.judged))
    reasons += _answer_faults(answers, rules.bad_answers_max)
    rows = _rows(new, serving, base, differences, {r.fault for r in reasons}, likeness)
    return Verdict(
        not reasons, tuple(dict.fromkeys(reasons)), rows, against_serving, against_base, likeness,
        behind=0.0 if declined is None else max(0.0, declined.value),
    )  # fmt: skip


def shifted(difference: Figure, by: float) -> Figure:
    """The same difference to something that lies so much lower."""
    return difference.model_copy(update={name: getattr(difference, name) + by for name in ("value", "low", "high")})


def worse(difference: Figure, most: float) -> bool:
    """Worse beyond noise, or worse on average and by more than the bound for all we know."""
    return difference.low > 0 or (difference.value > 0 and difference.high > most)


def _more_differences(
    new: Candidate, serving: Candidate | None, base: Candidate, likeness: Likeness | None
) -> dict[str, Figure | None]:
    """New less serving in what is not the test split's loss: the newest day, P(speak), style.

    P(speak) of a first version is compared with the rule by which the base answers until then.
    """
    found: dict[str, Figure | None] = dict.fromkeys(("newest", "brier", "style"))
    decided, before = (points(c.scored, c.calibration) for c in (new, serving or base))
    if len(decided) == len(before) >= _ENOUGH:
        found["brier"] = silence.brier_difference(decided, before)
    if serving is None:
        return found
    latest = _newest(new.scored)
    if sum(x.tokens > 0 for x in latest) >= _ENOUGH:
        found["newest"] = paired_difference(latest, _newest(serving.scored))
    found["style"] = likeness.against_serving.get("style") if likeness else None
    return found


def _mute(decided: Sequence[silence.Point], least: float) -> Figure | None:
    """The reply rate less the least that is asked of it, where it is surely below."""
    found = _reply_rate_less(decided, least, 0.0)
    return found if found is not None and found.high < 0 else None


def _talkative(decided: Sequence[silence.Point]) -> Figure | None:
    """The reply rate less the most that is let through, where it is surely above."""
    found = (_reply_rate_less(decided, times, more) for times, more in _TOO_OFTEN)
    return next((x for x in found if x is not None and x.low > 0), None)


def _reply_rate_less(decided: Sequence[silence.Point], times: float, more: float) -> Figure | None:
    """The reply rate less so many times the person's and so much; None of too few moments."""
    if len(decided) < _ENOUGH:
        return None
    truth = np.array([float(x.speaks) for x in decided])
    p = np.array([x.p_speak for x in decided])
    return ratio_figure(p - times * truth - more, np.ones(len(decided)), [x.cluster for x in decided])


def _test(scored: Iterable[Scored]) -> list[Scored]:
    return [x for x in scored if x.label.split is Split.TEST]


def _newest(scored: Iterable[Scored]) -> list[Scored]:
    return [x for x in scored if x.label.split is Split.NEWEST]


def _compared(test: Sequence[Scored], other: Candidate, reasons: list[Reason]) -> Figure | None:
    """The paired difference; a reason instead when there is something to compare and it cannot be."""
    if any(reason.fault in (Fault.NOT_A_NUMBER, Fault.NOTHING_HELD_OUT) for reason in reasons):
        return None
    theirs = _test(other.scored)
    same = {(x.key, x.tokens) for x in test} == {(x.key, x.tokens) for x in theirs}
    found = paired_difference(test, theirs) if same else None
    if found is None or not math.isfinite(found.value):
        reasons.append(Reason(Fault.NOT_COMPARABLE))
        return None
    return found


def _answer_faults(answers: Sequence[use.Answer], most: float) -> list[Reason]:
    if not answers:
        return [Reason(Fault.NO_ANSWERS)]
    faults = [use.fault(a) for a in answers]
    empty, control = faults.count(use.Fault.EMPTY), faults.count(use.Fault.MARKER)
    bad = len(faults) - empty - control - faults.count(None)
    found = []
    if empty > most * len(answers):
        found.append(Reason(Fault.EMPTY_ANSWERS, count=empty))
    if control:
        found.append(Reason(Fault.CONTROL_TOKENS, count=control))
    if bad > most * len(answers):
        found.append(Reason(Fault.BAD_ANSWERS, count=bad))
    return found


_SHOWN = ("loss", "loss_words", "auc_text", "auc_features", "auc_both", "auc_gain", "brier")
_AT_PLACES = (
    "style", "sense", "authorship", "authorship_way", "useful", "rouge_l", "distinct_2", "repeated", "character",
    "knowledge",
)  # fmt: skip
"""Measures of answers that the table shows; all of them are in the manifest."""
_JUDGED = {
    "loss": (
        Fault.WORSE_THAN_SERVING,
        Fault.DECLINED,
        Fault.NOT_BETTER_THAN_BASE,
        Fault.NOT_COMPARABLE,
        Fault.NOT_A_NUMBER,
    ),
    "newest": (Fault.WORSE_ON_NEWEST,),
    "auc_text": (Fault.SILENCE_COLLAPSED,),
    "brier": (Fault.WORSE_SILENCE, Fault.WORSE_SILENCE_THAN_BASE),
    "reply_rate": (Fault.MUTE, Fault.TALKATIVE),
    "style": (Fault.WORSE_STYLE,),
    "useful": (Fault.EMPTY_ANSWERS, Fault.CONTROL_TOKENS, Fault.BAD_ANSWERS),
    "parity": (Fault.PARITY,),
    "leaks": (Fault.LEAKS,),
}
"""Faults that a row of the table stands for."""
_COMPARED = ("newest", "brier", "style")
"""Rows that are judged by their difference alone: without one, nothing was judged."""


def _rows(
    new: Candidate, serving: Candidate | None, base: Candidate, differences: dict[str, Figure | None],
    faults: set[Fault], likeness: Likeness | None,
) -> tuple[Row, ...]:  # fmt: skip
    models = (new, serving, base)
    figures: dict[str, list[Figure | None]] = {
        name: [getattr(m.metrics, name) if m else None for m in models] for name in _SHOWN
    }
    if differences["newest"] is not None:
        figures["newest"] = [loss_figure(_newest(m.scored)) if m else None for m in models]
    figures["reply_rate"] = [_reply_rate(m) if m else None for m in models]
    if likeness is not None:
        order = (assessment.NEW, assessment.SERVING, assessment.PROMPTED)
        for name in _AT_PLACES:
            figures[name] = [likeness.voices.get(voice, {}).get(name) for voice in order]
    rows = [
        Row(name, found[0], found[1], found[2], differences.get(name), _kept(name, found[0], faults, differences))
        for name, found in figures.items()
        if found[0] is not None or found[2] is not None
    ]
    counted = ["parity"] if likeness is None else ["parity", "leaks"]
    return (*rows, *(Row(name, None, None, None, passed=not faults & set(_JUDGED[name])) for name in counted))


def _kept(
    name: str, figure: Figure | None, faults: set[Fault], differences: dict[str, Figure | None]
) -> bool | None:  # fmt: skip
    if name not in _JUDGED or figure is None or (name in _COMPARED and differences[name] is None):
        return None
    return not faults & set(_JUDGED[name])


def _reply_rate(model: Candidate) -> Figure | None:
    """The twin's reply rate less the person's."""
    rate = silence.rates(points(model.scored, model.calibration)).get("all")
    return rate.gap if rate else None
