"""How the frozen base is held, and what is computed in: by the device unless set, or a refusal with the remedy."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import BitsAndBytesConfig

from bot.config import Training
from bot.errors import TrainingError
from training.device import Device

Weights = Literal["nf4", "int8", "fp8", "none"]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class Precision:
    """How a base is loaded.

    Args:
        weights: of its linear layers; none: in `dtype`.
        dtype: what is computed in.
    """

    weights: Weights
    dtype: torch.dtype

    @property
    def dtype_name(self) -> str:
        """As bot.toml writes it."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def quantization(self) -> BitsAndBytesConfig | None:
        """What transformers quantizes by while it loads; None where it does not.

        NF4 with double quantization is QLoRA's (arXiv:2305.14314), 8-bit LLM.int8's (arXiv:2208.07339).
        """
        if self.weights == "nf4":
            return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=self.dtype,
            )  # fmt: skip
        if self.weights == "int8":
            return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
        return None


def chosen(settings: Training, device: Device) -> Precision:
    """What the settings mean on a device.

    Raises:
        TrainingError: the device has no 8-bit floats.
    """
    weights: Weights = (
        ("nf4" if device.kind == "cuda" else "none") if settings.precision == "auto" else settings.precision
    )
    if weights == "fp8" and device.kind == "cuda" and not device.float8:
        raise TrainingError(
            f"precision = 'fp8' needs a GPU of compute capability 8.9 or above, and {device.name} is older; "
            "set [training] precision = 'nf4' or 'int8'"
        )
    if settings.compute_dtype != "auto":
        return Precision(weights, DTYPES[settings.compute_dtype])
    # A processor without 16-bit arithmetic takes 50 times as long in either of them.
    without = torch.float32 if device.kind == "cpu" else torch.float16
    return Precision(weights, torch.bfloat16 if device.bfloat16 else without)


def scaled(precision: Precision, device: Device) -> bool:
    """Whether the loss is scaled up for the backward pass: in a GPU's float16 small gradients would vanish."""
    return device.kind == "cuda" and precision.dtype == torch.float16


def require(precision: Precision, device: Device, quantize: Callable[[Precision, Device], None] | None = None) -> None:
    """Quantize a few numbers as the base will be, so that a driver too old is told before minutes of loading.

    Args:
        precision: how the base will be held.
        device: where.
        quantize: does it; a port, since a driver that is too old cannot be had everywhere.

    Raises:
        TrainingError: bitsandbytes is missing, or does not work here.
    """
    if precision.quantization is None:
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise TrainingError(
            f"precision = {precision.weights!r} needs bitsandbytes, which is not installed: pip install bitsandbytes, "
            "or set [training] precision = 'none'"
        )
    try:
        (quantize or _quantize)(precision, device)
    except (RuntimeError, OSError, ImportError, AttributeError) as e:
        reason = next(iter(str(e).splitlines()), type(e).__name__)[:160]
        raise TrainingError(
            f"bitsandbytes cannot hold weights as {precision.weights!r} on {device.name} ({reason}); update the GPU's "
            "driver (CUDA 11.8 or newer), or set [training] precision = 'none'"
        ) from e


def _quantize(precision: Precision, device: Device) -> None:
    from bitsandbytes import functional

    numbers = torch.zeros(64, 64, dtype=precision.dtype, device=device.torch_device)
    quantize: Any = functional.quantize_4bit if precision.weights == "nf4" else functional.int8_vectorwise_quant
    quantize(numbers.half() if precision.weights == "int8" else numbers)
