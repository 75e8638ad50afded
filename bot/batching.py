"""The thread that owns llama.cpp: takes requests, and evaluates those of one LoRA together, step by step.

A step is one `llama_decode`: the next token of every answer under way, and of prompts as much as a step has time for,
so that a long prompt never stalls the chats that are typing. LoRAs take turns of some steps, since setting another one
costs as much as decoding for a few milliseconds. A request that is stopped is out before the next step; a step all of
whose requests are stopped is aborted in the middle. Each loaded model has such a thread.
"""

from __future__ import annotations

import codecs
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from loguru import logger

from bot.engine import End, Request
from bot.errors import EngineError
from bot.llama import CacheFull, Context, Model, Sampler, log_probs
from bot.looping import kept, looping
from bot.loras import Loras
from bot.seats import Seat, Seats

TURN_STEPS, TURN_S = 24, 0.4
"""Steps and seconds of one LoRA while others wait, whichever is over first: at 3–7 ms a change and 15–20 ms a step,
changes take a hundredth of the time. A prompt's steps last longer, and who types with another LoRA waits for them."""
TYPING_STEP_S, _READING_STEP_S = 0.1, 0.25
"""Seconds of prompt in one step: while others are typing, with whatever LoRA, and while several read."""
ALONE_TOKENS = 128
"""Tokens of a prompt in one step while nobody else is there: by no clock, for logits change with the shape of a batch.
(小满 on the embedded base, 900 tokens in steps of 25 and of 250: P(silent) 0.130 and 0.145, other words.)"""
PASSED_MAX = 4
"""Steps a prompt is passed over for shorter ones; then it is first: a long one is read at a fifth of the pace."""
_CHUNK_MIN = 16
"""Tokens of prompt in a step at least; as many are enough to measure a pace by: a slow one could not rise else."""
_CLOSED = "the engine is closed"


@dataclass(eq=False)
class Job:
    """A request under way.

    Args:
        request: what was asked.
        ids: the prompt's tokens.
        put: told of each bubble; None only looks: evaluates the prompt, and ends with P(silent).
        done: told how it ended: P(silent) or 0 for an answer, or the error.
    """

    request: Request
    ids: Sequence[int]
    put: Callable[[str], None] | None
    done: Callable[[float | EngineError], None]
    stop: threading.Event = field(default_factory=threading.Event)
    """Set by who asked, when the answer is no longer wanted."""
    seat: Seat | None = None
    sampler: Sampler | None = None
    lines: Lines | None = None
    unwanted: bool = False
    """Whether its sequence is to be dropped when it ends: its scene was forgotten while it waited."""
    made: list[int] = field(default_factory=list)
    why: End | None = None
    """Why its answer ended; None where something else stopped it."""
    asked: float = 0.0
    """When, by the clock of who evaluates it."""
    turned: int = 0
    """The step when its LoRA last had the turn, or when it began."""
    passed: int = 0
    """Steps of its LoRA since it began or was last read in, that had no time for its prompt."""

    @property
    def lora(self) -> Path | None:
        """The LoRA it is evaluated with."""
        return self.request.voice.lora

    @property
    def left(self) -> Sequence[int]:
        """Tokens to evaluate next: the rest of the prompt, or the token drawn last."""
        assert self.seat is not None
        return self.made[-1:] if self.made else self.ids[len(self.seat.tokens) :]


@dataclass(frozen=True, slots=True)
class _Forget:
    """Which sequences are to be dropped, and who waits for it."""

    wanted: Callable[[str], bool]
    done: Future[None] = field(default_factory=Future)


class Batcher:
    """Evaluates jobs; one thread of its own.

    Same seed, settings and prompt give the same P(silent) and text, to the bit, where the job is alone from its first
    step on and the cache holds what it held the other time: an empty one, say. Beside others, or where the prompt was
    read in other parts before, logits differ a little, and a word may.

    Args:
        model: the base, or a merged model.
        context: its cache, used by nobody else.
        seats: the sequences in it.
        loras: the LoRAs on it.
        n_ctx: tokens of one window, the reply included; at most the cells of the cache.
        n_parallel: jobs under way at once, at most `n_batch`; the rest wait in the order they came.
        deadline_s: a job that takes longer from when it was asked is given up.
        clock: seconds, from wherever.
    """

    def __init__(
        self, model: Model, context: Context, seats: Seats, loras: Loras, *,
        n_ctx: int, n_parallel: int, deadline_s: float, clock: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        self._model, self._context, self._seats, self._loras = model, context, seats, loras
        self._n_ctx, self._n_parallel, self._deadline_s, self._clock = n_ctx, n_parallel, deadline_s, clock
        self._inbox: queue.SimpleQueue[Job | _Forget | None] = queue.SimpleQueue()
        self._waiting: list[Job] = []
        self._active: list[Job] = []
        self._turn: Path | None = None
        self._turn_steps, self._turn_began = 0, 0.0
        self._prompt_rate = 400.0
        """Prompt tokens a second, as last measured."""
        self.steps, self.switches, self.evaluated = 0, 0, 0
        """Decodes since the start, those of them with another LoRA than the one before, and tokens evaluated."""
        self._closing = threading.Event()
        self._submitting = threading.Lock()
        """Held while a job is put, so that none comes behind the last one that is told of the end."""
        self._thread = threading.Thread(target=self._run, name="llama", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Ask for a job, from any thread.

        Raises:
            EngineError: the engine is closed; the prompt can never fit, or holds what is no token, for which llama.cpp
                would refuse a whole step, the others' tokens in it.
        """
        if (wrong := next((t for t in job.ids if not 0 <= t < self._model.n_vocab), None)) is not None:
            raise EngineError(
                f"token {wrong} is outside the vocabulary of {self._model.path.name!r} ({self._model.n_vocab} tokens); "
                "was the prompt encoded for another model?"
            )
        if len(job.ids) >= self._n_ctx:
            raise EngineError(
                f"a prompt of {len(job.ids)} tokens is longer than a window of {self._n_ctx} ([engine] n_ctx, or what "
                "the model was trained for); raise n_ctx, or shorten the system prompt"
            )
        job.asked = self._clock()
        with self._submitting:
            if self._closing.is_set():
                raise EngineError(_CLOSED)
            self._inbox.put(job)

    def forget(self, wanted: Callable[[str], bool]) -> Future[None]:
        """Drop the sequences whose seat is wanted gone, from any thread; done when they are.

        One that is being used, or waited for, goes when its request ends.
        """
        forget = _Forget(wanted)
        with self._submitting:
            if self._closing.is_set():
                forget.done.set_result(None)
            else:
                self._inbox.put(forget)
        return forget.done

    def close(self) -> None:
        """Stop everything and wait for the thread; who still waits is told."""
        with self._submitting:
            self._closing.set()
            self._inbox.put(None)
        self._thread.join()

    # -- on the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._hear(wait=not (self._active or self._waiting))
                self._admit()
                self._step()
            except Exception as e:  # noqa: BLE001 - the worker's edge: whatever failed, the others are served on
                for job in list(self._active):
                    self._end(job, _failure(e), drop=True)
        try:
            self._hear(wait=False)
        finally:
            for job in [*self._active, *self._waiting]:
                self._end(job, EngineError(_CLOSED))

    def _hear(self, *, wait: bool) -> None:
        """Take in what was asked meanwhile; with `wait` sleep until something is, or the end comes."""
        while True:
            try:
                job = self._inbox.get(block=wait)
            except queue.Empty:
                return
            wait = False
            if isinstance(job, _Forget):
                self._forget(job)
            elif job is not None:
                self._waiting.append(job)

    def _forget(self, asked: _Forget) -> None:
        waited_for = asked.done.set_running_or_notify_cancel()  # else it was cancelled, and is done all the same
        try:
            self._seats.forget(asked.wanted)
            for waiting in self._waiting:
                waiting.unwanted = waiting.unwanted or asked.wanted(waiting.request.seat)
        except Exception as e:  # noqa: BLE001 - the worker's edge: who asked is told, the others are served on
            if waited_for:
                asked.done.set_exception(_failure(e))
        else:
            if waited_for:
                asked.done.set_result(None)

    def _admit(self) -> None:
        """Let go of jobs that are no longer wanted or take too long, and begin those there is room for."""
        for job in [j for j in (*self._waiting, *self._active) if j.stop.is_set()]:
            self._end(job, 1.0)
        overdue = self._clock() - self._deadline_s
        late = f"an answer took longer than [engine] deadline_s = {self._deadline_s:g}; raise it, or lower n_parallel"
        for job in [j for j in (*self._waiting, *self._active) if j.asked < overdue]:
            self._end(job, EngineError(late))
        for job in list(self._waiting):
            reserved = sum(map(self._cells, self._active))
            if len(self._active) >= self._n_parallel or (
                self._active and reserved + self._cells(job) > self._context.n_tokens
            ):
                return
            if not self._seats.is_busy(job.request.seat):
                self._begin(job)

    def _cells(self, job: Job) -> int:
        """Cells of the cache a job may come to use."""
        return min(len(job.ids) + (job.request.sampling.max_tokens if job.put else 0), self._n_ctx)

    def _begin(self, job: Job) -> None:
        try:
            self._loras.load(job.lora, {j.lora for j in self._active})
            job.seat = self._seats.take(job.request.seat, job.lora, job.ids)
        except Exception as e:  # noqa: BLE001 - the worker's edge: what cannot begin is in nobody's way
            self._end(job, _failure(e))
            return
        if job.seat is None:
            return
        job.seat.unwanted = job.seat.unwanted or job.unwanted
        job.turned = self.steps
        self._waiting.remove(job)
        self._active.append(job)

    def _step(self) -> None:
        group = self._whose_turn()
        if not group:
            return
        parts = list(self._parts(group))
        handle = self._loras.handle(group[0].lora)
        self.steps, self.switches = self.steps + 1, self.switches + (handle is not self._context.lora)
        self._context.use(handle)
        rows: list[tuple[int, int, int, bool]] = []
        last: dict[int, Job] = {}
        for job, tokens in parts:
            assert job.seat is not None
            at, whole = len(job.seat.tokens), len(tokens) == len(job.left)
            rows += [(t, job.seat.number, at + i, whole and i == len(tokens) - 1) for i, t in enumerate(tokens)]
            if whole:
                last[len(rows) - 1] = job
        if self._decode(rows, parts):
            for job, tokens in parts:
                assert job.seat is not None
                job.seat.tokens += tokens
            for index, job in last.items():
                try:
                    self._take_out(job, index)
                except EngineError as e:
                    self._end(job, e, drop=True)

    def _whose_turn(self) -> list[Job]:
        """The jobs of the LoRA whose turn it is; the next is that of whoever waits longest.

        So with k LoRAs busy each waits (k - 1) turns at most, in whatever order jobs come and go.
        """
        kinds = {j.lora for j in self._active}
        over = self._turn_steps >= TURN_STEPS or self._clock() - self._turn_began >= TURN_S
        if self._turn not in kinds or (over and len(kinds) > 1):
            others = [j for j in self._active if j.lora != self._turn]
            self._turn = min(others, key=lambda j: j.turned).lora if others else None
            self._turn_steps, self._turn_began = 0, self._clock()
        self._turn_steps += 1
        group = [j for j in self._active if j.lora == self._turn]
        for job in group:
            job.turned = self.steps
        return group

    def _parts(self, group: list[Job]) -> Iterator[tuple[Job, Sequence[int]]]:
        """What each job evaluates in this step: answers their next token, prompts what others leave time for.

        The shortest prompts are first, but for those passed over too often.
        """
        typing = [j for j in group if j.made]
        reading = [j for j in group if not j.made]
        reading.sort(key=lambda j: (-j.passed if j.passed >= PASSED_MAX else 0, len(j.left)))
        for job in typing:
            yield job, job.left
        seconds = TYPING_STEP_S if any(j.made for j in self._active) else _READING_STEP_S
        paced = max(_CHUNK_MIN, int(self._prompt_rate * seconds))
        room = min(paced if len(self._active) > 1 else ALONE_TOKENS, self._context.n_batch - len(typing))
        for job in reading:
            if room <= 0:
                job.passed += 1
                continue
            assert job.seat is not None
            tokens = job.left[: self._seats.readable(job.seat, room)]
            room, job.passed = room - len(tokens), 0
            yield job, tokens

    def _decode(self, rows: list[tuple[int, int, int, bool]], parts: list[tuple[Job, Sequence[int]]]) -> bool:
        """Evaluate a step; False when it failed or was aborted, and the jobs in it are ended."""
        jobs = [job for job, _ in parts]
        stops = [job.stop for job in jobs]

        def unwanted() -> bool:
            return self._closing.is_set() or all(stop.is_set() for stop in stops)

        started = self._clock()
        while True:
            try:
                done = self._context.decode(rows, unwanted if len(rows) >= 2 * _CHUNK_MIN else None)
                break
            except CacheFull as e:
                if self._seats.evict():
                    continue
                self._end(max(jobs, key=lambda j: len(j.ids)), e, drop=True)
                return False
            except EngineError as e:
                for job in jobs:
                    self._end(job, e, drop=True)
                return False
        self.evaluated += len(rows)
        if not done:
            for job in jobs:
                assert job.seat is not None
                self._seats.take_back(job.seat)
                self._end(job, 1.0 if job.stop.is_set() else EngineError(_CLOSED))
            return False
        if sum(len(tokens) for job, tokens in parts if not job.made) >= _CHUNK_MIN:
            self._prompt_rate += (len(rows) / (self._clock() - started) - self._prompt_rate) / 4
        return True

    def _take_out(self, job: Job, index: int) -> None:
        """Use the logits of a job's last row: P(silent), or the next token."""
        if job.put is None:
            end = self._model.tokens(job.request.voice.format.end, control=True)[0]
            self._end(job, min(1.0, math.exp(log_probs(self._context.row(index), [end])[0])))
            return
        if job.sampler is None or job.lines is None:
            # The decision to speak was taken before: the first word is a word.
            self._context.row(index)[self._model.no_first_word] = -math.inf
            job.sampler = Sampler(self._model, job.request.sampling, job.request.seed)
            job.lines = Lines(job.put)
        token = self._context.sample(job.sampler, index)
        job.made.append(token)
        if looping(job.made, self._text):
            job.lines.end(looped=True)
            job.why = End.LOOP
        elif token in self._model.ends:
            job.lines.end()
            job.why = End.TURN
        else:
            job.lines.feed(self._model.piece(token))
            if len(job.made) < job.request.sampling.max_tokens and len(job.ids) + len(job.made) < self._n_ctx:
                return
            job.lines.end()
            job.why = End.LENGTH
        self._end(job, 0.0)

    def _text(self, tokens: Sequence[int]) -> str:
        return b"".join(map(self._model.piece, tokens)).decode("utf-8", "ignore")

    def _end(self, job: Job, result: float | EngineError, *, drop: bool = False) -> None:
        """A job is over: its sequence is free for others, and who asked is told."""
        if job in self._active:
            self._active.remove(job)
        if job in self._waiting:
            self._waiting.remove(job)
        if job.sampler is not None:
            job.sampler.close()
            job.sampler = None
        try:
            if job.seat is not None:
                try:
                    if drop:
                        self._seats.clear(job.seat)
                finally:
                    self._seats.leave(job.seat)
        finally:
            job.done(result)


class Lines:
    """Bytes of tokens → bubbles, one a line; a character may be spread over several tokens."""

    def __init__(self, put: Callable[[str], None]) -> None:
        self._put = put
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._text = ""

    def feed(self, data: bytes) -> None:
        """Take the bytes of one token."""
        self._text += self._decoder.decode(data)
        *whole, self._text = self._text.split("\n")
        for line in whole:
            if line.strip():
                self._put(line.strip())

    def end(self, *, looped: bool = False) -> None:
        """The answer is complete: what is left is its last bubble, of a loop as much of it as is said."""
        if looped:
            self._text = kept(self._text)
        self.feed(b"\n")


def _failure(error: Exception) -> EngineError:
    """What who asked is told; what nobody raised on purpose goes to the log with its place."""
    if isinstance(error, EngineError):
        return error
    logger.opt(exception=error).error("a step of the engine failed")
    return EngineError(f"the engine failed ({type(error).__name__}); the log says where")
