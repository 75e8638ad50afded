"""The loaded models: the base, and merged ones; those used least recently are freed when they take too much memory.

A merged model is loaded at first use, off the event loop, while the others go on answering: 250 MB take about a second.
Each decodes on a thread of its own, and none waits for another (docs/decisions.md). What is kept here is touched on the
event loop alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from loguru import logger

from bot import config
from bot.batching import Batcher
from bot.engine import Voice
from bot.errors import EngineError
from bot.llama import Context, Model
from bot.loras import Loras
from bot.seats import Seats
from bot.spill import Spill


class Served:
    """A model that answers: its weights, cache, sequences, LoRAs and thread.

    Args:
        path: the GGUF.
        settings: `[engine]`.
        base_sha256: the base's hash, which LoRAs are checked against; empty for a merged model, which has none.
        spill: folder for `spill_disk_mb`; None: scenes are spilled to memory only.
        label: tells this model's files there from others'; empty for the base, which clears the folder.
        stop: once it is true, loading ends.

    Raises:
        EngineError: it cannot be loaded, there is no memory for its cache, or loading was stopped.
    """

    def __init__(
        self, path: Path, settings: config.Engine, base_sha256: str, spill: Path | None = None, label: str = "",
        stop: Callable[[], bool] | None = None,
    ) -> None:  # fmt: skip
        with contextlib.ExitStack() as undo:
            self.model = Model.of(path, settings, stop)
            undo.callback(self.model.close)
            self.context = Context(
                self.model, settings.kv_tokens, settings.n_seq_max, settings.n_batch, settings.n_threads,
                n_outputs=settings.n_parallel, flash_attn=settings.flash_attn, type_k=settings.type_k,
                type_v=settings.type_v, n_threads_batch=settings.n_threads_batch,
            )  # fmt: skip
            undo.callback(self.context.close)
            self.cache_bytes = self.context.cache_bytes()
            self.n_bytes = path.stat().st_size + self.cache_bytes
            undo.pop_all()
        # A merged model may know shorter contexts than the base.
        self.n_ctx = min(settings.n_ctx, self.model.n_ctx_train)
        self.spill = Spill(settings.spill_mb * 1_000_000, settings.spill_disk_mb * 1_000_000, spill, label)
        self.seats = Seats(self.context, settings.n_seq_max, self.spill)
        self.loras = Loras(self.model, self.context, base_sha256, settings.lora_mb * 1_000_000)
        self.batcher = Batcher(
            self.model, self.context, self.seats, self.loras,
            n_ctx=self.n_ctx, n_parallel=min(settings.n_parallel, settings.n_seq_max), deadline_s=settings.deadline_s,
        )  # fmt: skip

    def close(self) -> None:
        """Stop what runs and free everything; waits for the step under way."""
        self.batcher.close()
        self.spill.close()
        self.loras.close()
        self.context.close()
        self.model.close()


@dataclass(eq=False)
class _Merged:
    """A merged model, loaded or being loaded; while it has requests it stays."""

    loading: asyncio.Task[Served]
    requests: int = 0
    holders: weakref.WeakSet[object] = field(default_factory=weakref.WeakSet)
    """What still asks its vocabulary: it stays as long as one of them lives."""

    @property
    def served(self) -> Served | None:
        """The model once it is loaded."""
        done = self.loading.done() and not self.loading.cancelled() and self.loading.exception() is None
        return self.loading.result() if done else None

    @property
    def idle(self) -> bool:
        """Whether it may be freed."""
        return self.served is not None and not self.requests and not self.holders


class Models:
    """The base and the merged models.

    Args:
        base: the base GGUF.
        settings: `[engine]`.
        base_sha256: the base's hash.
        spill: folder for files of scenes, each model's under `spill_disk_mb`; or None.

    Raises:
        EngineError: the base cannot be loaded.
    """

    def __init__(self, base: Path, settings: config.Engine, base_sha256: str, spill: Path | None) -> None:
        self._settings, self._spill = settings, spill
        self.base = Served(base, settings, base_sha256, spill)
        """The base, loaded as long as the engine lives."""
        self._merged: OrderedDict[Path, _Merged] = OrderedDict()
        self._freeing = asyncio.Lock()
        """Held while models are freed: their memory counts until it is back."""
        self._loading = asyncio.Lock()
        """Held while room is made for a model and it is loaded: two at once would each take the same room."""
        self._closed = False

    def __contains__(self, path: Path) -> bool:
        return path in self._merged

    @property
    def loaded(self) -> list[Served]:
        """Every model that answers now."""
        return [self.base, *(m.served for m in self._merged.values() if m.served is not None)]

    @contextlib.asynccontextmanager
    async def using(self, voice: Voice) -> AsyncIterator[Served]:
        """The model a voice speaks with, loaded first if need be; it stays loaded until this is left.

        Raises:
            EngineError: it cannot be loaded, with the remedy; or the engine is closed.
        """
        if voice.model is None:
            yield self.base
            return
        if self._closed:
            raise EngineError("the engine is closed")
        if voice.model not in self._merged:
            self._begin(voice, voice.model)
        self._merged.move_to_end(voice.model)
        merged = self._merged[voice.model]
        merged.requests += 1
        try:
            # Who no longer waits for it must not take it from the others that do.
            served = await asyncio.wait_for(asyncio.shield(merged.loading), self._settings.deadline_s)
        except TimeoutError as e:
            merged.requests -= 1
            raise EngineError(
                f"the model of {voice.name!r} was not loaded within [engine] deadline_s = "
                f"{self._settings.deadline_s:g}; it goes on loading: ask again, or raise deadline_s"
            ) from e
        except BaseException:
            merged.requests -= 1
            raise
        try:
            yield served
        finally:
            merged.requests -= 1
            await self._free()

    def hold(self, voice: Voice, holder: object) -> None:
        """Keep the model of a voice, which is being used, loaded as long as something else lives."""
        if voice.model is not None and voice.model in self._merged:
            self._merged[voice.model].holders.add(holder)

    async def close(self) -> None:
        """Stop what runs, what is being loaded too, and free everything."""
        self._closed = True
        while self._merged:
            _, merged = self._merged.popitem()
            await asyncio.wait([merged.loading])
            if merged.served is not None:
                await asyncio.to_thread(merged.served.close)
        await asyncio.to_thread(self.base.close)

    def _begin(self, voice: Voice, path: Path) -> None:
        """Load a model; one that fails is tried again by the next request."""
        merged = self._merged[path] = _Merged(asyncio.create_task(self._load(voice, path)))

        def ended(_: asyncio.Task[Served]) -> None:
            if merged.served is None:
                self._merged.pop(path, None)

        merged.loading.add_done_callback(ended)

    async def _load(self, voice: Voice, path: Path) -> Served:
        started = time.perf_counter()
        try:
            size = (await asyncio.to_thread(path.stat)).st_size
            async with self._loading:
                # How large its cache is shows when it is loaded; the base's has as many cells.
                await self._free(size + self.base.cache_bytes)
                if self._closed:
                    raise EngineError("the engine is closed")
                served = await asyncio.to_thread(self._open, voice, path)
        except (OSError, EngineError) as e:
            if self._closed:
                raise EngineError("the engine is closed") from e
            persona = voice.name.partition("/")[0]
            raise EngineError(
                f"the model of {voice.name!r} cannot be used: {e}; publish it anew or `twin persona rollback {persona}`"
            ) from e
        logger.info(
            "the model of {} is loaded: {:.1f} s, {:.0f} MB with its cache", voice.name, time.perf_counter() - started,
            served.n_bytes / 1e6,
        )  # fmt: skip
        return served

    def _open(self, voice: Voice, path: Path) -> Served:
        label = hashlib.sha256(str(path).encode()).hexdigest()[:16] + "-"
        served = Served(path, self._settings, "", self._spill, label, stop=lambda: self._closed)
        if not served.model.is_control(voice.format.end):
            served.close()
            raise EngineError(
                f"its manifest names the chat format {voice.format.name!r}, its markers are those of "
                f"{served.model.format.name!r}"
            )
        return served

    async def _free(self, wanted_bytes: int = 0) -> None:
        """Free idle models, the least recently used first, until what is wanted fits too; else the newest stays."""
        async with self._freeing:
            while self._n_bytes() + wanted_bytes > self._settings.models_mb * 1_000_000:
                may_go = list(self._merged) if wanted_bytes else list(self._merged)[:-1]
                idle = ((p, m.served) for p in may_go if (m := self._merged[p]).idle)
                path, served = next(idle, (None, None))
                if path is None or served is None:
                    return
                del self._merged[path]
                await asyncio.to_thread(served.close)
                logger.debug("the model of version {} is freed", path.parent.name)

    def _n_bytes(self) -> int:
        return sum(m.served.n_bytes for m in self._merged.values() if m.served is not None)
