"""The port: what a reply engine can do. `bot/serving.py` is the real one; `bot/remote.py` keeps the same promises."""

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from bot.errors import EngineError
from bot.persona import Sampling
from bot.prompt import FORMATS, ChatFormat, Piece


@dataclass(frozen=True, slots=True)
class Voice:
    """Whose words an answer is drawn from.

    Args:
        name: `persona/version`: for logs, and what a remote server's model is named by.
        lora: the version's LoRA; None speaks with the bare model.
        format: the chat format it was trained with.
        model: the version's merged GGUF, a model of its own; None is the base.
    """

    name: str
    lora: Path | None
    format: ChatFormat
    model: Path | None = None


class End(StrEnum):
    """Why an answer ended."""

    TURN = "turn"
    """The model ended its turn."""
    LENGTH = "length"
    """It was cut off: by `max_tokens`, or by the end of the window."""
    LOOP = "loop"
    """Its newest tokens only repeated."""


@dataclass(slots=True)
class Ending:
    """What an engine tells of an answer when it is over.

    Args:
        tokens: made for it, an end of turn among them.
        why: it ended; None where it was closed before.
    """

    tokens: int = 0
    why: End | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One look at one scene.

    Args:
        seat: names the KV sequence to reuse: one per (scene, persona).
        voice: who speaks.
        pieces: the prompt; ends with the open assistant header.
        sampling: how words are drawn.
        seed: same seed, prompt and settings → same text, where nobody else is answered meanwhile and the engine holds
            as much of the prompt as it did.
        ending: the engine tells here how the answer ended, once its bubbles are exhausted or closed.
    """

    seat: str
    voice: Voice
    pieces: Sequence[Piece]
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    ending: Ending = field(default_factory=Ending, compare=False)


@dataclass(frozen=True, slots=True)
class Measure:
    """What a prompt for a voice may measure.

    Args:
        n_ctx: tokens of one window, the reply included.
        count: tokens of pieces in the vocabulary of the voice's model, without BOS.
    """

    n_ctx: int
    count: Callable[[Sequence[Piece]], int]


class ReplyEngine(Protocol):
    """What the twin needs of a model. Every method may raise EngineError."""

    @property
    def base_sha256(self) -> str:
        """Hash of the base file; LoRAs of another base are refused."""
        ...

    @property
    def format(self) -> ChatFormat:
        """The chat format of the bare base."""
        ...

    async def measure(self, voice: Voice) -> Measure:
        """How a voice's prompts are counted, and how long they may be; has its model loaded first."""
        ...

    async def p_silent(self, request: Request) -> float:
        """Probability that the first token is end-of-turn; one prompt evaluation, nothing generated."""
        ...

    def bubbles(self, request: Request) -> AsyncGenerator[str, None]:
        """The answer's bubbles, each as soon as its line is complete; the first token is never end-of-turn.

        Closing the iterator stops the generation within one decode step. How it ended is told in `request.ending`.
        """
        ...

    async def forget(self, wanted: Callable[[str], bool]) -> None:
        """Drop everything held of some seats, chosen by name: evaluated prompts, in memory and in files."""
        ...

    async def close(self) -> None:
        """Free the model."""
        ...


class AbsentEngine:
    """Stands in where no base could be loaded: the bot records, and says why it does not answer.

    Args:
        reason: why there is none, and the remedy.
        n_ctx: tokens of a window.
    """

    def __init__(self, reason: str, n_ctx: int) -> None:
        self.reason = reason
        self._n_ctx = n_ctx
        self.base_sha256 = ""
        self.format = FORMATS["chatml"]

    async def measure(self, voice: Voice) -> Measure:
        """Characters: there is no vocabulary to count with."""
        return Measure(self._n_ctx, lambda pieces: sum(len(piece.text) for piece in pieces))

    async def p_silent(self, request: Request) -> float:
        """Raise EngineError with the reason."""
        raise EngineError(self.reason)

    async def bubbles(self, request: Request) -> AsyncGenerator[str, None]:
        """Raise EngineError with the reason."""
        raise EngineError(self.reason)
        yield ""

    async def forget(self, wanted: Callable[[str], bool]) -> None:
        """Nothing is held."""

    async def close(self) -> None:
        """Nothing to free."""
