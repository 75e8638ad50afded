"""Corpus → windows of token ids with their labels, rendered by `bot.prompt` alone, as live.

A window is the system prompt and consecutive exchanges of one scene. Rendering is prefix-stable, so one forward pass
over a window covers every decision point in it. When a window is full the oldest half of its exchanges goes and the
newer half stays as context, as it does live, where a window is never longer than those trained (`bot.memory`); labels
trained before are not repeated, so every label stands in exactly one window.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from operator import itemgetter
from typing import NamedTuple

from loguru import logger

from bot.decision import Moment, moment_of
from bot.errors import TrainingError
from bot.message import Origin, Scene
from bot.prompt import ChatFormat, Exchange, Renderer, Tokenizer, encode, spoken_by, system_of
from training.corpus import Corpus, SceneCorpus

_TEST_PART, _TUNE_PART = 0.1, 0.1


class Split(StrEnum):
    """What a conversation is for, for ever."""

    TRAIN = "train"
    TUNE = "tune"
    """Early stop, calibration, importance matrix."""
    TEST = "test"
    """Only the gate and the report read it."""
    NEWEST = "newest"
    """What would be trained and was said too lately: the old and the new version are scored on it before it joins."""


@dataclass(frozen=True, slots=True)
class Label:
    """One decision point of a window.

    Args:
        start: index in `ids` of the first token after the assistant header: the first word said, or end-of-turn.
        stop: one past the end-of-turn token.
        trained: indices in `ids` of tokens that are labels; human tokens only, end-of-turn included. None where the
            answer is masked.
        silence: nothing was said.
        decision: whether it tells when they speak: a silence that counts, or an answer while the twin was off.
        split: what its conversation is for.
        scene: where.
        message_id: the last message heard, or the first said when nothing was heard.
        moment: what the text does not show, with `p_silent` None.
        when: of the decision; None in a training set, which has no times.
    """

    start: int
    stop: int
    trained: tuple[int, ...]
    silence: bool
    decision: bool
    split: Split
    scene: str
    message_id: str
    moment: Moment
    when: datetime | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """One forward pass: BOS, system prompt, exchanges.

    Args:
        scene: where.
        ids: token ids.
        labels: its own decision points, ascending; earlier exchanges may stand before them as context.
    """

    scene: str
    ids: tuple[int, ...]
    labels: tuple[Label, ...]

    @property
    def newest(self) -> datetime | None:
        """When its last label was decided; None in a training set."""
        return max((x.when for x in self.labels if x.when is not None), default=None)


class _Turn(NamedTuple):
    """An exchange as tokens: the user turn with the open header, the answer, which answer tokens are labels."""

    heard: list[int]
    said: list[int]
    trained: list[bool]

    @property
    def size(self) -> int:
        return len(self.heard) + len(self.said)


def split_of(scene: Scene, first_message_id: str) -> Split:
    """The split of a conversation: a hash of its identity, so it never changes as the history grows."""
    draw = uniform(str(scene), first_message_id)
    if draw < _TEST_PART:
        return Split.TEST
    return Split.TUNE if draw < _TEST_PART + _TUNE_PART else Split.TRAIN


def split_at(part: SceneCorpus, place: int, newest: frozenset[str]) -> Split:
    """The split of an exchange: its conversation's, or `NEWEST` where that would be trained and waits.

    Args:
        part: the scene.
        place: of the exchange.
        newest: the conversations that wait, from `newest_of`.
    """
    split = split_of(part.scene, part.conversation[place])
    return Split.NEWEST if split is Split.TRAIN and part.conversation[place] in newest else split


def windows(
    corpus: Corpus, tokenizer: Tokenizer, fmt: ChatFormat, system_prompt: str, max_length: int,
    newest: datetime | None = None,
) -> list[Window]:  # fmt: skip
    """All windows of a corpus, scene by scene, oldest first.

    Args:
        corpus: what can be learned.
        tokenizer: the base's vocabulary.
        fmt: chat format of the base.
        system_prompt: the persona's; the scene's line is added here.
        max_length: tokens of a window at most. A burst that is longer loses its oldest bubbles, never the answer; an
            answer that is longer still is left out and counted in the log.
        newest: conversations that began at this moment or later are `NEWEST` where they would be trained.

    Raises:
        TrainingError: nothing fits in a window.
    """
    found: list[Window] = []
    dropped = 0
    for part in corpus.scenes:
        renderer = renderer_for(part, corpus, fmt, system_prompt)
        packer = _Packer(part, corpus, tokenizer, renderer, max_length, newest)
        found += packer.pack()
        dropped += packer.dropped
    if dropped:
        if not found:
            raise TrainingError(
                f"all {dropped} exchanges are longer than a window of {max_length} tokens; raise [training] "
                "model_max_length, or shorten the persona's prompt"
            )
        logger.warning("{} exchanges are longer than a window of {} tokens and are left out", dropped, max_length)
    return found


def texts(
    corpus: Corpus, split: Split, tokenizer: Tokenizer, fmt: ChatFormat, system_prompt: str, max_length: int
) -> list[tuple[int, ...]]:
    """Token ids of a split's conversations alone, oldest first; no other one is their context, or quoted in them.

    Args:
        corpus: what can be learned.
        split: whose conversations; `NEWEST` are not told from those that are trained.
        tokenizer: the base's vocabulary.
        fmt: chat format of the base.
        system_prompt: the persona's; it opens every text, with the scene's line.
        max_length: tokens of a text at most; a longer conversation becomes several, as in `windows`.
    """
    found: list[tuple[datetime, tuple[int, ...]]] = []
    for part in corpus.scenes:
        renderer = renderer_for(part, corpus, fmt, system_prompt)
        places: dict[str, list[int]] = {}
        for place, conversation in enumerate(part.conversation):
            if split_of(part.scene, conversation) is split:
                places.setdefault(conversation, []).append(place)
        for of_one in places.values():
            own = part.only(of_one)
            packed = _Packer(own, corpus, tokenizer, renderer, max_length, None).pack()
            found += [(own.exchanges[0].first.time, window.ids) for window in packed]
    return [ids for _, ids in sorted(found, key=itemgetter(0))]


def renderer_for(part: SceneCorpus, corpus: Corpus, fmt: ChatFormat, system_prompt: str) -> Renderer:
    """The renderer of a scene: system prompt and the scene's line, as live; or a training set's own prompt."""
    system = system_of(system_prompt, part.scene, part.name) if part.system is None else part.system
    return Renderer(fmt, system, corpus.zone, group=not part.scene.private)


def trained_positions(window: Window, *, silence_keep: float = 1.0, seed: int = 0) -> list[int]:
    """Indices in `ids` whose tokens the training loss counts: labels of the train split.

    Args:
        window: the window.
        silence_keep: part of the silences that is trained; which ones, a hash decides. The others' empty turns stay
            in the context, and `Calibration.silence_keep` corrects the probability when it is used.
        seed: of that choice.
    """
    return [
        position
        for label in window.labels
        if label.split is Split.TRAIN
        and not (label.silence and uniform(str(seed), label.scene, label.message_id) >= silence_keep)
        for position in label.trained
    ]


class _Packer:
    """Packs one scene's exchanges into windows."""

    def __init__(
        self, part: SceneCorpus, corpus: Corpus, tokenizer: Tokenizer, renderer: Renderer, max_length: int,
        newest: datetime | None,
    ) -> None:  # fmt: skip
        self.part, self.corpus, self.tokenizer, self.renderer = part, corpus, tokenizer, renderer
        self.max_length = max_length
        self.opening, _ = encode(renderer.opening(), tokenizer)
        after, _ = encode(renderer.said(Exchange(), trained=False)[1:], tokenizer, bos=False)
        self._after = len(after)  # tokens behind end-of-turn, such as Gemma's line break
        self.dropped = 0
        self._newest = newest_of(part, newest)
        self._turns: dict[tuple[int, bool], _Turn] = {}

    def pack(self) -> list[Window]:
        """The scene's windows."""
        found: list[Window] = []
        context: list[int] = []
        fresh = 0  # how many of the newest in `context` are not in an earlier window
        for index in range(len(self.part.exchanges)):
            trial = [*context, index]
            while not self._fits(trial):
                if fresh:
                    found.append(self._window(trial[:-1], fresh))
                    fresh = 0
                if len(trial) == 1:
                    break
                trial = trial[len(trial) // 2 :]
            if not self._fits(trial) and not self._shorten(index):
                self.dropped += 1
                context = []
                continue
            context, fresh = trial, fresh + 1
        if fresh:
            found.append(self._window(context, fresh))
        return found

    def _fits(self, indices: Sequence[int]) -> bool:
        used = sum(self._turn(i, first=n == 0).size for n, i in enumerate(indices))
        return len(self.opening) + used <= self.max_length

    def _turn(self, index: int, *, first: bool) -> _Turn:
        if (index, first) not in self._turns:
            self._turns[index, first] = self._rendered(index, self.part.as_rendered(index), first=first)
        return self._turns[index, first]

    def _rendered(self, index: int, exchange: Exchange, *, first: bool) -> _Turn:
        heard, _ = encode(self.renderer.heard(exchange, self.part.quoted, first=first), self.tokenizer, bos=False)
        counts = index not in self.part.masked if exchange.said else self.part.counted_silence[index]
        answer = self.renderer.said(exchange, trained=counts, but=self.part.unlearned)
        said, trained = encode(answer, self.tokenizer, bos=False)
        return _Turn(heard, said, trained)

    def _shorten(self, index: int) -> bool:
        """Drop the oldest bubbles of a burst that fills more than a window alone; False if that is not enough."""
        exchange = self.part.exchanges[index]
        for first_kept in range(1, len(exchange.heard)):
            short = replace(exchange, heard=exchange.heard[first_kept:])
            for first in (True, False):
                self._turns[index, first] = self._rendered(index, short, first=first)
            if self._fits([index]):
                return True
        return False

    def _window(self, indices: Sequence[int], fresh: int) -> Window:
        ids = list(self.opening)
        labels: list[Label] = []
        for number, index in enumerate(indices):
            turn = self._turn(index, first=number == 0)
            ids += turn.heard
            if number >= len(indices) - fresh:
                labels.append(self._label(index, turn, len(ids)))
            ids += turn.said
        return Window(str(self.part.scene), tuple(ids), tuple(labels))

    def _label(self, index: int, turn: _Turn, start: int) -> Label:
        part, corpus, exchange = self.part, self.corpus, self.part.exchanges[index]
        by_person = bool(exchange.said) and exchange.said[0].origin is Origin.HUMAN
        moment = moment_of(
            exchange, last_spoke=part.last_spoke[index], ids=corpus.ids, names=corpus.names, quoted=part.quoted,
            ours=lambda m: spoken_by(m, corpus.people), zone=corpus.zone,
        )  # fmt: skip
        return Label(
            start=start,
            stop=start + len(turn.said) - self._after,
            trained=tuple(start + i for i, counts in enumerate(turn.trained) if counts),
            silence=not exchange.said,
            # Where the twin was on, quiet counts for nothing: counting answers there would lean towards speaking.
            decision=bool(exchange.heard) and (part.counted_silence[index] or (by_person and part.twin_off[index])),
            split=split_at(part, index, self._newest),
            scene=str(part.scene),
            message_id=(exchange.heard[-1] if exchange.heard else exchange.said[0]).id,
            moment=moment,
            when=None if part.of_set else exchange.decided_at,
        )


def newest_of(part: SceneCorpus, since: datetime | None) -> frozenset[str]:
    """The conversations of a scene that began at a moment or later; none of a training set, which has no times."""
    if since is None or part.of_set:
        return frozenset()
    began: dict[str, datetime] = {}
    for conversation, exchange in zip(part.conversation, part.exchanges, strict=True):
        began.setdefault(conversation, exchange.opened or exchange.first.time)
    return frozenset(conversation for conversation, when in began.items() if when >= since)


def uniform(*parts: str) -> float:
    """A number in [0, 1) that depends on the parts alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8], "big") / 2**64
