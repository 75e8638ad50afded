"""llama.cpp through its low-level API: a model, its vocabulary, LoRAs, a context of many sequences, samplers.

The only file of the daemon that imports llama_cpp. The high-level `Llama` re-reads a chat's history whenever another
chat spoke in between, copies a vocabulary-sized row to Python for every token and binds one LoRA for life.
One thread owns a model and its contexts; a vocabulary may be asked from any.
"""

from __future__ import annotations

import ctypes
import math
import re
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import llama_cpp as lc
import numpy as np
import numpy.typing as npt
from loguru import logger

from bot import config, processors
from bot.errors import EngineError
from bot.persona import Sampling
from bot.prompt import ChatFormat, broken_up, format_for

BASE_KEY = "qqtwin.base.sha256"
"""Our own metadata key in a LoRA GGUF: llama.cpp accepts any base of the same shape, we do not."""
BLANKS, BLANKS_MAX = ("\n", " ", "\t", "\u3000"), 32
"""What an answer does not begin with: fewer than so many of one of them, where they are one token."""
_SAID_BASE = ("general.base_model.0.repo_url", "general.base_model.0.name")
"""Where llama.cpp's own converter notes what a LoRA's model card says of its base: words, which quantizers change."""
_PENALTY_LAST_N, _DRY_LAST_N = 64, 512
"""Tokens that the repetition penalty and DRY look back on."""
_PIECES_REMEMBERED = 16_384
"""Texts whose tokens are kept: of 64 scenes with 200 bubbles each, a few megabytes."""
_ORDINARY = re.compile(
    "using full-size SWA cache|possible training context overflow"  # asked for: a cache of whole windows, many scenes
    "|control-looking token|is not marked as EOG|special_eo._id|special_eog_ids|unused tensor"  # the model's makers'
)
"""What llama.cpp warns of at loads that are as they should be, or as nobody here can change."""
_WARN, _ERROR = 3, 4
"""Levels of llama.cpp's log that are kept; above are only ends of lines, the dots of a load's progress."""


class _Log(threading.local):
    """What llama.cpp said last on this thread: a model loads beside others that decode."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=50)


_LOG = _Log()
_ready = False
_log_callback: Any = None  # llama.cpp keeps the pointer: it must not be collected


def _start_backend() -> None:
    """Once per process: initialise llama.cpp and keep its log instead of printing it (the only error text there is)."""
    global _ready, _log_callback
    if _ready:
        return

    def keep(level: int, text: bytes, _: ctypes.c_void_p) -> None:
        if level in (_WARN, _ERROR):
            _LOG.lines.append(text.decode("utf-8", "replace").strip())

    _log_callback = lc.llama_log_callback(keep)
    lc.llama_log_set(_log_callback, ctypes.c_void_p(0))
    lc.llama_backend_init()
    _ready = True


def _why() -> str:
    lines = [line for line in _LOG.lines if line][-3:]
    return "; ".join(lines) or "llama.cpp gave no reason"


def _warn(name: str) -> None:
    """Tell what llama.cpp warned of at a load that succeeded: that a wish of `[engine]` was not met, mostly."""
    for line in dict.fromkeys(_LOG.lines):
        if line and not _ORDINARY.search(line):
            logger.warning("llama.cpp warns of {}: {}", name, " ".join(line.split()))


def _has_amx() -> bool:
    """Whether the library was built for AMX, whose weight layout is then not asked for; the Makefile builds without.

    Its product of several recurrent sequences is that of the first alone (ggml-org/llama.cpp#19184; logits of mamba
    and lfm2 off by up to 5.6). And GCC 12.2 tells the optimizer of 8 of the 64 bytes that
    `_tile_loadconfig` reads (gcc.gnu.org/PR114098): the rest stays unwritten, and a prompt of a quantized model ends in
    SIGILL (ggml-org/llama.cpp#26954).
    """
    return b"AMX_INT8 = 1" in lc.llama_print_system_info()


@dataclass(frozen=True, slots=True)
class Build:
    """What this build of llama.cpp can use.

    Args:
        backends: what it was built for, by its libraries: `cpu`, `cuda`, `vulkan`, `metal`, …
        features: what it uses of the processor and the GPUs, in its own words, such as `AVX2`.
        gpu: whether it found a GPU to put layers on.
    """

    backends: tuple[str, ...]
    features: tuple[str, ...]
    gpu: bool


def build() -> Build:
    """What this build of llama.cpp can use."""
    _start_backend()
    files = (
        re.match(r"(?:lib)?ggml-(\w+)\.", path.name) for path in (Path(lc.__file__).parent / "lib").glob("*ggml-*")
    )
    backends = sorted({found[1] for found in files if found} - {"base"})
    # `CPU : AVX2 = 1 | … | CUDA : ARCHS = 890 | …`
    told = lc.llama_print_system_info().decode("utf-8", "replace").split("|")
    flags = (flag.rpartition(" : ")[2].strip().partition(" = ") for flag in told)
    features = [name if value in ("", "1") else f"{name}={value}" for name, _, value in flags if name and value != "0"]
    return Build(tuple(backends), tuple(features), bool(lc.llama_supports_gpu_offload()))


class Model:
    """A GGUF loaded for inference, with its vocabulary.

    Args:
        path: the GGUF.
        n_gpu_layers: layers on the GPU; -1 all.
        load_mode: how it is read, `LLAMA_LOAD_MODE_…`.
        split_mode: how it is put on several GPUs, `LLAMA_SPLIT_MODE_…`.
        main_gpu: the GPU it is put on where it is not split.
        tensor_split: each GPU's part, in any unit; empty: by their free memory.
        vocab_only: read the vocabulary and leave the weights: nothing can be evaluated.
        stop: asked at every tensor; once it is true, loading ends.

    Raises:
        EngineError: missing, truncated, or of a kind no chat format renders; no such GPUs; stopped.
    """

    def __init__(
        self, path: Path, n_gpu_layers: int = -1, *, load_mode: str = "auto", split_mode: str = "layer",
        main_gpu: int = 0, tensor_split: Sequence[float] = (), vocab_only: bool = False,
        stop: Callable[[], bool] | None = None,
    ) -> None:  # fmt: skip
        _start_backend()
        if not path.is_file():
            raise EngineError(f"model {str(path)!r} does not exist")
        params = lc.llama_model_default_params()
        params.n_gpu_layers = 999 if n_gpu_layers < 0 else n_gpu_layers
        params.load_mode = getattr(lc, f"LLAMA_LOAD_MODE_{load_mode.upper()}")
        params.split_mode, params.main_gpu = getattr(lc, f"LLAMA_SPLIT_MODE_{split_mode.upper()}"), main_gpu
        most = lc.llama_max_devices()
        if len(tensor_split) > most:
            raise EngineError(f"[engine] tensor_split names {len(tensor_split)} GPUs, this llama.cpp takes {most}")
        if tensor_split:
            params.tensor_split = (ctypes.c_float * most)(*tensor_split)
        params.vocab_only = vocab_only
        params.use_extra_bufts = not _has_amx()
        if stop is not None:  # params keeps the callback alive
            params.progress_callback = lc.llama_progress_callback(lambda _progress, _: not stop())
        _LOG.lines.clear()
        self._model = lc.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            if stop is not None and stop():
                raise EngineError(f"loading model {path.name!r} was stopped")
            raise EngineError(f"model {path.name!r} cannot be loaded ({_why()}); is the file complete?")
        _warn(path.name)
        self.path = path
        self._tokenizing = threading.Lock()
        """Held while the vocabulary is asked, so that it is not freed meanwhile."""
        # A prompt is made of the pieces of the one before, and a few new ones.
        self._remembered = lru_cache(_PIECES_REMEMBERED)(self._tokenize)
        self._unbiased: set[str] = set()
        self._vocab = lc.llama_model_get_vocab(self._model)
        self.n_vocab: int = lc.llama_vocab_n_tokens(self._vocab)
        bos = lc.llama_vocab_bos(self._vocab)
        self.bos: int | None = bos if bos >= 0 and lc.llama_vocab_get_add_bos(self._vocab) else None
        self.n_ctx_train: int = lc.llama_model_n_ctx_train(self._model)
        """Tokens of the longest context it was trained with."""
        self.n_params: int = lc.llama_model_n_params(self._model)
        """Its weights, also where they are not read."""
        self.architecture = self.metadata("general.architecture")
        found = format_for(self.architecture, self.is_control)
        if found is None:
            self.close()
            raise EngineError(
                f"model {path.name!r} ({self.architecture}) has the markers of no known chat format; take a "
                "base that speaks ChatML, Gemma's or Llama 3's, such as Qwen 3, Gemma 3 and Llama 3"
            )
        self.format: ChatFormat = found
        self.control_ids = [i for i in range(self.n_vocab) if lc.llama_vocab_is_control(self._vocab, i)]
        self.end_ids = [i for i in range(self.n_vocab) if lc.llama_vocab_is_eog(self._vocab, i)]
        end = self.tokens(self.format.end, control=True)[0]
        self.end_id = end
        if end not in self.end_ids:
            self.end_ids.append(end)
        self.ends = frozenset(self.end_ids)
        banned = [i for i in self.control_ids if i not in self.ends]
        self.banned = (lc.llama_logit_bias * len(banned))(*(lc.llama_logit_bias(i, -math.inf) for i in banned))
        """Control tokens that are never drawn, as llama.cpp takes them; made once, Gemma 3 has 6,250."""
        runs = (self.tokens(blank * n, control=False) for blank in BLANKS for n in range(1, BLANKS_MAX))
        self.no_first_word = [*self.end_ids, *{ids[0] for ids in runs if len(ids) == 1}]
        """What an answer never begins with: an end of turn, or nothing but blanks."""

    @classmethod
    def of(cls, path: Path, settings: config.Engine, stop: Callable[[], bool] | None = None) -> Model:
        """A GGUF, put where `[engine]` says, unless `stop` becomes true meanwhile; raises EngineError."""
        _start_backend()
        if settings.n_gpu_layers > 0 and not lc.llama_supports_gpu_offload():
            logger.warning(
                "[engine] n_gpu_layers = {}, and this llama.cpp finds no GPU: the processor does it all; `twin doctor` "
                "tells what it takes", settings.n_gpu_layers,
            )  # fmt: skip
        return cls(
            path, settings.n_gpu_layers, load_mode=settings.load_mode, split_mode=settings.split_mode,
            main_gpu=settings.main_gpu, tensor_split=settings.tensor_split, stop=stop,
        )  # fmt: skip

    def close(self) -> None:
        """Free the model; contexts and LoRAs of it must be freed before."""
        with self._tokenizing:
            model, self._model = self._model, None
        if model:
            lc.llama_model_free(model)
            self._remembered.cache_clear()

    @property
    def handle(self) -> Any:
        """llama.cpp's pointer."""
        return self._model

    @property
    def vocab(self) -> Any:
        """llama.cpp's vocabulary pointer."""
        return self._vocab

    def metadata(self, key: str) -> str:
        """A metadata value as text, empty when absent."""
        buffer = ctypes.create_string_buffer(65536)
        n = lc.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if n >= 0 else ""

    def is_control(self, text: str) -> bool:
        """Whether a text is exactly one control token."""
        ids = self.tokens(text, control=True)
        return len(ids) == 1 and bool(lc.llama_vocab_is_control(self._vocab, ids[0]))

    def tokens(self, text: str, control: bool) -> list[int]:
        """Ids of a text; special tokens are parsed only if `control`; no BOS."""
        return list(self._remembered(text, control))

    def _tokenize(self, text: str, control: bool) -> tuple[int, ...]:
        found: list[int] = []
        for part in [text] if control else broken_up(text):
            raw = part.encode("utf-8")
            room = len(raw) + 8
            buffer = (lc.llama_token * room)()
            with self._tokenizing:
                if not self._model:
                    raise EngineError(f"the model {self.path.name!r} is closed")
                n = lc.llama_tokenize(self._vocab, raw, len(raw), buffer, room, False, control)
            if n < 0:
                raise EngineError(f"llama.cpp cannot tokenize a text of {len(raw)} bytes")
            found += buffer[:n]
        return tuple(found)

    def biases(self, by_word: Mapping[str, float]) -> dict[int, float]:
        """`Sampling.logit_bias` by token: of the first one that is not blank, and a whole character at least."""
        found: dict[int, float] = {}
        for word, bias in by_word.items():
            first = next((t for t in self.tokens(word, control=False) if self.piece(t).strip()), None)
            if first is None or not self.piece(first).decode("utf-8", "ignore"):
                if word not in self._unbiased:
                    self._unbiased.add(word)
                    logger.warning(
                        "a word in [sampling] logit_bias has no token of its own in this base: left as it is"
                    )
                continue
            found[first] = found.get(first, 0.0) + bias
        return found

    def piece(self, token: int, *, control: bool = False) -> bytes:
        """UTF-8 bytes of a token (perhaps part of a character); control tokens give nothing, or their names."""
        size = 256
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = lc.llama_token_to_piece(self._vocab, token, buffer, size, 0, control)
            if n >= 0:
                return buffer.raw[:n]
            size = -n

    def load_lora(self, path: Path, base_sha256: str | None = None) -> Any:
        """A LoRA for this model; free it with `free_lora`.

        Args:
            path: LoRA GGUF.
            base_sha256: this base's hash; a LoRA that names another is refused, one that names none is
                warned of.

        Raises:
            EngineError: with llama.cpp's reason, or both hashes.
        """
        _LOG.lines.clear()
        lora = lc.llama_adapter_lora_init(self._model, str(path).encode())
        if not lora:
            raise EngineError(f"LoRA {str(path)!r} does not load on {self.path.name!r} ({_why()})")
        named = _lora_metadata(lora, BASE_KEY)
        if base_sha256 is not None and named and named != base_sha256:
            lc.llama_adapter_lora_free(lora)
            raise EngineError(
                f"LoRA {str(path)!r} was trained on the base {named[:12]}…, not on {self.path.name!r} "
                f"({base_sha256[:12]}…); retrain it or set that base"
            )
        if base_sha256 and not named:
            says = next(filter(None, (_lora_metadata(lora, key) for key in _SAID_BASE)), "nothing")
            logger.warning(
                "LoRA {} does not name the base it was trained on by its hash, so that cannot be checked: on another "
                "base its answers are wrong, and llama.cpp does not say so. Of its base it says {!r}, and {} of itself "
                "{!r}; `twin export lora` writes the hash", path.name, says, self.path.name,
                self.metadata("general.name") or "nothing",
            )  # fmt: skip
        return lora

    def free_lora(self, lora: Any) -> None:
        """Free a LoRA no context uses (freed while set, the next decode gives NaN)."""
        lc.llama_adapter_lora_free(lora)


def _lora_metadata(lora: Any, key: str) -> str:
    """A metadata value of a LoRA as text, empty when absent."""
    buffer = ctypes.create_string_buffer(1024)
    n = lc.llama_adapter_meta_val_str(lora, key.encode(), buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace") if n >= 0 else ""


@dataclass(frozen=True, slots=True)
class Mark:
    """The recurrent state of a sequence when it held `n` tokens."""

    n: int
    state: bytes


class Context:
    """A KV cache of many sequences over one model.

    Args:
        model: the model.
        n_tokens: cells of all sequences together.
        n_seq_max: sequences at most.
        n_batch: tokens of one decode call.
        n_threads: CPU threads; None: the cores, half of them where there are more than four (hyper-threads).
        n_threads_batch: those of prompts and of several chats at once; None: as many.
        n_outputs: rows of logits kept from one call; at 262,144 words each is 1 MB.
        flash_attn: auto, on or off.
        type_k: type of the cached keys, a ggml type's name.
        type_v: of the cached values.
        kv_unified: any sequence may use all cells; else each has its part of them (bench/engine.py compares).

    Raises:
        EngineError: llama.cpp gave no context (too little memory).
    """

    def __init__(
        self, model: Model, n_tokens: int, n_seq_max: int, n_batch: int, n_threads: int | None, n_outputs: int = 1,
        *, flash_attn: str = "auto", type_k: str = "f16", type_v: str = "f16", n_threads_batch: int | None = None,
        kv_unified: bool = True,
    ) -> None:  # fmt: skip
        self.model = model
        self.n_tokens, self.n_batch, self._n_seq_max = n_tokens, n_batch, n_seq_max
        threads = self.n_threads = n_threads or processors.evaluating()
        params = lc.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_tokens, n_batch, n_batch
        params.n_seq_max, params.n_threads, params.n_threads_batch = n_seq_max, threads, n_threads_batch or threads
        params.kv_unified = kv_unified
        # The full-size cache of sliding-window layers lets any prefix be kept; the small one forgets what slid out.
        params.swa_full = True
        params.n_outputs_max = max(n_outputs, n_seq_max)  # less aborts the process
        params.flash_attn_type = {"auto": -1, "off": 0, "on": 1}[flash_attn]
        params.type_k, params.type_v = (getattr(lc, f"GGML_TYPE_{name.upper()}") for name in (type_k, type_v))
        _LOG.lines.clear()
        self._context = lc.llama_init_from_model(model.handle, params)
        if not self._context:
            raise EngineError(
                f"no context of {n_tokens} tokens ({type_k}, {type_v}) for {model.path.name!r} ({_why()}); "
                "lower kv_tokens"
            )
        _warn(model.path.name)
        self._memory = lc.llama_get_memory(self._context)
        self._batch = lc.llama_batch_init(n_batch, 0, 1)
        self.lora: Any = None
        """The LoRA that is set."""
        self.recurrent = bool(lc.llama_model_is_recurrent(model.handle) or lc.llama_model_is_hybrid(model.handle))
        """Whether (some) layers hold a state instead of cells: it cannot be cut nor shared, only marked."""
        self._n_swa = int(lc.llama_model_n_swa(model.handle))
        self._stop: Callable[[], bool] = _never
        self._abort = lc.ggml_abort_callback(lambda _: self._stop())
        self._no_abort = lc.ggml_abort_callback()

    def close(self) -> None:
        """Free the context."""
        if self._context:
            lc.llama_batch_free(self._batch)
            lc.llama_free(self._context)
            self._context = None

    def cache_bytes(self) -> int:
        """Memory of the cache: a cell is what a second token adds to the state of a sequence, whatever the layout.

        For a context that holds nothing yet.

        Raises:
            EngineError: not even two tokens can be evaluated.
        """
        sizes: list[int] = []
        for position in range(2):
            self.decode([(0, 0, position, False)])
            sizes.append(lc.llama_state_seq_get_size(self._context, 0))
        self.keep(0, 0)
        states = sizes[0] * self._n_seq_max if self.recurrent else 0
        return (sizes[1] - sizes[0]) * self.n_tokens + states

    def use(self, lora: Any) -> None:
        """Set the LoRA of the next decode; None is the bare base."""
        if lora is self.lora:
            return
        if lora is None:
            lc.llama_set_adapters_lora(self._context, None, 0, None)
        else:
            lc.llama_set_adapters_lora(
                self._context, (lc.llama_adapter_lora_p_ctypes * 1)(lora), 1, (ctypes.c_float * 1)(1.0)
            )
        self.lora = lora

    def reaches(self, seq: int, n: int) -> bool:
        """Whether all that a token at position `n` looks back to is in the cache.

        Of layers with a sliding window, what slid out of it is not: llama.cpp leaves it out of a saved state, and gives
        its cells to others before it uses free ones further on, the full-size cache included. Less than a 64th of the
        window may lack at its far end, which changes logits about as much as the shape of a batch does, at the worst
        place measured up to three times that (docs/decisions.md): else an answer, which departs from its look by one
        token, could have to read everything again.
        """
        window = self._n_swa - self._n_swa // 64
        return n == 0 or int(lc.llama_memory_seq_pos_min(self._memory, seq)) <= max(0, n + 1 - window)

    def rewinds(self, n: int) -> bool:
        """Whether a sequence of `n` tokens can still be cut anywhere after it was saved and restored."""
        return not self.recurrent and (not self._n_swa or n < self._n_swa)

    def share(self, source: int, target: int, n: int) -> None:
        """Let an empty sequence hold the first `n` tokens of another one that `reaches` there, in the same cells."""
        lc.llama_memory_seq_cp(self._memory, source, target, 0, n)

    def join(self, source: int, target: int, n: int) -> bool:
        """Let a sequence hold its first `n` tokens in the cells of another one that holds them too.

        Layers with a sliding window keep cells of their own unless the other's reach as far back and up to theirs: what
        slid out must not lack, nor `reaches` take it for there.

        Returns:
            False when what it held is lost, for want of memory.
        """
        theirs, own = (int(lc.llama_memory_seq_pos_min(self._memory, seq)) for seq in (source, target))
        apart = bool(self._n_swa) and not theirs <= own <= n
        window = self.save(target, mark=True) if apart else b""
        lc.llama_memory_seq_rm(self._memory, target, 0, n)
        lc.llama_memory_seq_cp(self._memory, source, target, 0, n)
        return not apart or self._put_back(target, window)

    def save(self, seq: int, *, mark: bool = False) -> bytes:
        """What a sequence holds, as `restore` takes it; as a mark, its recurrent state or sliding window alone.

        Empty where there is no memory for it.
        """
        flags = lc.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY if mark else lc.LLAMA_STATE_SEQ_FLAGS_NONE
        size = lc.llama_state_seq_get_size_ext(self._context, seq, flags)
        try:
            buffer = (ctypes.c_uint8 * size)()
            written = lc.llama_state_seq_get_data_ext(self._context, buffer, size, seq, flags)
            return bytes(memoryview(buffer)[:written])
        except MemoryError:
            return b""

    def restore(self, seq: int, state: bytes, *, mark: bool = False) -> bool:
        """Put back into an empty sequence what `save` gave; False when there are too few free cells.

        Raises:
            EngineError: it cannot be read.
        """
        flags = lc.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY if mark else lc.LLAMA_STATE_SEQ_FLAGS_NONE
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        _LOG.lines.clear()
        if lc.llama_state_seq_set_data_ext(self._context, buffer, len(state), seq, flags):
            return True
        if not any("available cells" in line for line in _LOG.lines):
            raise EngineError(f"a saved state of {len(state)} bytes cannot be put back ({_why()})")
        return False

    def _put_back(self, seq: int, mark: bytes) -> bool:
        """Restore a mark; False where that cannot be: there is no memory, or was none when it was saved."""
        try:
            return self.restore(seq, mark, mark=True)
        except (EngineError, MemoryError):
            return False

    def keep(self, seq: int, n: int, mark: Mark | None = None) -> int:
        """Forget what a sequence holds from position `n` on, or from a mark before it where it cannot be cut there.

        Returns:
            Tokens it then holds: `n`, those of the mark, or none.
        """
        if self.reaches(seq, n) and lc.llama_memory_seq_rm(self._memory, seq, n, -1):
            return n
        if mark is not None and mark.n <= n and self._put_back(seq, mark.state):
            if lc.llama_memory_seq_rm(self._memory, seq, mark.n, -1):
                return mark.n
        lc.llama_memory_seq_rm(self._memory, seq, -1, -1)
        return 0

    def decode(
        self,
        tokens: Sequence[tuple[int, int, int, bool]],
        stop: Callable[[], bool] | None = None,
    ) -> bool:
        """Evaluate tokens; False if `stop` became true in the middle: `keep` what the sequences held before.

        llama.cpp takes back the part of the batch (ubatch) it was in, not those before, and no recurrent state.

        Args:
            tokens: (token, sequence, position, whether its logits are wanted), at most `n_batch`.
            stop: asked at every operation, 900 times a decode, from a thread of llama.cpp's; must only read a flag. It
                costs 2 % of a single token's decode: leave it out where a step is short.

        Raises:
            EngineError: more than `n_batch` tokens, or the decode failed; CacheFull: there are too few free cells.
        """
        if len(tokens) > self.n_batch:
            raise EngineError(f"{len(tokens)} tokens in one decode, where [engine] n_batch = {self.n_batch}")
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, (token, seq, position, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = seq, wanted
        if stop is not None:
            self._stop = stop
            lc.llama_set_abort_callback(self._context, self._abort, ctypes.c_void_p(0))
        try:
            rc = lc.llama_decode(self._context, batch)
        finally:
            if stop is not None:
                lc.llama_set_abort_callback(self._context, self._no_abort, ctypes.c_void_p(0))
                self._stop = _never
        if rc == 2:
            return False
        if rc == 1:
            raise CacheFull(
                f"the KV cache of {self.n_tokens} tokens is full; raise [engine] kv_tokens, or lower n_parallel"
            )
        if rc != 0:
            raise EngineError(f"llama_decode failed with {rc} ({_why()}); try again, or start the twin anew")
        return True

    def logits(self, rows: int = 1) -> npt.NDArray[np.float32]:
        """The wanted rows of the last decode, (rows, n_vocab), a view that the next decode overwrites."""
        pointer = lc.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=(rows, self.model.n_vocab))

    def row(self, index: int) -> npt.NDArray[np.float32]:
        """Logits behind the token at `index` of the last decode, (n_vocab,), a view that the next decode overwrites.

        Raises:
            EngineError: they are no numbers.
        """
        pointer = lc.llama_get_logits_ith(self._context, index)
        row = np.ctypeslib.as_array(pointer, shape=(self.model.n_vocab,))
        if not math.isfinite(row.max()):
            raise EngineError(
                f"{self.model.path.name!r} gives no numbers: the weights of its LoRA, or its own, are damaged or too "
                'large; `twin persona rollback`, or try [engine] flash_attn = "off" or another base'
            )
        return row

    def sample(self, sampler: Sampler, index: int = -1) -> int:
        """Draw the next token from the logits behind the token at `index` (-1: the last wanted), and accept it."""
        return int(lc.llama_sampler_sample(sampler.handle, self._context, index))


class CacheFull(EngineError):
    """No free cells; drop a sequence and try again."""


class Sampler:
    """A native sampler chain, in effect: bans, biases, penalties, DRY, top_k, top_p, min_p, temperature, seed.

    Args:
        model: whose control tokens (but for ends of turn) are never drawn.
        sampling: the settings.
        seed: of the draw.
    """

    def __init__(self, model: Model, sampling: Sampling, seed: int) -> None:
        self.handle = lc.llama_sampler_chain_init(lc.llama_sampler_chain_default_params())
        links = [lc.llama_sampler_init_logit_bias(model.n_vocab, len(model.banned), model.banned)]
        if biases := model.biases(sampling.logit_bias):
            rows = (lc.llama_logit_bias * len(biases))(*(lc.llama_logit_bias(*pair) for pair in biases.items()))
            links.append(lc.llama_sampler_init_logit_bias(model.n_vocab, len(biases), rows))
        kept = 1 if sampling.temperature == 0 else sampling.top_k
        if kept:
            # Penalties make words less likely and never more: whatever is among the first `kept` behind them is among
            # so many in front. To look through all 262,144 words instead took 1.0 ms a token (DRY: 1.4) of 24.
            penalized = _PENALTY_LAST_N + (_DRY_LAST_N if sampling.dry_multiplier else 0)
            links.append(lc.llama_sampler_init_top_k(kept + penalized))
        if sampling.repeat_penalty != 1:
            links.append(
                lc.llama_sampler_init_penalties(model.n_vocab, _PENALTY_LAST_N, sampling.repeat_penalty, 0.0, 0.0)
            )
        if sampling.dry_multiplier:
            # The whole answer (-1, once the whole context, now looks at nothing), and no breakers: what is said again
            # in the next bubble is said again.
            links.append(lc.llama_sampler_init_dry(model.vocab, sampling.dry_multiplier, 1.75, 2, _DRY_LAST_N, None, 0))
        if sampling.temperature == 0:
            links.append(lc.llama_sampler_init_greedy())
        else:
            if sampling.top_k:
                links.append(lc.llama_sampler_init_top_k(sampling.top_k))
            links.append(lc.llama_sampler_init_top_p(sampling.top_p, 1))
            links.append(lc.llama_sampler_init_min_p(sampling.min_p, 1))
            links.append(lc.llama_sampler_init_temp(sampling.temperature))
            links.append(lc.llama_sampler_init_dist(seed & 0xFFFFFFFF))
        for link in links:
            lc.llama_sampler_chain_add(self.handle, link)

    def close(self) -> None:
        """Free the chain."""
        lc.llama_sampler_free(self.handle)


def log_probs(row: npt.NDArray[np.float32], ids: Sequence[int]) -> npt.NDArray[np.float64]:
    """Natural-log probabilities of some words of one row of logits, (len(ids),)."""
    top = float(row.max())
    total = top + float(np.log(np.exp(row - top).sum(dtype=np.float64)))
    return row[list(ids)].astype(np.float64) - total


def _never() -> bool:
    return False
