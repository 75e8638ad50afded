"""What idle sequences held: kept in memory, then in files, under a budget each; the least recently used goes first.

A state is good only for the process that made it (same base, LoRAs, types of the cache), and it holds what people
wrote: files are readable by the owner alone, and the folder is emptied when a process begins and when it ends.
Whatever goes wrong with a file only costs reading a prompt again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loguru import logger

_SUFFIX = ".kv"


@dataclass(frozen=True, slots=True)
class Held:
    """A sequence outside of the cache: whose words it was evaluated with, its tokens, llama.cpp's state of them."""

    lora: Path | None
    tokens: list[int]
    state: bytes


@dataclass(frozen=True, slots=True)
class _Filed:
    lora: Path | None
    tokens: list[int]
    size: int


class Spill:
    """Sequences by name.

    Args:
        memory_bytes: states kept in memory; beyond it the one put first goes to a file.
        disk_bytes: states kept in files; beyond it the one filed first is forgotten. 0: no files.
        folder: for the files, of this process alone; None: no files. What an earlier process left there is deleted.
        label: begins the names of the files, where several models share the folder; without one all files there are
            this one's to delete, so it is made first and closed last.
    """

    def __init__(self, memory_bytes: int, disk_bytes: int = 0, folder: Path | None = None, label: str = "") -> None:
        self._memory_bytes, self._disk_bytes = memory_bytes, disk_bytes if folder else 0
        self._folder, self._label = folder, label
        self._kept: OrderedDict[str, Held] = OrderedDict()
        self._filed: OrderedDict[str, _Filed] = OrderedDict()
        self.kept_bytes, self.filed_bytes = 0, 0
        """What states take in memory, and in files."""
        self._failing = False
        self._empty()

    @property
    def enabled(self) -> bool:
        """Whether anything is kept at all."""
        return self._memory_bytes > 0 or self._disk_bytes > 0

    def put(self, name: str, held: Held) -> None:
        """Keep a sequence; of a name that is not kept yet."""
        if len(held.state) > self._memory_bytes:
            self._file(name, held)
            return
        self._kept[name] = held
        self.kept_bytes += len(held.state)
        while self.kept_bytes > self._memory_bytes:
            oldest, out = self._kept.popitem(last=False)
            self.kept_bytes -= len(out.state)
            self._file(oldest, out)

    def take(self, name: str) -> Held | None:
        """A sequence, no longer kept here; None when there is none, or its file cannot be read."""
        if name in self._kept:
            held = self._kept.pop(name)
            self.kept_bytes -= len(held.state)
            return held
        if name not in self._filed:
            return None
        filed = self._filed[name]
        try:
            state = self._path(name).read_bytes()
            if len(state) != filed.size:
                raise OSError(f"{len(state)} bytes instead of {filed.size}")
        except OSError as e:
            self._failed(e)
            return None
        finally:
            self._delete(name)
        return Held(filed.lora, filed.tokens, state)

    def forget(self, wanted: Callable[[str], bool]) -> None:
        """Drop what is kept of some sequences, chosen by name."""
        for name in [name for name in self._kept if wanted(name)]:
            self.kept_bytes -= len(self._kept.pop(name).state)
        for name in [name for name in self._filed if wanted(name)]:
            self._delete(name)

    def close(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._filed.clear()
        self.kept_bytes = self.filed_bytes = 0
        self._empty()

    # -- files ------------------------------------------------------------------------------------

    def _file(self, name: str, held: Held) -> None:
        size = len(held.state)
        if size > self._disk_bytes:
            return
        while self.filed_bytes + size > self._disk_bytes:
            self._delete(next(iter(self._filed)))
        path = self._path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Not synced: it need not outlive the process, and a disk that is slow is waited for by the system alone.
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
                f.write(held.state)
        except OSError as e:
            self._failed(e)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            return
        self._failing = False
        self._filed[name] = _Filed(held.lora, held.tokens, size)
        self.filed_bytes += size

    def _delete(self, name: str) -> None:
        self.filed_bytes -= self._filed.pop(name).size
        with contextlib.suppress(OSError):
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / (self._label + hashlib.sha256(name.encode()).hexdigest()[:32] + _SUFFIX)

    def _empty(self) -> None:
        if self._folder is not None:
            for path in self._folder.glob(f"{self._label}*{_SUFFIX}"):
                with contextlib.suppress(OSError):
                    path.unlink()

    def _failed(self, error: OSError) -> None:
        """Say it once until a file could be written again."""
        if not self._failing:
            self._failing = True
            logger.warning(
                "a scene could not be spilled to disk or read back, and is read again: {}", error.strerror or error
            )
