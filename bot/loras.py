"""LoRAs on one base: loaded at first use, shared, the least recently used freed when they take too much memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import Any

from loguru import logger

from bot.errors import EngineError
from bot.llama import Context, Model


class Loras:
    """The loaded LoRAs.

    Args:
        model: the base.
        context: where they are set; one is never freed while it is set there.
        base_sha256: hash of the base; a LoRA that names another is refused.
        max_bytes: memory of all together; what is in use stays all the same.
    """

    def __init__(self, model: Model, context: Context, base_sha256: str, max_bytes: int) -> None:
        self._model, self._context = model, context
        self._base_sha256, self._max_bytes = base_sha256, max_bytes
        self._loaded: OrderedDict[Path, tuple[Any, int]] = OrderedDict()

    def __contains__(self, path: Path) -> bool:
        return path in self._loaded

    def load(self, path: Path | None, in_use: Collection[Path | None] = ()) -> None:
        """Have a LoRA loaded; None is the bare base.

        Args:
            path: its GGUF.
            in_use: LoRAs that must stay.

        Raises:
            EngineError: it cannot be loaded, or is another base's.
        """
        if path is None:
            return
        if path not in self._loaded:
            started = time.perf_counter()
            try:
                size = path.stat().st_size
            except OSError as e:
                raise EngineError(f"LoRA {str(path)!r} cannot be read ({e.strerror})") from e
            self._loaded[path] = (self._model.load_lora(path, self._base_sha256), size)
            logger.debug("LoRA loaded in {:.0f} ms", (time.perf_counter() - started) * 1000)
        self._loaded.move_to_end(path)
        self._free({*in_use, path})

    def handle(self, path: Path | None) -> Any:
        """What llama.cpp calls a loaded one by; None for the bare base."""
        return None if path is None else self._loaded[path][0]

    def close(self) -> None:
        """Free all."""
        self._context.use(None)
        for handle, _ in self._loaded.values():
            self._model.free_lora(handle)
        self._loaded.clear()

    def _free(self, in_use: Collection[Path | None]) -> None:
        for path in [p for p in self._loaded if p not in in_use]:
            if sum(size for _, size in self._loaded.values()) <= self._max_bytes:
                return
            handle, _ = self._loaded.pop(path)
            if self._context.lora is handle:
                self._context.use(None)
            self._model.free_lora(handle)
