"""How a version answers where it lives → is it still the person? Pure functions over what the archive holds; no model.

The measure is the person themselves: their answers, a few dozen in a row, differ from day to day, and that spread is
the band in which the twin's answers have to stay: a prediction interval, wider the fewer blocks it is made of. One
block outside says little where many are looked at, so a measure has to stay outside in several in a row. What the twin
decided is taken without the owner's own shifts, so turning it up is no drift.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean, stdev
from typing import TypeAlias, TypeVar

from bot.archive import Decision
from bot.config import Conversation
from bot.corrections import Correction
from bot.decision import sigmoid
from bot.message import Message
from bot.prompt import exchanges
from bot.redact import PLACEHOLDERS

SPOKE = ("spoke", "cut short")
"""Outcomes of decisions after which something stood in the chat."""
MIN_BLOCKS = 8
"""Blocks of the person's answers a band needs; fewer say nothing of their spread."""
_FLOOR = 0.02
"""Least spread of a share between blocks: a habit that never varied would else forbid its first exception."""
_NO_FACE = "|".join(
    ["图片", "语音", "视频", "聊天记录", "卡片", "位置", "未知", "文件", *(p.strip("[]") for p in PLACEHOLDERS)]
)
_FACE = re.compile(rf"\[(?:动画表情:[^\[\]]*|(?!(?:{_NO_FACE})[\]:])[^\[\]]{{1,12}})\]")
"""A face or a sticker (of any name); other media and what was redacted stand in brackets, too."""
_LAUGHTER = re.compile(r"哈哈|hhh|嘿嘿|嘻嘻|233|lol|笑死", re.IGNORECASE)
_END = tuple("。．.！!？?～~…")

T = TypeVar("T")
Answer: TypeAlias = Sequence[str]
"""One answer: its bubbles as sent."""


@dataclass(frozen=True, slots=True)
class Band:
    """Where a measure of the person lies, block by block.

    Args:
        mean: over their blocks.
        low: where one more block of theirs lies above, as surely as a normal value above its mean less `sigmas`.
        high: likewise, below.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Outside:
    """A measure of the twin's that left the person's band.

    Args:
        measure: its name.
        value: the twin's.
        band: the person's.
    """

    measure: str
    value: float
    band: Band

    @property
    def above(self) -> bool:
        """Whether it lies above the band; else below."""
        return self.value > self.band.high


STYLE: Mapping[str, Callable[[Sequence[Answer]], float]] = {
    "log_chars": lambda answers: fmean(math.log(1 + len(b)) for a in answers for b in a),
    "bubbles": lambda answers: fmean(math.log(len(a)) for a in answers),
    "punctuation": lambda answers: fmean(b.endswith(_END) for a in answers for b in a),
    "faces": lambda answers: fmean(bool(_FACE.search(b)) for a in answers for b in a),
    "laughter": lambda answers: fmean(any(_LAUGHTER.search(b) for b in a) for a in answers),
    "distinct": lambda answers: len({b for a in answers for b in a}) / sum(map(len, answers)),
}
"""Measures of a block of answers by name: mean log length of a bubble (characters), mean log number of bubbles; parts
of the bubbles that end in punctuation and that hold a face or sticker; of the answers that laugh; different bubbles
among all."""


def style_bands(answers: Sequence[Answer], block: int, sigmas: float) -> dict[str, Band]:
    """The person's bands of style, from their answers in order; empty with too few of them.

    Args:
        answers: theirs, oldest first, none empty.
        block: answers in a block: as many as the twin is judged by.
        sigmas: half-width of a band in standard deviations between blocks, were there very many (`_band`).
    """
    blocks = _blocks(answers, block)
    return {name: _band([of(b) for b in blocks], sigmas) for name, of in STYLE.items()} if blocks else {}


def rate_band(spoke: Sequence[bool], block: int, sigmas: float) -> Band | None:
    """The person's band of how often they answer, from their decision points in order; None with too few."""
    blocks = _blocks(spoke, block)
    return _band([fmean(b) for b in blocks], sigmas) if blocks else None


def style_outside(answers: Sequence[Answer], bands: Mapping[str, Band]) -> list[Outside]:
    """The measures of a block of the twin's answers that lie outside the person's bands."""
    return [o for name, band in bands.items() for o in left(name, STYLE[name](answers), band)]


def left(measure: str, value: float, band: Band) -> list[Outside]:
    """That measure if its value left the band, else nothing."""
    return [] if band.low <= value <= band.high else [Outside(measure, value, band)]


def newest(items: Sequence[T], block: int, count: int) -> list[Sequence[T]]:
    """The last `count` disjoint blocks, newest first; none where there are fewer."""
    end = len(items)
    return [items[end - (k + 1) * block : end - k * block] for k in range(count)] if end >= block * count else []


def lasting(found: Sequence[Sequence[Outside]]) -> list[Outside]:
    """Of what lies outside block by block, newest first: what does so in every block and on one side, as it is now."""
    if not found:
        return []
    always = set.intersection(*({(o.measure, o.above) for o in block} for block in found))
    return [o for o in found[0] if (o.measure, o.above) in always]


def inclination(decision: Decision) -> float | None:
    """P(speak) at a decision as it was learned, without configured shifts; None of one that has no terms."""
    terms = decision.why.get("terms")
    if not isinstance(terms, Mapping) or not terms:
        return None
    return sigmoid(sum(value for name, value in terms.items() if not name.startswith("shift:")))


def corrected_rate(decisions: Iterable[Decision], corrections: Iterable[Correction], version: str) -> tuple[int, int]:
    """(corrected answers, answers) of a version."""
    answered = {(d.scene, d.message_id) for d in decisions if d.version == version and d.outcome in SPOKE}
    corrected = {(c.scene, c.on) for c in corrections if c.version == version}
    return len(corrected & answered), len(answered)


def answers_of(messages: Iterable[Message], wanted: Callable[[Message], bool]) -> list[tuple[datetime, Answer]]:
    """Answers in a scene with their times, oldest first: runs of somebody's bubbles with nothing between them.

    Args:
        messages: of one scene, oldest first.
        wanted: whose.
    """
    found: list[tuple[datetime, list[str]]] = []
    before = False
    for message in messages:
        now = wanted(message) and bool(message.text)
        if now and not before:
            found.append((message.time, []))
        if now:
            found[-1][1].append(message.text)
        before = now
    return [(time, tuple(bubbles)) for time, bubbles in found]


def decision_points(
    messages: Sequence[Message], people: frozenset[str], rules: Conversation
) -> list[tuple[datetime, bool]]:
    """The person's decision points in a scene where no twin answers: when, and whether they spoke.

    Args:
        messages: oldest first, of a time when no twin was on there.
        people: their QQ numbers.
        rules: gaps and caps; a silence counts where they were around.
    """
    found, spoke_at = [], None
    for exchange in exchanges(messages, people, rules):
        around = spoke_at is not None and (exchange.decided_at - spoke_at).total_seconds() <= rules.presence_s
        if exchange.heard and (exchange.said or around):
            found.append((exchange.decided_at, bool(exchange.said)))
        spoke_at = exchange.said[-1].time if exchange.said else spoke_at
    return found


def _blocks(items: Sequence[T], block: int) -> list[Sequence[T]]:
    """Full blocks in order; none where there are too few of them."""
    full = len(items) // block
    return [items[i * block : (i + 1) * block] for i in range(full)] if full >= MIN_BLOCKS else []


def _band(values: Sequence[float], sigmas: float) -> Band:
    """Prediction interval of one more block: mean ± t(n-1) · s · sqrt(1 + 1/n)."""
    mean, spread, n = fmean(values), max(stdev(values), _FLOOR), len(values)
    half = _t(sigmas, n - 1) * spread * math.sqrt(1 + 1 / n)
    return Band(mean, mean - half, mean + half)


def _t(z: float, degrees: int) -> float:
    """Student's quantile at the level of the normal quantile z, by Wallace (1959).

    At z = 4 off by 1.6 % with 7 degrees of freedom, by 0.2 % with 15.
    """
    scaled = (z * (8 * degrees + 3) / (8 * degrees + 1)) ** 2 / degrees
    return math.sqrt(degrees * math.expm1(min(scaled, 700.0)))  # e^709 is the largest float
