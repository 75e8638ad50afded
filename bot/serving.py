"""The llama.cpp reply engine: one base, many LoRAs, one KV sequence per scene and persona, many chats at once.

The asyncio side of `bot/batching.py`: requests go to its thread, bubbles come back as soon as their line is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from bot import config
from bot.batching import Batcher, Job
from bot.checksum import sha256
from bot.engine import Request
from bot.errors import EngineError
from bot.llama import Context, Model
from bot.loras import Loras
from bot.prompt import ChatFormat, Piece, encode
from bot.seats import Seats
from bot.spill import Spill


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
        self._settings = settings
        self._model = Model(base, settings.n_gpu_layers, load_mode=settings.load_mode)
        self._context = Context(
            self._model, settings.kv_tokens, settings.n_seq_max, settings.n_batch, settings.n_threads,
            n_outputs=settings.n_parallel, flash_attn=settings.flash_attn, type_k=settings.type_k,
            type_v=settings.type_v,
        )  # fmt: skip
        self.base_sha256 = base_sha256 or sha256(base)
        self._spill = Spill(settings.spill_mb * 1_000_000, settings.spill_disk_mb * 1_000_000, spill)
        self._seats = Seats(self._context, settings.n_seq_max, self._spill)
        self._loras = Loras(self._model, self._context, self.base_sha256, settings.lora_mb * 1_000_000)
        self._batcher = Batcher(
            self._model, self._context, self._seats, self._loras, settings.n_parallel, settings.deadline_s
        )

    @property
    def format(self) -> ChatFormat:
        """Chat format of the bare base."""
        return self._model.format

    @property
    def architecture(self) -> str:
        """GGUF's `general.architecture`."""
        return self._model.architecture

    @property
    def n_ctx(self) -> int:
        """Tokens of one window, the reply included."""
        return self._settings.n_ctx

    def count(self, pieces: Sequence[Piece]) -> int:
        """Tokens of pieces, without BOS."""
        return len(encode(pieces, self._model, bos=False)[0])

    async def p_silent(self, request: Request) -> float:
        """P(end-of-turn as the first token); raises EngineError."""
        ended: asyncio.Future[float | EngineError] = asyncio.get_running_loop().create_future()

        def done(result: float | EngineError) -> None:
            if not ended.done():
                ended.set_result(result)

        job = self._submit(request, None, done)
        try:
            return _value(await ended)
        finally:
            job.stop.set()

    async def bubbles(self, request: Request) -> AsyncIterator[str]:
        """Bubbles of the answer as their lines complete; raises EngineError."""
        lines: asyncio.Queue[str | float | EngineError] = asyncio.Queue()
        job = self._submit(request, lines.put_nowait, lines.put_nowait)
        try:
            while isinstance(line := await lines.get(), str):
                yield line
            _value(line)
        finally:
            job.stop.set()

    async def close(self) -> None:
        """Stop what runs and free everything."""
        await asyncio.to_thread(self._batcher.close)
        self._spill.close()
        self._loras.close()
        self._context.close()
        self._model.close()

    def _submit(
        self, request: Request, put: Callable[[str], None] | None, done: Callable[[float | EngineError], None]
    ) -> Job:
        """Hand a request to the thread; what it tells arrives on this event loop."""
        loop = asyncio.get_running_loop()

        def later(work: Callable[[], None]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
                loop.call_soon_threadsafe(work)

        told = None if put is None else lambda line: later(lambda: put(line))
        ids, _ = encode(request.pieces, self._model)
        job = Job(request, ids, told, lambda result: later(lambda: done(result)))
        self._batcher.submit(job)
        return job


def _value(result: float | EngineError) -> float:
    if isinstance(result, EngineError):
        raise result
    return result
