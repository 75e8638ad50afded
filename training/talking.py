"""A reply engine over transformers: a checkpoint and, on it, a PEFT LoRA, for `twin chat --backend transformers`.

What was trained, before any export; beside `--backend llama` it shows what exporting and quantizing change. One chat at
a time, its key-value cache kept from one answer to the next.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from bot.batching import Lines
from bot.engine import End, Measure, Request, Voice
from bot.errors import EngineError
from bot.llama import BLANKS, BLANKS_MAX
from bot.looping import looping
from bot.persona import Sampling
from bot.prompt import ChatFormat, Piece, encode
from training.hf import HFTokenizer

_PENALIZED = 64
"""Newest tokens the repetition penalty looks at, as in llama.cpp's chain."""


class TransformersEngine:
    """A `bot.engine.ReplyEngine` over a Hugging Face checkpoint.

    Args:
        checkpoint: its folder.
        peft: a PEFT LoRA's folder, or None.
        n_ctx: tokens of one window, the reply included.
        dtype: of the weights; float32 is exact and, on most processors, fastest.

    Raises:
        EngineError: the checkpoint or the LoRA cannot be loaded.
        TrainingError: its tokenizer cannot be read, or fits no chat format.
    """

    def __init__(self, checkpoint: Path, peft: Path | None, n_ctx: int, dtype: torch.dtype = torch.float32) -> None:
        self._tokenizer = HFTokenizer(checkpoint)
        self.n_ctx, self.base_sha256 = n_ctx, ""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, local_files_only=True)
            if peft is not None:
                model = PeftModel.from_pretrained(model, peft).merge_and_unload()
        except (OSError, ValueError, KeyError, RuntimeError) as e:
            raise EngineError(f"checkpoint {str(checkpoint)!r} or its LoRA cannot be loaded ({e})") from e
        self._model = model.to(device).eval()
        ends = {self._token(self.format.end)}
        declared = model.generation_config.eos_token_id if model.generation_config else None
        self._ends = ends | set(declared if isinstance(declared, list) else [declared] if declared is not None else [])
        self._never = [i for i in self._tokenizer.special_ids if i not in self._ends]
        blanks = (self._tokenizer.tokens(blank * n, control=False) for blank in BLANKS for n in range(1, BLANKS_MAX))
        self._no_first_word = [*self._ends, *{ids[0] for ids in blanks if len(ids) == 1}]
        self._held: list[int] = []
        self._cache: Any = None

    @property
    def format(self) -> ChatFormat:
        """Chat format of the checkpoint."""
        return self._tokenizer.format

    async def measure(self, voice: Voice) -> Measure:
        """The same for every voice: there is one checkpoint."""
        return Measure(self.n_ctx, self.count)

    def count(self, pieces: Sequence[Piece]) -> int:
        """Tokens of pieces, without BOS."""
        return len(encode(pieces, self._tokenizer, bos=False)[0])

    async def p_silent(self, request: Request) -> float:
        """P(end-of-turn as the first token)."""
        row = await asyncio.to_thread(self._first, request)
        return float(torch.softmax(row, -1)[self._token(request.voice.format.end)])

    async def bubbles(self, request: Request) -> AsyncGenerator[str, None]:
        """Bubbles of the answer as their lines complete."""
        loop, stop = asyncio.get_running_loop(), threading.Event()
        lines: asyncio.Queue[str | None] = asyncio.Queue()

        def work() -> None:
            try:
                for line in self._drawn(request, stop):
                    loop.call_soon_threadsafe(lines.put_nowait, line)
            finally:
                loop.call_soon_threadsafe(lines.put_nowait, None)

        job = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            while (line := await lines.get()) is not None:
                yield line
            await job
        finally:
            stop.set()
            await asyncio.gather(job, return_exceptions=True)

    async def forget(self, wanted: Callable[[str], bool]) -> None:
        """Drop what is held: there is one conversation."""
        self._held, self._cache = [], None

    async def close(self) -> None:
        """Free the model."""
        self._model = self._cache = None

    # -- on a thread of its own -------------------------------------------------------------------

    def _token(self, text: str) -> int:
        return self._tokenizer.tokens(text, control=True)[0]

    def _text(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.text(tokens).strip("\ufffd")

    @torch.inference_mode()
    def _first(self, request: Request) -> torch.Tensor:
        """Logits behind the prompt, (n_vocab,)."""
        ids, _ = encode(request.pieces, self._tokenizer)
        if len(ids) >= self.n_ctx:
            raise EngineError(f"a prompt of {len(ids)} tokens is longer than [engine] n_ctx = {self.n_ctx}")
        kept = 0
        while kept < min(len(self._held), len(ids) - 1) and self._held[kept] == ids[kept]:
            kept += 1
        if self._cache is None or kept < len(self._held):
            # A sliding-window cache cannot be cut everywhere: it is read again.
            self._cache, self._held, kept = DynamicCache(config=self._model.config), [], 0
        return self._feed(ids[kept:])

    def _feed(self, ids: Sequence[int]) -> torch.Tensor:
        tokens = torch.tensor([list(ids)], device=self._model.device)
        out = self._model(input_ids=tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._held += ids
        row: torch.Tensor = out.logits[0, -1].float()
        return row

    @torch.inference_mode()
    def _drawn(self, request: Request, stop: threading.Event) -> Iterator[str]:
        """Draw the answer; gives its lines."""
        row, made, done = self._first(request), list[int](), list[str]()
        row[self._no_first_word] = -torch.inf
        chain = _chain(request.sampling)
        generator = torch.Generator(device=row.device).manual_seed(request.seed)
        lines, sent, told = Lines(done.append), 0, 0
        looped = False
        for _ in range(min(request.sampling.max_tokens, self.n_ctx - len(self._held))):
            row[self._never] = -torch.inf
            recent = torch.tensor([made[-_PENALIZED:]], device=row.device, dtype=torch.long)
            scores = chain(recent, row[None])[0]  # type: ignore[arg-type]
            greedy = request.sampling.temperature == 0
            token = int(scores.argmax() if greedy else torch.multinomial(scores.softmax(-1), 1, generator=generator))
            made.append(token)
            looped = looping(made, self._text)
            if token in self._ends or stop.is_set() or looped:
                break
            text = self._tokenizer.text(made)
            if not text.endswith("\ufffd"):
                lines.feed(text[told:].encode())
                told = len(text)
            yield from done[sent:]
            sent = len(done)
            row = self._feed([token])
        lines.end(looped=looped)
        yield from done[sent:]
        why = End.LOOP if looped else End.TURN if made[-1] in self._ends else End.LENGTH
        request.ending.tokens, request.ending.why = len(made), None if stop.is_set() else why


def _chain(sampling: Sampling) -> LogitsProcessorList:
    """The library's own processors, in the order of llama.cpp's chain."""
    chain = LogitsProcessorList()
    if sampling.repeat_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(sampling.repeat_penalty))
    if sampling.temperature > 0:
        if sampling.top_k:
            chain.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            chain.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p > 0:
            chain.append(MinPLogitsWarper(sampling.min_p))
        chain.append(TemperatureLogitsWarper(sampling.temperature))
    return chain
