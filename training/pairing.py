"""A scene's messages → which message each answer answers, for training sets and figures.

In a group the message before an answer often belongs to another talk. What says it outright goes first: a quote, then
an @. Else every message of the last minutes is weighed by time, by who speaks to whom, and by shared words; the scores
are a softmax over them and over "none of them", so that the first words of a talk have no question. The weights are
fitted on IRC's gold reply links (`bench.pairing`; Kummerfeld et al. 2019, *A Large-Scale Corpus for Conversation
Disentanglement*).

The twin itself learns from whole exchanges, not from pairs: nothing here touches what it is trained on.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile
from types import MappingProxyType
from typing import Literal, TypeAlias

from bot.message import Message, Origin
from bot.prompt import Exchange

Mode: TypeAlias = Literal["scored", "previous", "mentioned", "empty"]
"""`previous`: the message before; `mentioned`: only the last one that @s the speaker; `empty`: none, for all."""
CANDIDATES = 10
"""Messages a language model chooses among."""
FEATURES = (
    "log_gap", "log_distance", "previous", "previous_other", "same", "own_last", "names", "names_last", "names_another",
    "named", "elsewhere", "partner", "spoke_since", "answered", "question", "overlap", "overlap_other",
)  # fmt: skip
"""Of a candidate, in order: log1p(seconds since), log1p(messages since), the message right before, and that by another;
by the same speaker, the speaker's newest; the answer names its sender, whose newest it is, or names others only; it
names the speaker, or others only; its sender and the speaker named each other before; the speaker spoke since; somebody
else answered its sender since; it asks; shared words, and the same where the sender is another."""
WEIGHTS: Mapping[str, float] = {
    "log_gap": -0.29, "log_distance": -1.17, "previous": 0.89, "previous_other": -0.26, "same": 0.33, "own_last": 1.5,
    "names": 1.7, "names_last": 0.64, "names_another": -0.99, "named": 0.8, "elsewhere": -1.36, "partner": 0.93,
    "spoke_since": -0.85, "answered": -0.55, "question": 0.77, "overlap": 1.95, "overlap_other": 0.97,
}  # fmt: skip
NONE_WEIGHTS: Mapping[str, float] = {"bias": -1.24, "log_gap": -0.02, "names": -0.5}
"""Of "none of them": 1, log1p(seconds since the message before), the answer names somebody."""
LOOK_BACK = 50
"""Messages looked through for what an answer answers."""
_GAP_MAX_S = 2 * 3600.0
_WORD = re.compile(r"[a-z0-9_']{2,}|[\u4e00-\u9fff]")
_ASKS = re.compile(r"[?？]|[吗呢么吧]\W*$|什么|怎么|谁|哪|几点|多少|为啥|咋")
_NAME_MIN = 2


@dataclass(frozen=True, slots=True)
class Link:
    """What an answer answers.

    Args:
        answer: the answer.
        to: the message it answers; None: nothing that was said.
        score: how sure that is, 0 to 1; 1 for a quote.
        by: `quote`, `mention`, the mode, or `model`.
    """

    answer: Message
    to: Message | None
    score: float
    by: str


@dataclass(frozen=True, slots=True)
class _Seen:
    """A message as the rule sees it: its words, and whom it names."""

    message: Message
    words: frozenset[str]
    names: frozenset[str]
    asks: bool


def links(
    messages: Sequence[Message],
    answers: Collection[str],
    mode: Mode = "scored",
    picks: Mapping[str, Message | None] = MappingProxyType({}),
) -> list[Link]:
    """What each answer answers, in order.

    A bubble that follows the speaker's own goes on with what that one answered, unless it quotes or @s somebody.

    Args:
        messages: one scene's, as shown, oldest first, without recalled and system ones.
        answers: ids of the messages to find it for, such as those of the person.
        mode: the rule where nothing says it outright; the others than `scored` ask nothing else.
        picks: what a language model chose, by id of the answer; it goes before the rule.
    """
    scene = Scene(messages)
    found: list[Link] = []
    for place, message in enumerate(messages):
        if message.id not in answers:
            continue
        link = _simple(messages, place, mode) if mode != "scored" else scene.link(place, own=False)
        if message.id in picks and link.by == "scored":
            link = Link(message, picks[message.id], 1.0, "model")
        before = messages[place - 1] if place else None
        follows = before is not None and found and found[-1].answer is before and before.sender_id == message.sender_id
        if follows and link.by == "scored":
            link = replace(found[-1], answer=message)
        found.append(link)
    return found


def talk(exchanges: Sequence[Exchange]) -> tuple[list[Message], dict[str, int]]:
    """A scene's messages in order, and where the first bubbles of the person's answers stand, by id."""
    messages: list[Message] = []
    answers: dict[str, int] = {}
    for exchange in exchanges:
        messages += exchange.heard
        if exchange.said and exchange.said[0].origin is Origin.HUMAN:
            answers[exchange.said[0].id] = len(messages)
        messages += exchange.said
    return messages, answers


def last_ten(messages: Sequence[Message], place: int) -> list[Message]:
    """What a language model chooses among: the messages before a place, oldest first, back to the speaker's own."""
    near = reversed(messages[max(0, place - CANDIDATES) : place])
    return list(takewhile(lambda m: m.sender_id != messages[place].sender_id, near))[::-1]


def _simple(messages: Sequence[Message], place: int, mode: Mode) -> Link:
    answer = messages[place]
    others = (m for m in reversed(messages[max(0, place - LOOK_BACK) : place]) if m.sender_id != answer.sender_id)
    if mode == "mentioned":
        others = (m for m in others if answer.sender_id in m.mentions)
    to = None if mode == "empty" else next(others, None)
    return Link(answer, to, 1.0 if to else 0.0, mode)


class Scene:
    """A scene's messages, prepared to be weighed.

    Args:
        messages: oldest first.
        weights: of `FEATURES`.
        none: weights of "none of them".
    """

    def __init__(
        self,
        messages: Sequence[Message],
        weights: Mapping[str, float] = WEIGHTS,
        none: Mapping[str, float] = NONE_WEIGHTS,
    ) -> None:
        self._messages, self._weights, self._none = messages, weights, none
        self._place = {m.id: n for n, m in enumerate(messages)}
        self._seen: dict[int, _Seen] = {}
        self._named: dict[int, set[tuple[str, str]]] = {}
        self._spread = Counter(w for m in messages for w in _words(m.text))

    def link(self, place: int, *, own: bool = True) -> Link:
        """What a message answers; the speaker's own words only if `own`, or where they quote themselves."""
        answer = self._messages[place]
        if answer.reply_to is not None and (quoted := self._place.get(answer.reply_to, place)) < place:
            return Link(answer, self._messages[quoted], 1.0, "quote")
        candidates = [c for c in self.candidates(place) if own or self._messages[c].sender_id != answer.sender_id]
        mentioned = [c for c in candidates if self._messages[c].sender_id in answer.mentions]
        scores = [self._score(self.features(place, c), self._weights) for c in candidates]
        if not mentioned:
            candidates.append(-1)
            scores.append(self._none_score(place))
        top = max(scores)
        total = sum(math.exp(s - top) for s in scores)
        among = mentioned or candidates
        score, best = max((s, c) for s, c in zip(scores, candidates, strict=True) if c in among)
        to = None if best < 0 else self._messages[best]
        return Link(answer, to, math.exp(score - top) / total, "mention" if mentioned else "scored")

    def candidates(self, place: int) -> list[int]:
        """Places of the messages that may be what a message answers, oldest first."""
        when = self._messages[place].time
        near = range(max(0, place - LOOK_BACK), place)
        return [c for c in near if (when - self._messages[c].time).total_seconds() <= _GAP_MAX_S]

    def features(self, place: int, candidate: int) -> tuple[float, ...]:
        """`FEATURES` of a candidate."""
        answer, other = self._of(place), self._of(candidate)
        same = answer.message.sender_id == other.message.sender_id
        names = other.message.sender_id in answer.names
        named = answer.message.sender_id in other.names
        me, them, between = answer.message.sender_id, other.message.sender_id, range(candidate + 1, place)
        since = {self._messages[n].sender_id for n in between}
        came_back = any(them in self._of(n).names and self._messages[n].sender_id != me for n in between)
        gap = (answer.message.time - other.message.time).total_seconds()
        overlap = self._overlap(answer.words, other.words)
        previous = place - candidate == 1
        return (
            math.log1p(max(0.0, gap)), math.log1p(place - candidate), float(previous), float(previous and not same),
            float(same), float(same and me not in since), float(names), float(names and them not in since),
            float(bool(answer.names) and not names and not same), float(named),
            float(bool(other.names) and not named and not same), float(not same and self._partners(place, me, them)),
            float(not same and me in since), float(came_back and not names), float(other.asks and not same), overlap,
            0.0 if same else overlap,
        )  # fmt: skip

    def none_features(self, place: int) -> tuple[float, float, float]:
        """Of "none of them": 1, log1p(seconds since the message before), whether the message names somebody."""
        before = self._messages[place - 1].time if place else self._messages[place].time
        gap = (self._messages[place].time - before).total_seconds()
        return 1.0, math.log1p(max(0.0, gap)), float(bool(self._of(place).names))

    def _none_score(self, place: int) -> float:
        return sum(w * f for w, f in zip(self._none.values(), self.none_features(place), strict=True))

    @staticmethod
    def _score(features: Sequence[float], weights: Mapping[str, float]) -> float:
        return sum(w * f for w, f in zip(weights.values(), features, strict=True))

    def _partners(self, place: int, me: str, them: str) -> bool:
        """Whether one of two named the other among the last messages."""
        if place not in self._named:
            near = range(max(0, place - LOOK_BACK), place)
            self._named[place] = {(self._messages[n].sender_id, who) for n in near for who in self._of(n).names}
        return not self._named[place].isdisjoint({(me, them), (them, me)})

    def _of(self, place: int) -> _Seen:
        if place not in self._seen:
            message = self._messages[place]
            around = self._messages[max(0, place - 2 * LOOK_BACK) : place + LOOK_BACK]
            near = {m.sender_id: m.sender_name for m in around}
            near.pop(message.sender_id, None)
            names = frozenset(who for who, name in near.items() if who in message.mentions or calls(message.text, name))
            self._seen[place] = _Seen(message, _words(message.text), names, bool(_ASKS.search(message.text)))
        return self._seen[place]

    def _overlap(self, one: frozenset[str], other: frozenset[str]) -> float:
        """Shared words, each by its rarity in the scene, as a cosine."""
        shared, own, others = (sum(map(self._rarity, words)) for words in (one & other, one, other))
        # Words that all messages of a scene have weigh nothing.
        return shared / math.sqrt(own * others) if shared else 0.0

    def _rarity(self, word: str) -> float:
        return math.log((1 + len(self._messages)) / (1 + self._spread[word])) ** 2


def _words(text: str) -> frozenset[str]:
    """Words of letters, and pairs of Chinese characters that stand side by side."""
    found = _WORD.findall(text.lower())
    return frozenset(w for w in found if len(w) > 1) | frozenset(
        a + b for a, b in pairwise(found) if len(a) == len(b) == 1
    )


def calls(text: str, name: str) -> bool:
    """Whether a text calls somebody by name: as a word of its own where it is written in letters."""
    if len(name) < _NAME_MIN or (start := text.lower().find(name.lower())) < 0:
        return False
    around = text[max(0, start - 1) : start] + text[start + len(name) : start + len(name) + 1]
    return not (name.isascii() and any(c.isascii() and (c.isalnum() or c == "_") for c in around))
