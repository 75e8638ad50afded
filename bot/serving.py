"""The llama.cpp reply engine: one base, many LoRAs, merged models, one KV sequence per scene and persona, many chats.

The asyncio side of `bot/batching.py`: requests go to the thread of their model, bubbles come back as soon as their line
is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bot import config
from bot.batching import Job
from bot.checksum import sha256
from bot.engine import End, Measure, Request, Voice
from bot.errors import EngineError
from bot.llama import Model
from bot.models import Models, Served
from bot.prompt import ChatFormat, Piece, encode


@dataclass(eq=False)
class _Coming:
    """A request whose model is being loaded."""

    seat: str
    unwanted: bool = False
    """Whether its scene was forgotten meanwhile."""


class LlamaEngine:
    """A `bot.engine.ReplyEngine` over llama.cpp.

    Args:
        base: the base GGUF.
        settings: `[engine]`.
        base_sha256: the base's hash if known already; computed otherwise (about a second for 250 MB).
        spill: folder for `spill_disk_mb`, of this process alone; None: scenes are spilled to memory only.

    Raises:
        EngineError: the base cannot be loaded.
    """

    def __init__(
        self, base: Path, settings: config.Engine, base_sha256: str | None = None, spill: Path | None = None
    ) -> None:
        self.base_sha256 = base_sha256 or sha256(base)
        self.models = Models(base, settings, self.base_sha256, spill)
        self._coming: set[_Coming] = set()

    @property
    def base(self) -> Served:
        """The base as it is served."""
        return self.models.base

    @property
    def format(self) -> ChatFormat:
        """Chat format of the bare base."""
        return self.base.model.format

    @property
    def n_ctx(self) -> int:
        """Tokens of one window of the base, the reply included."""
        return self.base.n_ctx

    def count(self, pieces: Sequence[Piece]) -> int:
        """Tokens of pieces in the base's vocabulary, without BOS."""
        return _count(self.base.model, pieces)

    async def measure(self, voice: Voice) -> Measure:
        """How a voice's prompts are counted, and how long they may be; raises EngineError.

        Its model stays loaded as long as somebody has what counts them.
        """
        async with self.models.using(voice) as served:

            def count(pieces: Sequence[Piece]) -> int:
                return _count(served.model, pieces)

            self.models.hold(voice, count)
            return Measure(served.n_ctx, count)

    async def p_silent(self, request: Request) -> float:
        """P(end-of-turn as the first token); raises EngineError."""
        ended: asyncio.Future[float | EngineError] = asyncio.get_running_loop().create_future()

        def done(result: float | EngineError) -> None:
            if not ended.done():
                ended.set_result(result)

        async with self._reaching(request) as (served, unwanted):
            job = self._submit(served, request, None, done, unwanted=unwanted)
            try:
                return _value(await ended)
            finally:
                job.stop.set()

    async def bubbles(self, request: Request) -> AsyncGenerator[str, None]:
        """Bubbles of the answer as their lines complete; raises EngineError."""
        lines: asyncio.Queue[str | float | EngineError] = asyncio.Queue()
        async with self._reaching(request) as (served, unwanted):
            job = self._submit(served, request, lines.put_nowait, lines.put_nowait, unwanted=unwanted)
            why: End | None = None
            try:
                while isinstance(line := await lines.get(), str):
                    yield line
                _value(line)
                why = job.why
            finally:
                job.stop.set()
                request.ending.tokens, request.ending.why = len(job.made), why

    async def forget(self, wanted: Callable[[str], bool]) -> None:
        """Drop the sequences of some seats, and what was spilled of them, in every model; of one being loaded later."""
        for coming in self._coming:
            coming.unwanted = coming.unwanted or wanted(coming.seat)
        await asyncio.gather(*(asyncio.wrap_future(s.batcher.forget(wanted)) for s in self.models.loaded))

    async def close(self) -> None:
        """Stop what runs and free everything."""
        await self.models.close()

    @contextlib.asynccontextmanager
    async def _reaching(self, request: Request) -> AsyncIterator[tuple[Served, bool]]:
        """The model of a request, and whether its scene was forgotten before that was loaded."""
        coming = _Coming(request.seat)
        self._coming.add(coming)
        try:
            async with self.models.using(request.voice) as served:
                self._coming.discard(coming)
                yield served, coming.unwanted
        finally:
            self._coming.discard(coming)

    def _submit(
        self, served: Served, request: Request, put: Callable[[str], None] | None,
        done: Callable[[float | EngineError], None], *, unwanted: bool,
    ) -> Job:  # fmt: skip
        """Hand a request to its model's thread; what it tells arrives on this event loop."""
        loop = asyncio.get_running_loop()

        def later(work: Callable[[], None]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
                loop.call_soon_threadsafe(work)

        told = None if put is None else lambda line: later(lambda: put(line))
        ids, _ = encode(request.pieces, served.model)
        job = Job(request, ids, told, lambda result: later(lambda: done(result)), unwanted=unwanted)
        served.batcher.submit(job)
        return job


def _count(model: Model, pieces: Sequence[Piece]) -> int:
    return len(encode(pieces, model, bos=False)[0])


def _value(result: float | EngineError) -> float:
    if isinstance(result, EngineError):
        raise result
    return result
