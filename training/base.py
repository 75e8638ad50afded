"""A base, GGUF or Hugging Face folder → a checkpoint that trains. A GGUF is dequantized once and kept.

Reading a GGUF takes transformers a minute each time, nearly all of it for the vocabulary; a saved checkpoint loads in
seconds. bf16: what is trained on is within rounding of what llama.cpp serves, at half of float32's memory.
"""

import hashlib
import json
import os
import shutil
import struct
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from loguru import logger
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from bot import staging
from bot.checksum import sha256
from bot.config import Training
from bot.errors import EngineError, TrainingError
from bot.llama import Model
from training import hub
from training.precision import Precision

_ORIGIN_FILE = "qqtwin_base.json"
_BLOCKS, _BLOCK_BYTES = 256, 1 << 16
_BESIDES_BYTES = 128 * 2**20
"""What a checkpoint takes beside its weights (Gemma's tokenizer.json: 33 MB), and what is left free."""
_READING_ERRORS = (
    ValueError, KeyError, IndexError, TypeError, NotImplementedError, OSError, RuntimeError, ImportError,
    AssertionError, EOFError, struct.error, SafetensorError,
)  # fmt: skip
"""What transformers raises on a file it cannot read."""


def checkpoint(base: Path, models: Path, tell: Callable[[str], None] = logger.info) -> Path:
    """The folder of a Hugging Face checkpoint with the base's weights and tokenizer.

    Args:
        base: a checkpoint folder, given back as it is, or a GGUF.
        models: where dequantized checkpoints are kept, as `<stem>-<first 12 digits of the GGUF's sha256>/`.
        tell: told what takes a minute, where it does.

    Raises:
        TrainingError: it does not exist, transformers cannot read it, or there is no room for it.
    """
    if base.is_dir():
        if not (base / "config.json").is_file():
            raise TrainingError(f"base {base.name!r} is a folder without config.json; give a checkpoint or a GGUF file")
        return base
    if not base.is_file():
        raise TrainingError(f"base {str(base)!r} does not exist; set [engine] base in bot.toml")
    digest = sha256(base)
    final = models / f"{base.stem}-{digest[:12]}"
    staging.sweep(models, final.name)
    if (final / _ORIGIN_FILE).is_file():
        return final
    _require_room(base, models)
    tell(f"dequantizing base {base.name} into {final.name}; a minute, and only once")
    model, tokenizer = _dequantized(base)
    try:
        models.mkdir(parents=True, exist_ok=True)
        with staging.beside(final) as beside:
            model.save_pretrained(beside)
            tokenizer.save_pretrained(beside)
            (beside / _ORIGIN_FILE).write_text(
                json.dumps({"file": base.name, "sha256": digest, "transformers": version("transformers")}), "utf-8"
            )
            if not (final / _ORIGIN_FILE).is_file():  # nor has another process been faster
                staging.put(beside, final)
    except Exception as e:  # tokenizers raises nothing narrower
        raise TrainingError(
            f"base {base.name!r} cannot be unpacked into {str(models)!r} ({_short(e)}); is there room?"
        ) from e
    return final


def of(settings: Training, gguf: Path, models: Path, tell: Callable[[str], None] = logger.info) -> Path:
    """The checkpoint that is trained: the GGUF that is served, dequantized, or what [training] base names.

    As `checkpoint` else.

    Raises:
        TrainingError: it is not there, or cannot be read.
    """
    if settings.base is None:
        return checkpoint(gguf, models, tell)
    return fetched(settings.base, settings.hub, models)


def fetched(model: str, source: hub.Hub = "huggingface", models: Path | None = None) -> Path:
    """The folder of a checkpoint: a folder as it is, an id from the hub or what was fetched from it before.

    Raises:
        TrainingError: there is neither.
    """
    if Path(model).is_dir():
        return checkpoint(Path(model), Path(model))
    return hub.fetch(model, source, models)


def fingerprint(folder: Path) -> str:
    """Tells a checkpoint's weights from all others of its name and shape: sha256 of samples of them.

    Of each file 256 blocks are read, evenly from first to last: other training changes them all.
    """
    found = hashlib.sha256()
    for file in sorted((*folder.glob("*.safetensors"), *folder.glob("*.bin"))):
        size = file.stat().st_size
        found.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as f:
            for place in range(0, size, max(_BLOCK_BYTES, size // _BLOCKS)):
                f.seek(place)
                found.update(f.read(_BLOCK_BYTES))
    return found.hexdigest()


def _require_room(base: Path, models: Path) -> None:
    """Refuse to begin where the checkpoint, two bytes a weight, will not fit."""
    try:
        model = Model(base, 0, vocab_only=True)
    except EngineError:
        return  # reading it says what is wrong
    needed = 2 * model.n_params + _BESIDES_BYTES
    model.close()
    free = shutil.disk_usage(next(p for p in (models, *models.parents) if p.exists())).free
    if free < needed:
        raise TrainingError(
            f"base {base.name!r} is unpacked into {str(models)!r}: that takes {needed / 1e6:,.0f} MB, and "
            f"{free / 1e6:,.0f} MB are free; make room, or give [paths] data another place"
        )


def _dequantized(base: Path) -> tuple[Any, Any]:
    """Model and tokenizer of a GGUF."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # Newer transformers keep GGUF weights packed where a kernel is at hand; those cannot be trained or saved plainly.
    config = getattr(transformers, "GgufConfig", None)
    options: dict[str, Any] = {"dtype": torch.bfloat16}
    if config is not None:
        options["quantization_config"] = config(dequantize=True)
    try:
        model = AutoModelForCausalLM.from_pretrained(base.parent, gguf_file=base.name, **options)
        tokenizer = AutoTokenizer.from_pretrained(base.parent, gguf_file=base.name)
    except _READING_ERRORS as e:
        raise TrainingError(
            f"base {base.name!r} cannot be read by transformers {version('transformers')} ({_short(e)}); is the file "
            "complete? Else give the Hugging Face checkpoint it was made from as a folder"
        ) from e
    _forget_quantization(model)
    return model, tokenizer


def _forget_quantization(model: Any) -> None:
    """Dequantized weights are plain, but transformers refuses to save what it believes to be quantized."""
    model.is_quantized = False
    for owner, name in (
        (model, "hf_quantizer"),
        (model, "quantization_method"),
        (model.config, "quantization_config"),
    ):
        if hasattr(owner, name):
            delattr(owner, name)


def load(folder: Path, precision: Precision, *, attn_implementation: str = "sdpa", trust: bool = False) -> Any:
    """The model of a checkpoint, frozen, on the GPU of this process where there is one.

    Args:
        folder: from `checkpoint`.
        precision: how its linear layers are held, and what is computed in.
        attn_implementation: transformers' name of the attention kernel.
        trust: run Python that the checkpoint brings along.

    Raises:
        TrainingError: the folder is not a checkpoint of a causal language model, is damaged, or brings Python along
            that it needs.
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    place = int(os.environ.get("LOCAL_RANK", "0")) if torch.cuda.is_available() else "cpu"
    options: dict[str, Any] = {
        "dtype": precision.dtype, "device_map": {"": place}, "attn_implementation": attn_implementation,
        "trust_remote_code": trust,
    }  # fmt: skip
    if precision.quantization is not None:
        options["quantization_config"] = precision.quantization
        # Without the optional `kernels` package, which fetches from a hub, it dequantizes and multiplies: fine.
        warnings.filterwarnings("ignore", message=".*gemm_4bit.*")
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft asks by the old name
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **options)
    except _READING_ERRORS as e:
        if needs_trust(e):
            raise TrainingError(untrusted(folder)) from e
        raise TrainingError(f"checkpoint {folder.name!r} cannot be loaded ({_short(e)}); fetch it anew") from e
    # Not peft's prepare_model_for_kbit_training: it casts the embedding to float32, 335 MB more for Gemma 3 270M.
    model.requires_grad_(False)
    return model


def needs_trust(error: Exception) -> bool:
    """Whether transformers refused to run Python that a checkpoint brings along."""
    return isinstance(error, ValueError) and "trust_remote_code" in str(error)


def untrusted(folder: Path) -> str:
    """That it was refused, told."""
    return (
        f"checkpoint {folder.name!r} needs Python that it brings along, and that is not run unasked; set [training] "
        "trust_remote_code = true if you trust its authors with this machine, or choose another base"
    )


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
