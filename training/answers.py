"""What a version says at held-out moments: real answers from the real engine, for the gate and for reading."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from bot.config import Engine
from bot.engine import Request, Voice
from bot.memory import shortened
from bot.message import Message, Origin
from bot.persona import Sampling
from bot.prompt import ChatFormat, Exchange, Piece, Renderer, render
from bot.serving import LlamaEngine
from training.corpus import Corpus
from training.samples import Split, renderer_for, split_of

T = TypeVar("T")
_CONTEXT, _STRIDE = 8, 6
"""Exchanges read before the one to answer, at least; a window begins at every sixth one, so that the prompts of moments
in a row begin alike and cost their new tokens only."""


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out moment at which the person spoke.

    Args:
        scene: where.
        renderer: of that scene.
        history: exchanges before it, and the one to answer.
        quoted: the message another one quotes, or None.
        heard: the burst, bubbles joined by line breaks.
        real: what the person said, without `unlearned`.
        conversation: id of the first message of its conversation.
        speakers: names of the others in the scene, up to here.
        unlearned: ids of what the person said that is no label (`SceneCorpus.unlearned`).
    """

    scene: str
    renderer: Renderer
    history: tuple[Exchange, ...]
    quoted: Callable[[Message], Message | None]
    heard: str
    real: str
    conversation: str = ""
    speakers: tuple[str, ...] = ()
    unlearned: frozenset[str] = frozenset()

    @property
    def key(self) -> tuple[str, str]:
        """Names the decision point, as `training.evaluate.Scored.key` does."""
        return (self.scene, self.history[-1].heard[-1].id)

    @property
    def cluster(self) -> tuple[str, str]:
        """Its conversation: message ids tell them apart within a scene alone."""
        return (self.scene, self.conversation)

    def told(self, system: str) -> "Question":
        """The same with another system prompt."""
        return replace(self, renderer=replace(self.renderer, system=system))

    def pieces(self, count: Callable[[Sequence[Piece]], int], budget: int) -> tuple[Piece, ...]:
        """The prompt, without the oldest exchanges and then the oldest bubbles when it exceeds `budget` tokens."""

        def tokens(exchange: Exchange) -> int:
            return count(render(self.renderer, [exchange], self.quoted))

        history = self.history
        while len(history) > 1 and count(render(self.renderer, history, self.quoted)) > budget:
            history = history[_STRIDE if len(history) > _STRIDE else 1 :]
        if len(history) == 1:
            history = (shortened(history[0], tokens, budget),)
        return tuple(render(self.renderer, history, self.quoted))


@dataclass(frozen=True, slots=True)
class Said:
    """An answer: P(silent) before it, and its bubbles joined by line breaks."""

    p_silent: float
    text: str


def questions(corpus: Corpus, fmt: ChatFormat, system_prompt: str, split: Split) -> list[Question]:
    """All moments of a split at which the person answered somebody, oldest first."""
    found = []
    for part in corpus.scenes:
        renderer = renderer_for(part, corpus, fmt, system_prompt)
        for number, exchange in enumerate(part.exchanges):
            if not exchange.heard or not exchange.said or exchange.said[0].origin is not Origin.HUMAN:
                continue
            if split_of(part.scene, part.conversation[number]) is not split:
                continue
            start = max(0, number - _CONTEXT) // _STRIDE * _STRIDE
            history = (*part.exchanges[start:number], exchange)
            found.append(
                Question(
                    str(part.scene),
                    renderer,
                    history,
                    part.quoted,
                    "\n".join(m.text for m in exchange.heard),
                    "\n".join(m.text for m in part.learned(exchange)),
                    part.conversation[number],
                    tuple(sorted({m.sender_name for e in history for m in e.heard})),
                    part.unlearned,
                )
            )
    return found


def spread(items: list[T], n: int) -> list[T]:
    """At most `n` of them, evenly from first to last."""
    if len(items) <= n:
        return items
    return [items[i * len(items) // n] for i in range(n)]


def answer(
    base: Path, base_sha256: str, lora: Path | None, fmt: ChatFormat, asked: list[Question], sampling: Sampling,
    settings: Engine, seed: int = 0, *, model: Path | None = None, progress: Callable[[int, int], None] | None = None,
) -> list[Said]:  # fmt: skip
    """What a voice says to each question, in order; as many at once as the engine evaluates; raises EngineError.

    Args:
        base: the base GGUF.
        base_sha256: its hash.
        lora: a LoRA on it; None: the bare base, or `model`.
        fmt: the voice's chat format.
        asked: the questions.
        sampling: how words are drawn.
        settings: of the engine.
        seed: of the first question; each one has its own.
        model: a merged GGUF of its own.
        progress: told (answers done, of how many).
    """

    async def run() -> list[Said]:
        engine = LlamaEngine(base, settings, base_sha256)
        found: dict[int, Said] = {}
        left = deque(_in_a_row(asked))

        async def work(seat: int) -> None:
            while left:
                for number in left.popleft():
                    pieces = asked[number].pieces(measure.count, budget)
                    request = Request(f"held-out#{seat}", voice, pieces, sampling, seed + number)
                    p_silent = await engine.p_silent(request)
                    bubbles = [bubble async for bubble in engine.bubbles(request)]
                    found[number] = Said(p_silent, "\n".join(bubbles))
                    if progress:
                        progress(len(found), len(asked))

        try:
            voice = Voice("held-out", lora, fmt, model)
            measure = await engine.measure(voice)
            budget = measure.n_ctx - min(sampling.max_tokens, measure.n_ctx // 4)
            await asyncio.gather(*(work(seat) for seat in range(settings.n_parallel)))
        finally:
            await engine.close()
        return [found[number] for number in range(len(asked))]

    return asyncio.run(run())


def _in_a_row(asked: Sequence[Question]) -> Iterator[list[int]]:
    """Numbers of questions whose windows begin alike, one list for each beginning, oldest first."""
    for _, alike in groupby(range(len(asked)), lambda i: (asked[i].scene, asked[i].history[0].first.id)):
        yield list(alike)
