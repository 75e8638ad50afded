"""The llama.cpp reply engine: one base, many LoRAs, merged models, one KV sequence per scene and persona, many chats.

The asyncio side of `bot/batching.py`: requests go to the thread of their model, bubbles come back as soon as their line
is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

from bot import config
from bot.batching import Job
from bot.checksum import sha256
from bot.engine import Measure, Request, Voice
from bot.errors import EngineError
from bot.llama import Model
from bot.models import Models, Served
from bot.prompt import ChatFormat, Piece, encode


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

        async with self.models.using(request.voice) as served:
            job = self._submit(served, request, None, done)
            try:
                return _value(await ended)
            finally:
                job.stop.set()

    async def bubbles(self, request: Request) -> AsyncGenerator[str, None]:
        """Bubbles of the answer as their lines complete; raises EngineError."""
        lines: asyncio.Queue[str | float | EngineError] = asyncio.Queue()
        async with self.models.using(request.voice) as served:
            job = self._submit(served, request, lines.put_nowait, lines.put_nowait)
            try:
                while isinstance(line := await lines.get(), str):
                    yield line
                _value(line)
            finally:
                job.stop.set()

    async def forget(self, wanted: Callable[[str], bool]) -> None:
        """Drop the sequences of some seats, and what was spilled of them, in every loaded model."""
        await asyncio.gather(*(asyncio.wrap_future(s.batcher.forget(wanted)) for s in self.models.loaded))

    async def close(self) -> None:
        """Stop what runs and free everything."""
        await self.models.close()

    def _submit(
        self, served: Served, request: Request, put: Callable[[str], None] | None,
        done: Callable[[float | EngineError], None],
    ) -> Job:  # fmt: skip
        """Hand a request to its model's thread; what it tells arrives on this event loop."""
        loop = asyncio.get_running_loop()

        def later(work: Callable[[], None]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
                loop.call_soon_threadsafe(work)

        told = None if put is None else lambda line: later(lambda: put(line))
        ids, _ = encode(request.pieces, served.model)
        job = Job(request, ids, told, lambda result: later(lambda: done(result)))
        served.batcher.submit(job)
        return job


def _count(model: Model, pieces: Sequence[Piece]) -> int:
    return len(encode(pieces, model, bos=False)[0])


def _value(result: float | EngineError) -> float:
    if isinstance(result, EngineError):
        raise result
    return result
