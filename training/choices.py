"""Settings left open → values, from the data and the device, each with its reason.

Chosen once a run and kept with it, so that a run that goes on has the values it began with.
"""

import importlib.util
import math
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError

from bot.config import Training
from training.device import Device
from training.memory import Shape, pass_tokens
from training.precision import Precision

_GPU_FOR_LONG_BYTES = 15_000_000_000
"""What a card sold with 16 GB has."""
_LONG, _SHORT = 2048, 512
_BATCH_MAX = 16
"""Windows in one optimizer step at most, 4 × 4 where memory allows."""
_STEPS_MIN = 60
"""Optimizer steps a run should have at least, before windows are joined into larger ones."""
_ROOM = {"cuda": 0.9, "cpu": 0.5}
"""Part of the free memory activations may take; on a CPU others live there, too."""


@dataclass(frozen=True, slots=True)
class Data:
    """What a run learns from.

    Args:
        answers: answers of the person that are trained.
        rows: windows they stand in.
        longest: tokens of the longest one.
        held_out: whether there is anything to stop early by.
    """

    answers: int
    rows: int
    longest: int
    held_out: bool


@dataclass(frozen=True, slots=True)
class Known:
    """A LoRA that is gone on with.

    Args:
        r: its rank.
        lora_alpha: its strength times r.
        lora_dropout: on its input.
        target_modules: last parts of the names it lies on, where those are others than the settings mean; None: the
            same.
    """

    r: int
    lora_alpha: int
    lora_dropout: float
    target_modules: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """A run's settings, none left open, and why.

    Args:
        settings: complete; `max_steps`, `max_samples`, `threads` and the like may be None: no limit.
        reasons: a line for each that was chosen, `r = 16: 120 answers`.
    """

    settings: Training
    reasons: tuple[str, ...]

    def as_state(self) -> dict[str, Any]:
        """For a run folder's JSON."""
        return {"settings": self.settings.model_dump(mode="json"), "reasons": list(self.reasons)}

    @classmethod
    def from_state(cls, state: Any) -> "Chosen | None":
        """What `as_state` gave; None where it cannot be read."""
        try:
            return cls(Training.model_validate(state["settings"]), tuple(map(str, state["reasons"])))
        except (KeyError, TypeError, ValidationError):
            return None


def window(settings: Training, device: Device) -> int:
    """Tokens of a window: long where a GPU has room for it, since a longer one shows more of the talk."""
    if settings.model_max_length is not None:
        return settings.model_max_length
    return _LONG if device.kind == "cuda" and device.memory_bytes >= _GPU_FOR_LONG_BYTES else _SHORT


def choose(
    settings: Training, data: Data, shape: Shape, device: Device, how: Precision, free_bytes: int, *,
    going_on: Known | None = None, processes: int = 1, at_once: int | None = None,
) -> Chosen:  # fmt: skip
    """Fill in what is open.

    Args:
        settings: bot.toml's.
        data: what is learned.
        shape: of the base, already loaded.
        device: where.
        how: the base is held.
        free_bytes: of the device, with the base in it.
        going_on: the LoRA that is gone on with; None: a fresh one.
        processes: that train together.
        at_once: tokens that one pass reads at most, if more than one row; None: a whole batch.
    """
    found = _Filling(settings)
    answers = f"{data.answers} answers"
    if settings.precision == "auto":
        found.put("precision", how.weights, "the GPU's memory" if device.kind == "cuda" else "no GPU")
    if settings.compute_dtype == "auto":
        found.put("compute_dtype", how.dtype_name, device.name)
    if going_on is not None:
        found.fill("r", going_on.r, "of the LoRA that is gone on with")
        found.fill("lora_alpha", going_on.lora_alpha, "of the LoRA that is gone on with")
        found.fill("lora_dropout", going_on.lora_dropout, "of the LoRA that is gone on with")
        if going_on.target_modules is not None:
            words = "of the LoRA that is gone on with, on which it stays; others need start = 'fresh'"
            found.put("target_modules", going_on.target_modules, words)
    found.fill("r", 8 if data.answers < 50 else 16 if data.answers < 5000 else 32, answers)
    found.fill("lora_alpha", 2 * found.value("r"), "2r")
    parts = settings.moe_scope != "off"
    found.fill("lora_dropout", 0.0 if parts else 0.05, "PEFT drops nothing out of fused experts" if parts else "usual")
    epochs = _epochs(data.answers) if going_on is None else 1.0
    if settings.max_steps is None:
        found.fill("num_train_epochs", epochs, answers if going_on is None else "the LoRA knows the rest")
    elif settings.num_train_epochs is None:  # not told, since it decides nothing
        found.values["num_train_epochs"] = epochs
    found.fill(
        "learning_rate", 2e-4 if going_on is None else 1e-4,
        "usual for LoRA" if going_on is None else "half, so that what is known stays",
    )  # fmt: skip
    found.fill("model_max_length", window(settings, device), str(device))
    _fit(found, data, shape, device, free_bytes, at_once)
    _steps(found, data, processes)
    if settings.optim == "auto":
        paged = device.kind == "cuda"
        found.put("optim", "paged_adamw_8bit" if paged else "adamw_torch_fused", str(device.kind))
    if settings.attn_implementation == "auto":
        flash = flash_attention(device, how.dtype)
        found.put("attn_implementation", "flash_attention_2" if flash else "sdpa", "installed" if flash else "built in")
    if settings.packing == "auto":
        flash = found.value("attn_implementation") == "flash_attention_2"
        found.put(
            "packing", "on" if flash else "off", "flash attention" if flash else "padding costs less than attention"
        )
    if not data.held_out:
        found.reasons.append("no early stop: nothing is held out yet")
    return Chosen(settings.model_copy(update=found.values), tuple(found.reasons))


class _Filling:
    """Values found so far, with their reasons."""

    def __init__(self, settings: Training) -> None:
        self.settings = settings
        self.values: dict[str, Any] = {}
        self.reasons: list[str] = []

    def fill(self, name: str, value: Any, reason: str) -> None:
        """Choose what is unset."""
        if self.value(name) is None:
            self.put(name, value, reason)

    def put(self, name: str, value: Any, reason: str) -> None:
        """Choose, whatever stands there."""
        self.values[name] = value
        self.reasons.append(f"{name} = {_shown(value)}: {reason}")

    def value(self, name: str) -> Any:
        """As it stands now."""
        return self.values.get(name, getattr(self.settings, name))


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _epochs(answers: int) -> float:
    return 5.0 if answers < 25 else 3.0 if answers < 100 else 2.0 if answers < 5000 else 1.0


def _fit(
    found: _Filling, data: Data, shape: Shape, device: Device, free_bytes: int, at_once: int | None
) -> None:  # fmt: skip
    """Batch and recomputation that fit: no recomputation if a batch fits without, else a smaller batch with it."""
    room = free_bytes * _ROOM[device.kind]
    settings = found.settings
    batch = settings.per_device_train_batch_size or 4
    recomputed = bool(settings.gradient_checkpointing)

    def needed() -> int:
        return shape.activation_bytes(pass_tokens(batch, data.longest, at_once), recomputed=recomputed)

    if settings.gradient_checkpointing is None:
        recomputed = needed() > room
    while settings.per_device_train_batch_size is None and batch > 1 and needed() > room:
        batch //= 2
    reason = f"{needed() / 1e9:.1f} GB of {free_bytes / 1e9:.1f} GB free"
    found.fill("per_device_train_batch_size", batch, reason)
    found.fill("gradient_checkpointing", recomputed, reason)


def _steps(found: _Filling, data: Data, processes: int) -> None:
    batch, epochs = found.value("per_device_train_batch_size"), found.value("num_train_epochs")
    batches = math.ceil(data.rows / (batch * processes)) * epochs
    joined = next((n for n in (16, 8, 4, 2) if n * batch <= _BATCH_MAX and batches / n >= _STEPS_MIN), 1)
    steps = found.settings.max_steps or batches / joined
    found.fill("gradient_accumulation_steps", joined, f"{steps:.0f} optimizer steps")


def flash_attention(device: Device, dtype: torch.dtype, *, installed: bool | None = None) -> bool:
    """Whether flash attention can be used: it computes in 16 bits, on cards as new as those with bfloat16 (Ampere).

    Args:
        device: where.
        dtype: what is computed in.
        installed: whether it is there; None: as it is.
    """
    if device.kind != "cuda" or not device.bfloat16 or dtype == torch.float32:
        return False
    return importlib.util.find_spec("flash_attn") is not None if installed is None else installed
