"""The llama.cpp reply engine: one base, many LoRAs, one KV sequence per scene and persona.

A request that extends what its sequence holds costs only the new tokens: the common prefix is found by token ids.
One thread owns llama.cpp; requests wait in a queue, none holds a lock. A request stops within one decode step when
its iterator is closed, in the middle of a long prompt through the abort callback.
"""

from __future__ import annotations

import asyncio
import codecs
import math
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from loguru import logger

from bot import config
from bot.engine import Request
from bot.errors import EngineError
from bot.llama import CacheFull, Context, Model, Sampler, log_probs
from bot.persona import sha256
from bot.prompt import ChatFormat, Piece, encode

_T = TypeVar("_T")
LORAS_MAX = 8
"""LoRAs kept loaded; one of rank 16 on a 270M base is 8 MB, loading one takes 14–40 ms."""


class _Seat:
    """A KV sequence: what it holds, for whom."""

    def __init__(self, number: int, lora: Path | None) -> None:
        self.number = number
        self.lora = lora
        self.tokens: list[int] = []


class LlamaEngine:
    """A `bot.engine.ReplyEngine` over llama.cpp.

    Args:
        base: the base GGUF.
        settings: `[engine]`.
        base_sha256: the base's hash if known already; computed otherwise (about a second for 250 MB).

    Raises:
        EngineError: the base cannot be loaded.
    """

    def __init__(self, base: Path, settings: config.Engine, base_sha256: str | None = None) -> None:
        self._settings = settings
        self._model = Model(base, settings.n_gpu_layers)
        self._context = Context(
            self._model, settings.kv_tokens, settings.n_seq_max, settings.n_batch, settings.n_threads
        )
        self.base_sha256 = base_sha256 or sha256(base)
        self._seats: OrderedDict[str, _Seat] = OrderedDict()
        self._free = list(range(settings.n_seq_max))
        self._loras: OrderedDict[Path, Any] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="llama")
        self._closing = threading.Event()

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
        stop = threading.Event()
        try:
            return await self._run(lambda: self._p_silent(request, stop))
        except asyncio.CancelledError:
            stop.set()
            raise

    async def bubbles(self, request: Request) -> AsyncIterator[str]:
        """Bubbles of the answer as their lines complete; raises EngineError."""
        loop, stop = asyncio.get_running_loop(), threading.Event()
        lines: asyncio.Queue[str | None] = asyncio.Queue()

        def put(line: str | None) -> None:
            loop.call_soon_threadsafe(lines.put_nowait, line)

        def work() -> None:
            try:
                self._generate(request, stop, put)
            finally:
                put(None)

        job = self._submit(work)
        try:
            while (line := await lines.get()) is not None:
                yield line
            await asyncio.wrap_future(job)
        finally:
            stop.set()

    async def close(self) -> None:
        """Stop what runs and free everything."""
        self._closing.set()
        await self._run(self._close)
        self._thread.shutdown()

    # -- on the llama thread ----------------------------------------------------------------------

    def _submit(self, work: Callable[[], _T]) -> Future[_T]:
        try:
            return self._thread.submit(work)
        except RuntimeError as e:
            raise EngineError("the engine is closed") from e

    async def _run(self, work: Callable[[], _T]) -> _T:
        return await asyncio.wrap_future(self._submit(work))

    def _close(self) -> None:
        self._context.use(None)
        for lora in self._loras.values():
            self._model.free_lora(lora)
        self._context.close()
        self._model.close()

    def _p_silent(self, request: Request, stop: threading.Event) -> float:
        if not self._evaluate(request, stop):
            return 1.0
        ends = log_probs(self._context.logits()[0], [self._model.tokens(request.voice.format.end, control=True)[0]])
        return min(1.0, math.exp(ends[0]))

    def _generate(self, request: Request, stop: threading.Event, put: Callable[[str], None]) -> None:
        if not self._evaluate(request, stop):
            return
        # The decision to speak was taken before: the first word is a word.
        self._context.logits()[0][self._model.end_ids] = -float("inf")
        seat = self._seats[request.seat]
        sampler = Sampler(self._model, request.sampling, request.seed)
        lines, made = _Lines(put), []
        deadline = time.monotonic() + self._settings.deadline_s
        try:
            for _ in range(min(request.sampling.max_tokens, self.n_ctx - 1)):
                token = self._context.sample(sampler)
                made.append(token)
                if token in self._model.end_ids or looping(made) or self._stopped(stop):
                    break
                lines.feed(self._model.piece(token))
                if time.monotonic() > deadline:
                    raise EngineError(f"an answer took longer than [engine] deadline_s = {self._settings.deadline_s}")
                if not self._step(seat, [token], stop):
                    break
            if not looping(made):
                lines.end()
        finally:
            sampler.close()

    def _stopped(self, stop: threading.Event) -> bool:
        return stop.is_set() or self._closing.is_set()

    def _evaluate(self, request: Request, stop: threading.Event) -> bool:
        """Bring the request's sequence to its prompt; the last row of logits is then the first token's."""
        ids, _ = encode(request.pieces, self._model)
        if len(ids) >= self._settings.kv_tokens:
            raise EngineError(f"a prompt of {len(ids)} tokens is longer than [engine] kv_tokens")
        seat = self._seat(request)
        self._context.use(self._lora(request.voice.lora))
        common = _common(seat.tokens, ids[:-1])
        if common < len(seat.tokens):
            if not self._context.keep(seat.number, common):
                common = 0
            del seat.tokens[common:]
        self._make_room(len(ids) - common, seat)
        for start in range(common, len(ids), self._settings.n_batch):
            if self._stopped(stop) or not self._step(seat, ids[start : start + self._settings.n_batch], stop):
                return False
        return True

    def _step(self, seat: _Seat, tokens: list[int], stop: threading.Event) -> bool:
        """Append tokens to a seat's sequence; False when stopped in the middle (the sequence is then dropped)."""
        position, last = len(seat.tokens), len(tokens) - 1
        rows = [(token, seat.number, position + i, i == last) for i, token in enumerate(tokens)]
        while True:
            try:
                done = self._context.decode(rows, lambda: self._stopped(stop))
                break
            except CacheFull:
                self._evict(seat)
        if not done:
            self._context.keep(seat.number, 0)
            seat.tokens.clear()
            return False
        seat.tokens += tokens
        return True

    def _seat(self, request: Request) -> _Seat:
        seat = self._seats.pop(request.seat, None)
        if seat is None:
            if not self._free:
                self._evict(None)
            seat = _Seat(self._free.pop(), request.voice.lora)
        elif seat.lora != request.voice.lora:
            self._context.keep(seat.number, 0)
            seat.tokens.clear()
            seat.lora = request.voice.lora
        self._seats[request.seat] = seat
        return seat

    def _make_room(self, needed: int, seat: _Seat) -> None:
        while sum(len(s.tokens) for s in self._seats.values()) + needed > self._settings.kv_tokens:
            self._evict(seat)

    def _evict(self, but: _Seat | None) -> None:
        """Drop the sequence used least recently."""
        for name, seat in self._seats.items():
            if seat is not but:
                self._context.keep(seat.number, 0)
                self._free.append(seat.number)
                del self._seats[name]
                return
        raise EngineError("the KV cache is full with a single scene; raise [engine] kv_tokens")

    def _lora(self, path: Path | None) -> Any:
        if path is None:
            return None
        lora = self._loras.pop(path, None)
        if lora is None:
            started = time.perf_counter()
            lora = self._model.load_lora(path, self.base_sha256)
            logger.debug("LoRA loaded in {:.0f} ms", (time.perf_counter() - started) * 1000)
        self._loras[path] = lora
        if len(self._loras) > LORAS_MAX:
            _, oldest = self._loras.popitem(last=False)
            self._context.use(lora)
            self._model.free_lora(oldest)
        return lora


class _Lines:
    """Bytes of tokens → bubbles, one a line; a character may be spread over several tokens."""

    def __init__(self, put: Callable[[str], None]) -> None:
        self._put = put
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._text = ""

    def feed(self, data: bytes) -> None:
        self._text += self._decoder.decode(data)
        *whole, self._text = self._text.split("\n")
        for line in whole:
            if line.strip():
                self._put(line.strip())

    def end(self) -> None:
        self.feed(b"\n")


def looping(tokens: Sequence[int]) -> bool:
    """Whether the newest tokens only repeat: one token 16 times, or a run of 2–12 four times."""
    if len(tokens) >= 16 and len(set(tokens[-16:])) == 1:
        return True
    for period in range(2, 13):
        tail = tokens[-4 * period :]
        if len(tail) == 4 * period and len(set(tail)) > 1 and list(tail) == list(tail[:period]) * 4:
            return True
    return False


def _common(held: Sequence[int], wanted: Sequence[int]) -> int:
    for i, (a, b) in enumerate(zip(held, wanted, strict=False)):
        if a != b:
            return i
    return min(len(held), len(wanted))
