"""Scores of a new version beside the serving version's and the bare base's → may it be published, and why not.

A version passes if it is proven, not if nothing speaks against it: too little held out to judge is a refusal too.
Comparisons are paired (the same labels under both models), because the difference of two models on one label varies
far less than the labels do; intervals come from `training.evaluate`.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from bot.prompt import FORMATS
from training.evaluate import Figure, Metrics, Scored, paired_difference
from training.samples import Split

WORSE_MAX = 0.1
"""Nats per token. A version that looks worse than the serving one passes only if it is surely not worse by more than
this: without the bound, a small test split would let a slow decline through night after night."""
BAD_ANSWERS_MAX = 0.15
"""Part of the sample answers that may loop or copy, and part that may be empty: at temperature 0.7 a small model does
so now and then, and an empty answer is not sent."""
_LOOP_TIMES, _RUN_MAX, _SAME_BUBBLE_MAX = 5, 30, 4
_COPY_MIN = 5
"""Characters from which an answer equal to what was heard is a copy; shorter ones (晚安, 哈哈) are manners."""


class Fault(StrEnum):
    """Why a version is refused."""

    NOT_A_NUMBER = "a figure of the new version is not a number"
    NOTHING_HELD_OUT = "no held-out label to judge it by"
    NOT_COMPARABLE = "the models were not scored on the same labels"
    WORSE_THAN_SERVING = "held-out loss is worse than the serving version's"
    NOT_BETTER_THAN_BASE = "held-out loss is not better than the bare base's"
    PARITY = "the exported files are not equal to what was trained"
    SILENCE_COLLAPSED = "P(silent) is higher where the person answers"
    NO_ANSWERS = "no sample answer to look at"
    EMPTY_ANSWERS = "sample answers are empty"
    CONTROL_TOKENS = "sample answers hold template tokens"
    BAD_ANSWERS = "too many sample answers loop or copy"


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
class Answer:
    """A sample answer of the new version at a held-out moment.

    Args:
        heard: the last bubble it answers.
        said: its bubbles, joined by line breaks.
    """

    heard: str
    said: str


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the report's table; None where there is nothing to show.

    Args:
        name: the name of a field of `training.evaluate.Metrics`.
        new: the new version.
        serving: the serving version.
        base: the bare base.
    """

    name: str
    new: Figure | None
    serving: Figure | None
    base: Figure | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's answer.

    Args:
        passed: whether it may be published.
        reasons: why not; empty when it passed.
        rows: figures side by side.
        against_serving: loss of the new less that of the serving version, paired; below 0 is better.
        against_base: the same against the bare base.
    """

    passed: bool
    reasons: tuple[Reason, ...]
    rows: tuple[Row, ...]
    against_serving: Figure | None = None
    against_base: Figure | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model's scores and the figures made of them.

    Args:
        scored: all its labels; the gate reads the test split.
        metrics: `training.evaluate.metrics` of them.
    """

    scored: Sequence[Scored]
    metrics: Metrics


def verdict(
    new: Candidate, serving: Candidate | None, base: Candidate, parity_passed: bool, answers: Sequence[Answer]
) -> Verdict:
    """Judge a new version.

    Args:
        new: the version to judge.
        serving: the version that serves, scored on the same windows; None when there is none.
        base: the bare base, scored on the same windows.
        parity_passed: `export.parity.Parity.passed`.
        answers: what it says at held-out moments where it decided to speak.
    """
    reasons: list[Reason] = []
    test = _test(new.scored)
    if not all(math.isfinite(x.nll) and math.isfinite(x.p_silent) for x in new.scored):
        reasons.append(Reason(Fault.NOT_A_NUMBER))
    elif not any(x.tokens for x in test):
        reasons.append(Reason(Fault.NOTHING_HELD_OUT))
    against_base = _compared(test, base, reasons)
    against_serving = _compared(test, serving, reasons) if serving else None
    if against_base is not None and not against_base.high < 0:
        reasons.append(Reason(Fault.NOT_BETTER_THAN_BASE, against_base))
    if against_serving is not None and _worse(against_serving):
        reasons.append(Reason(Fault.WORSE_THAN_SERVING, against_serving))
    if not parity_passed:
        reasons.append(Reason(Fault.PARITY))
    auc = new.metrics.auc_text
    if auc is not None and auc.high < 0.5:
        reasons.append(Reason(Fault.SILENCE_COLLAPSED, auc))
    reasons += _answer_faults(answers)
    rows = _rows(new.metrics, serving.metrics if serving else None, base.metrics)
    return Verdict(not reasons, tuple(dict.fromkeys(reasons)), rows, against_serving, against_base)


def _test(scored: Iterable[Scored]) -> list[Scored]:
    return [x for x in scored if x.label.split is Split.TEST]


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


def _worse(difference: Figure) -> bool:
    """Worse beyond noise, or worse on average and by more than the bound for all we know."""
    return difference.low > 0 or (difference.value > 0 and difference.high > WORSE_MAX)


def _answer_faults(answers: Sequence[Answer]) -> list[Reason]:
    if not answers:
        return [Reason(Fault.NO_ANSWERS)]
    empty = sum(not a.said.strip() for a in answers)
    control = sum(holds_markers(a.said) for a in answers)
    bad = sum(loops(a.said) or copies(a) for a in answers)
    found = []
    if empty > BAD_ANSWERS_MAX * len(answers):
        found.append(Reason(Fault.EMPTY_ANSWERS, count=empty))
    if control:
        found.append(Reason(Fault.CONTROL_TOKENS, count=control))
    if bad > BAD_ANSWERS_MAX * len(answers):
        found.append(Reason(Fault.BAD_ANSWERS, count=bad))
    return found


_MARKERS = sorted(
    {m for f in FORMATS.values() for x in (f.user_open, f.assistant_open, f.end) for m in re.findall(r"<[^<>\s]+>", x)}
    | {"<bos>", "<eos>", "<pad>", "<unk>", "<|endoftext|>"}
)


def holds_markers(text: str) -> bool:
    """Whether a text holds a token of any chat template."""
    return any(marker in text for marker in _MARKERS)


def loops(text: str) -> bool:
    """Whether a text repeats itself beyond laughter: a phrase five times on end, a character thirty, a bubble four."""
    bubbles = Counter(b.strip() for b in text.split("\n") if len(b.strip()) > 1)
    if any(times >= _SAME_BUBBLE_MAX for times in bubbles.values()):
        return True
    if re.search(rf"(.)\1{{{_RUN_MAX - 1},}}", text):
        return True
    repeated = re.finditer(rf"(.{{2,20}}?)\1{{{_LOOP_TIMES - 1},}}", text, re.DOTALL)
    return any(len(set(match[1])) > 1 for match in repeated)


def copies(answer: Answer) -> bool:
    """Whether an answer only says again what it answers."""
    heard, said = _plain(answer.heard), _plain(answer.said)
    return len(said) >= _COPY_MIN and said == heard


def _plain(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in folded if unicodedata.category(c)[0] in "LN")


_SHOWN = ("loss", "loss_words", "auc_text", "auc_features", "auc_both", "brier")


def _rows(new: Metrics, serving: Metrics | None, base: Metrics) -> tuple[Row, ...]:
    return tuple(
        Row(name, getattr(new, name), getattr(serving, name) if serving else None, getattr(base, name))
        for name in _SHOWN
        if getattr(new, name) is not None or getattr(base, name) is not None
    )
