"""Samples of chats → what a language model says of each: in batches, several at once, every answer kept as it comes.

A batch is one chat: the task's words and below them the numbered samples as the user's message, a JSON object of number
→ value as the answer. There is no system message: a chat format that has none drops it without a word, as Gemma's does
in llama_cpp.server, and the model then judges without knowing what. An answer that is no such object is asked for once
more, then counted and left. What is too long for the model's context is split, and at last a single sample's oldest
lines are left out.
"""

import asyncio
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bot.completions import Completions, Named, Refused
from bot.config import ModelCleaning
from bot.errors import EngineError, TrainingError
from training.verdicts import Verdicts

BACK_OFF_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Pauses before further attempts at a server that is gone or busy: a minute, in which one restarts."""
TEXT_MAX = 200
"""Characters of a text the model writes."""
_NAMED = Named(
    "[cleaning] url", "[cleaning] model", "TWIN__CLEANING__API_KEY", "[cleaning] timeout_s", "[cleaning] timeout_s",
    "one sample and its answer",
)  # fmt: skip
_TOO_LONG = frozenset({400, 413, 422})
"""What servers refuse a prompt with that is longer than their context."""
_FORM_REFUSED = _TOO_LONG | {500}
"""And with what an answer's form they do not know (llama_cpp.server: 500)."""
_HOPELESS = 8
"""Samples refused alone, one after another, after which the server refuses something else than their length."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a model is asked about.

    Args:
        key: of `key_of`.
        title: over the context; empty without one.
        context: lines, oldest first, that may be left out from the front where all is too long.
        text: what must stand.
        wanted: JSON schema of the value: an integer or list of an `enum`, or a string.
    """

    key: str
    title: str
    context: tuple[str, ...]
    text: str
    wanted: dict[str, Any]

    @property
    def shown(self) -> str:
        """As the model reads it."""
        return "\n".join((*((self.title, *self.context) if self.title else ()), self.text))


def key_of(model: str, words: str, *text: str) -> str:
    """The hash under which the answer to a question is kept: of the model, the task's words and the sample."""
    return hashlib.blake2b("\0".join((model, words, *text)).encode("utf-8", "replace"), digest_size=16).hexdigest()


@dataclass(slots=True)
class Tally:
    """What asking came to.

    Args:
        samples: different ones asked about.
        known: of them, answered by an earlier run.
        answered: of them, answered now.
        unreadable: of them, answered twice with something else than was asked for; left as they are.
        refused: of them, refused by the server even alone; left as they are.
        asked_again: of them, asked for a second time.
        splits: batches that were too long.
        requests: requests answered.
        prompt_tokens: tokens the server counted in them.
        completion_tokens: tokens of its answers.
        bytes: UTF-8 bytes of the samples answered now.
        seconds: wall time.
    """

    samples: int = 0
    known: int = 0
    answered: int = 0
    unreadable: int = 0
    refused: int = 0
    asked_again: int = 0
    splits: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    bytes: int = 0
    seconds: float = 0.0

    @property
    def done(self) -> int:
        """Samples that are through, with an answer or without."""
        return self.known + self.answered + self.unreadable + self.refused

    @property
    def kb_per_minute(self) -> float:
        """Kilobytes of samples answered in a minute."""
        return self.bytes / 1000 / (self.seconds / 60) if self.seconds else 0.0


@dataclass(slots=True)
class Judge:
    """Asks one model.

    Args:
        settings: `[cleaning]`, with `url`.
        verdicts: where answers are kept.
        back_off_s: pauses between attempts at a server that does not answer.
    """

    settings: ModelCleaning
    verdicts: Verdicts
    back_off_s: Sequence[float] = BACK_OFF_S
    _server: Completions = field(init=False)
    _forms: list[Callable[[dict[str, Any]], dict[str, Any]]] = field(default_factory=lambda: [_schema, _object, _free])
    _settled: bool = False
    _limit: int | None = None
    """Bytes of samples with which a batch was too long."""
    _fault: EngineError | None = None
    _refused_running: int = 0

    def __post_init__(self) -> None:
        """Make the client; nothing is sent yet."""
        if self.settings.url is None:
            raise TrainingError("no model is set to clean with: set [cleaning] url, such as http://127.0.0.1:8080/v1")
        key = self.settings.api_key.get_secret_value() if self.settings.api_key else None
        patience_s = 2 * self.settings.timeout_s
        self._server = Completions(self.settings.url, key, self.settings.timeout_s, patience_s, _NAMED, self.back_off_s)

    async def close(self) -> None:
        """Close the connections."""
        await self._server.close()

    async def meet(self) -> None:
        """Whether the server has the model.

        Raises:
            EngineError: it does not answer.
            TrainingError: it has others; names them.
        """
        there = await self._server.models()
        if there is not None and self.settings.model not in there:
            what = "is not set" if self.settings.model is None else f"= {self.settings.model!r} is not there"
            raise TrainingError(f"[cleaning] model {what}; {self.settings.url} has {', '.join(map(repr, there[:40]))}")
        if self.settings.model is None:
            raise TrainingError(f"[cleaning] model is not set, and {self.settings.url} does not list those it has")

    async def ask(
        self, task: str, words: str, samples: Iterable[Sample], progress: Callable[[int, int], None] = lambda *_: None
    ) -> Tally:
        """Have every sample judged that is not yet; the answers are in `verdicts`.

        Args:
            task: what is asked, for the books.
            words: the task's, before the samples.
            samples: equal ones are asked about once.
            progress: called with samples done and all.

        Raises:
            TrainingError: the server failed for good; what it answered is kept.
        """
        different = {s.key: s for s in samples}
        todo = deque(s for s in different.values() if not fits(self.verdicts.of(s.key), s.wanted))
        tally = Tally(samples=len(different), known=len(different) - len(todo))
        self._limit = None  # One task's answers are longer than another's.
        began = time.monotonic()

        async def work() -> None:
            while todo and self._fault is None:
                try:
                    await self._batch(task, words, self._next(todo), tally)
                except EngineError as e:
                    self._fault = self._fault or e
                progress(tally.done, tally.samples)

        await asyncio.gather(*(work() for _ in range(self.settings.concurrency)))
        tally.seconds = time.monotonic() - began
        if self._fault is not None:
            raise TrainingError(
                f"{self._fault}. {tally.known + tally.answered} of {tally.samples} samples ({task}) are answered and "
                "kept; the same command goes on from there"
            ) from self._fault
        return tally

    def _next(self, todo: deque[Sample]) -> list[Sample]:
        """As many samples as a batch may have, and as were never too long."""
        batch = [todo.popleft()]
        size = _bytes(batch)
        while todo and len(batch) < self.settings.batch_size:
            size += _bytes([todo[0]])
            if self._limit is not None and size >= self._limit:
                break
            batch.append(todo.popleft())
        return batch

    async def _batch(
        self, task: str, words: str, batch: Sequence[Sample], tally: Tally, *, again: bool = False
    ) -> None:
        try:
            text, cut = await self._told(task, words, batch, tally)
        except Refused as e:
            if e.status not in _TOO_LONG:
                raise
            await self._shorter(task, words, batch, tally, e)
            return
        self._refused_running = 0
        read = _read(text, batch)
        if cut and not read:
            await self._shorter(task, words, batch, tally, None)
            return
        self.verdicts.keep(read)
        good = [s for s in batch if s.key in read]
        tally.answered += len(good)
        tally.bytes += _bytes(good)
        bad = [s for s in batch if s.key not in read]
        if bad and not again:
            tally.asked_again += len(bad)
            await self._batch(task, words, bad, tally, again=True)
        else:
            tally.unreadable += len(bad)

    async def _shorter(
        self, task: str, words: str, batch: Sequence[Sample], tally: Tally, refusal: Refused | None
    ) -> None:
        """Ask in halves what was too long, at last without a single sample's oldest lines."""
        if len(batch) > 1:
            tally.splits += 1
            self._limit = min(self._limit or _bytes(batch), _bytes(batch))
            middle = len(batch) // 2
            for half in (batch[:middle], batch[middle:]):
                await self._batch(task, words, half, tally)
        elif batch[0].context:
            kept = batch[0].context[len(batch[0].context) // 2 + 1 :]
            await self._batch(task, words, [replace(batch[0], context=kept)], tally)
        elif refusal is None:
            tally.unreadable += 1
        else:
            tally.refused += 1
            self._refused_running += 1
            if self._refused_running >= _HOPELESS:
                raise refusal

    async def _told(self, task: str, words: str, batch: Sequence[Sample], tally: Tally) -> tuple[str, bool]:
        """The answer, and whether it was cut off. JSON is asked for as strictly as the server lets itself be asked."""
        numbered = "\n\n".join(f"## {number}\n{s.shown}" for number, s in enumerate(batch, 1))
        messages = [{"role": "user", "content": f"{words}\n\n{numbered}"}]
        body = {"model": self.settings.model, "messages": messages, "temperature": 0}
        forms = self._forms[:1] if self._settled else list(self._forms)
        for number, form in enumerate(forms):
            try:
                told = await self._server.chat({**body, **form(_answer_schema(batch))})
            except Refused as e:
                if e.status not in _FORM_REFUSED or number == len(forms) - 1:
                    raise
                continue
            if not self._settled:
                self._settled, self._forms = True, [form]
            tally.requests += 1
            tally.prompt_tokens += told.prompt_tokens
            tally.completion_tokens += told.completion_tokens
            self.verdicts.paid(task, str(self.settings.model), told.prompt_tokens, told.completion_tokens)
            return told.text, told.cut
        raise AssertionError("no form of asking")


def _bytes(samples: Iterable[Sample]) -> int:
    return sum(len(s.shown.encode("utf-8", "replace")) for s in samples)


def _answer_schema(batch: Sequence[Sample]) -> dict[str, Any]:
    wanted = {str(number): s.wanted for number, s in enumerate(batch, 1)}
    return {"type": "object", "properties": wanted, "required": list(wanted), "additionalProperties": False}


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    """OpenAI, vLLM, llama-server, Ollama, LM Studio."""
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answers", "schema": schema}}}


def _object(schema: dict[str, Any]) -> dict[str, Any]:
    """llama_cpp.server; others take the type alone and pass over the schema."""
    return {"response_format": {"type": "json_object", "schema": schema}}


def _free(_: dict[str, Any]) -> dict[str, Any]:
    return {}


def _read(text: str, batch: Sequence[Sample]) -> dict[str, Any]:
    """The values of an answer by key: none if it has other numbers than were asked for, for they may be shifted."""
    numbers = {str(number): s for number, s in enumerate(batch, 1)}
    for found in _objects(text.rpartition("</think>")[2]):
        if found.keys() == numbers.keys():
            return {numbers[n].key: value for n, value in found.items() if fits(value, numbers[n].wanted)}
    return {}


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """JSON objects among other words."""
    decoder, at = json.JSONDecoder(strict=False), 0
    while (at := text.find("{", at)) >= 0:
        try:
            found, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
        else:
            yield found


def fits(value: Any, wanted: dict[str, Any]) -> bool:
    """Whether a value is what a sample asks for."""
    match wanted["type"]:
        case "integer":
            return type(value) is int and value in wanted["enum"]
        case "array":
            return isinstance(value, list) and all(fits(v, wanted["items"]) for v in value)
        case _:
            # A lone digit or mark is the answer to another question than was asked.
            return isinstance(value, str) and any(map(str.isalpha, value)) and len(value.strip()) <= TEXT_MAX
