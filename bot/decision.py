"""To speak or not: a small logistic model over P(silent) and what the text does not show.

log-odds of speaking = intercept + Σ weight · feature, fitted on the tune split (training/evaluate.py), stored in the
version's manifest, and added to by the configured shifts in the open: `/why` shows every term.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo

from bot.message import Message, Origin
from bot.persona import Calibration
from bot.prompt import Exchange

_TERMS = {
    "intercept": "基础", "log_odds": "模型", "since_spoke": "多久没说话", "private": "私聊", "mentioned": "被@",
    "quoted": "被引用", "named": "被叫名字", "burst": "对方几句", "hour": "钟点",
    "shift:mention": "配置·被@", "shift:quote": "配置·被引用", "shift:name": "配置·被叫名字", "shift:bias": "配置·偏置",
    "shift:scene": "配置·本场景", "shift:loop": "像程序在对聊",
}  # fmt: skip
"""What the terms of a decision are called where people read them."""
_SHOWN = 0.05
LOG_ODDS_MAX = 12.0
"""P(silent) is clipped to e^-12: beyond, float32 logits are noise."""
FEATURES = ("log_odds", "since_spoke", "private", "mentioned", "quoted", "named", "burst", "hour_sin", "hour_cos")
"""Names of all features, in the order of the fit."""
_LONG_AGO_S = 3 * 86400.0
LOOP_REPLY_S, LOOP_FREE, LOOP_SHIFT = 10.0, 12, 0.5
"""Seconds in which a program answers; such exchanges in a row that cost nothing; log-odds off for each further one."""
SLOW_REPLY_S, SLOW_FREE = 90.0, 24
"""The same where programs take a person's time, as another twin does, or are several. Of 2,740 exchanges of two
histories the longest such run was 9."""

UNCALIBRATED = Calibration(
    intercept=-3.0, weights={"private": 5.0, "mentioned": 3.0, "quoted": 3.0, "named": 2.5, "since_spoke": -0.1}
)
"""A bare base, whose P(silent) means nothing: answers in private and when addressed, seldom otherwise. Set by hand."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A decision point.

    Args:
        p_silent: the model's probability of end-of-turn as the first token, or None without a model.
        since_spoke_s: seconds since the person (or twin) last spoke in the scene; None: never, or long ago.
        private: whether it is a chat between two.
        mentioned: whether the burst mentions the person's or the account's number.
        quoted: whether the burst quotes the person or the twin.
        named: whether a name of the person occurs in the burst.
        burst: bubbles in it.
        hour: local hour with fraction, 0–24.
    """

    p_silent: float | None
    since_spoke_s: float | None
    private: bool
    mentioned: bool
    quoted: bool
    named: bool
    burst: int
    hour: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to speak, and every term that led there.

    Args:
        speaks: the decision.
        p_speak: probability of speaking after all shifts.
        draw: the random number it was compared with; below `p_speak` speaks.
        terms: log-odds by feature or shift; they add up to logit(p_speak).
    """

    speaks: bool
    p_speak: float
    draw: float
    terms: dict[str, float] = field(default_factory=dict)


def moment_of(
    exchange: Exchange,
    *,
    last_spoke: datetime | None,
    ids: Collection[str],
    names: Collection[str],
    quoted: Callable[[Message], Message | None],
    ours: Callable[[Message], bool],
    zone: tzinfo,
    p_silent: float | None = None,
) -> Moment:
    """The decision point at the end of an exchange's burst; the same for training and for answering.

    Args:
        exchange: the burst; not empty, or the person spoke first and there is nothing to decide.
        last_spoke: when the person or twin last spoke in the scene before the burst ended.
        ids: QQ numbers whose mention means the person (theirs and the account's).
        names: names the person listens to.
        quoted: the message another one quotes, or None.
        ours: whether a message is the person's or the twin's.
        zone: where the person lives.
        p_silent: the model's, where known.
    """
    targets = [quoted(m) for m in exchange.heard]
    since = None if last_spoke is None else (exchange.decided_at - last_spoke).total_seconds()
    return Moment(
        p_silent=p_silent,
        since_spoke_s=since,
        private=exchange.first.scene.private,
        mentioned=any(i in m.mentions for m in exchange.heard for i in ids),
        quoted=any(t is not None and ours(t) for t in targets),
        named=any(n in m.text for m in exchange.heard for n in names),
        burst=len(exchange.heard),
        hour=local_hour(exchange.decided_at, zone),
    )


def loop_shift(history: Sequence[Exchange]) -> float:
    """Log-odds taken off where the newest exchanges look like programs talking.

    Counted are the exchanges, the newest first, in which one and the same other speaker answers the twin within
    `LOOP_REPLY_S`, or anybody within `SLOW_REPLY_S`. People pause and let things stand; programs never do, and the
    longer it goes the less is said, until one falls silent.

    Args:
        history: oldest first; the last one is to be decided.
    """
    quick = _run(history, LOOP_REPLY_S, history[-1].first.sender_id)
    return -LOOP_SHIFT * max(0, quick - LOOP_FREE, _run(history, SLOW_REPLY_S) - SLOW_FREE)


def _run(history: Sequence[Exchange], within_s: float, other: str | None = None) -> int:
    """How many exchanges, the newest first, were answered within seconds: by one speaker alone, if given."""
    run = 0
    for earlier, later in zip(history[-2::-1], history[:0:-1], strict=True):
        if not earlier.said or earlier.said[-1].origin is not Origin.TWIN or not later.heard:
            break
        if other is not None and {m.sender_id for m in (*earlier.heard, *later.heard)} != {other}:
            break
        if (later.heard[0].time - earlier.said[-1].time).total_seconds() > within_s:
            break
        run += 1
    return run


def local_hour(time: datetime, zone: tzinfo) -> float:
    """Hour of the day with fraction, 0–24, where the person lives."""
    local = time.astimezone(zone)
    return local.hour + local.minute / 60


def features(moment: Moment, silence_keep: float = 1.0) -> dict[str, float]:
    """Feature values by name.

    Args:
        moment: the decision point.
        silence_keep: part of the silences that was trained; P(silent) is corrected for the rest here, once.
    """
    angle = moment.hour / 24 * 2 * math.pi
    since = _LONG_AGO_S if moment.since_spoke_s is None else min(moment.since_spoke_s, _LONG_AGO_S)
    values = {
        "since_spoke": math.log1p(max(0.0, since)),
        "private": float(moment.private),
        "mentioned": float(moment.mentioned),
        "quoted": float(moment.quoted),
        "named": float(moment.named),
        "burst": math.log1p(moment.burst),
        "hour_sin": math.sin(angle),
        "hour_cos": math.cos(angle),
    }
    if moment.p_silent is not None:
        values["log_odds"] = speak_log_odds(moment.p_silent, silence_keep)
    return values


def speak_log_odds(p_silent: float, silence_keep: float = 1.0) -> float:
    """log((1 - p) / p) of a probability of silence, corrected for subsampled silences, clipped to ±12."""
    tiny = math.exp(-LOG_ODDS_MAX)
    p = min(max(p_silent, tiny), 1 - tiny)
    raw = math.log1p(-p) - math.log(p) + math.log(silence_keep)
    return min(max(raw, -LOG_ODDS_MAX), LOG_ODDS_MAX)


def decide(moment: Moment, calibration: Calibration | None, shifts: dict[str, float], draw: float) -> Verdict:
    """Decide one moment.

    Args:
        moment: the decision point.
        calibration: the version's; None (a bare base) uses `UNCALIBRATED`.
        shifts: configured log-odds by name, already chosen for this moment.
        draw: uniform in [0, 1), the same for every re-decision of a burst.
    """
    model = calibration or UNCALIBRATED
    values = features(moment, model.silence_keep)
    terms = {"intercept": model.intercept}
    terms |= {name: weight * values[name] for name, weight in model.weights.items() if name in values}
    terms |= {f"shift:{name}": value for name, value in shifts.items() if value}
    p_speak = sigmoid(sum(terms.values()))
    return Verdict(draw < p_speak, p_speak, draw, terms)


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x), without overflow."""
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    return math.exp(x) / (1 + math.exp(x))


def in_words(terms: Mapping[str, float]) -> str:
    """Every term of a decision that shows in a tenth of log-odds, largest first: for `/why`, in QQ and in the terminal.

    Args:
        terms: of a `Verdict`; both coordinates of the hour are told as one.
    """
    told = {name: value for name, value in terms.items() if name not in ("hour_sin", "hour_cos")}
    told["hour"] = terms.get("hour_sin", 0.0) + terms.get("hour_cos", 0.0)
    largest = sorted(told.items(), key=lambda term: -abs(term[1]))
    return "，".join(f"{_TERMS.get(name, name)} {value:+.1f}" for name, value in largest if abs(value) >= _SHOWN)
