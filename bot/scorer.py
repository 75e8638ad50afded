"""A base and a LoRA → log-probabilities of given tokens: what evaluation, parity and the gate read in llama.cpp itself.

One sequence, read in batches; the rows of logits are turned into numbers as they come.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bot import config
from bot.llama import Context, Model, log_probs


class Scorer:
    """Log-probabilities of given tokens; owns its model.

    Args:
        base: the base GGUF.
        lora: a LoRA, or None for the bare base.
        n_ctx: tokens of the longest window.
        n_threads: CPU threads.
        settings: where the weights are put, as those that answer are: beside a bot on the GPU there may be no room.

    Raises:
        EngineError: the base or the LoRA cannot be loaded.
    """

    def __init__(
        self, base: Path, lora: Path | None, n_ctx: int, n_threads: int | None = None,
        settings: config.Engine = config.Engine(),  # noqa: B008 - frozen
    ) -> None:  # fmt: skip
        with contextlib.ExitStack() as undo:
            self.model = Model.of(base, settings)
            undo.callback(self.model.close)
            self._context = Context(self.model, n_ctx, 1, min(256, n_ctx), n_threads, n_outputs=min(256, n_ctx))
            undo.callback(self._context.close)
            self._lora = self.model.load_lora(lora) if lora is not None else None
            undo.pop_all()
        self._context.use(self._lora)

    def close(self) -> None:
        """Free everything."""
        self._context.use(None)
        self._context.close()
        if self._lora is not None:
            self.model.free_lora(self._lora)
        self.model.close()

    def log_probs(self, ids: Sequence[int], wanted: Sequence[tuple[int, int]]) -> npt.NDArray[np.float64]:
        """Gives log p(token | ids[:position]) in nats for each wanted (position, token); positions ≥ 1, ascending."""
        context, out = self._context, np.full(len(wanted), np.nan)
        context.keep(0, 0)
        rows: dict[int, list[int]] = {}
        for number, (position, _) in enumerate(wanted):
            rows.setdefault(position - 1, []).append(number)
        last = max(rows, default=-1)
        for start in range(0, last + 1, context.n_batch):
            end = min(start + context.n_batch, last + 1)
            context.decode([(ids[i], 0, i, i in rows) for i in range(start, end)])
            asked = [i for i in range(start, end) if i in rows]
            logits = context.logits(len(asked)) if asked else None
            for row, i in enumerate(asked):
                assert logits is not None
                out[rows[i]] = log_probs(logits[row], [wanted[n][1] for n in rows[i]])
        return out

    def continuations(self, context: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        """Gives log p(answer | context) in nats for each answer, the context read once; 0 for an empty one."""
        cache, found, shared = self._context, [], len(context) - 1
        cache.keep(0, 0)
        self._read(context[:shared], 0)
        for answer in answers:
            held = cache.keep(0, shared)  # none where the sequence cannot be cut
            ids = [*context, *answer][held:-1]
            rows = self._read(ids, held, from_=len(context) - 1)
            found.append(sum(float(log_probs(row, [token])[0]) for row, token in zip(rows, answer, strict=True)))
        return found

    def _read(self, ids: Sequence[int], start: int, from_: int | None = None) -> list[npt.NDArray[np.float32]]:
        """Evaluate tokens at `start` and on; the rows of logits behind those at `from_` and on."""
        cache: Context = self._context
        rows: list[npt.NDArray[np.float32]] = []
        for begin in range(0, len(ids), cache.n_batch):
            part = [(token, start + begin + i) for i, token in enumerate(ids[begin : begin + cache.n_batch])]
            asked = [from_ is not None and position >= from_ for _, position in part]
            cache.decode([(token, 0, position, wanted) for (token, position), wanted in zip(part, asked, strict=True)])
            if any(asked):
                rows += [row.copy() for row in cache.logits(sum(asked))]
        return rows

    def greedy(self, ids: Sequence[int], n: int, ends: frozenset[int]) -> list[int]:
        """The likeliest token after `ids`, again and again: `n` at most, up to and with the first of `ends`."""
        context = self._context
        context.keep(0, 0)
        said: list[int] = []
        for start in range(0, len(ids), context.n_batch):
            part = ids[start : start + context.n_batch]
            context.decode([(t, 0, start + i, start + i == len(ids) - 1) for i, t in enumerate(part)])
        while True:
            said.append(int(context.logits(1)[0].argmax()))
            if len(said) >= n or said[-1] in ends:
                return said
            context.decode([(said[-1], 0, len(ids) + len(said) - 1, True)])
