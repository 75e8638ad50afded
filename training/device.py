"""What trains: a GPU or the processor → what it can compute in, and how much it holds."""

import gc
import os
from dataclasses import dataclass
from typing import Literal

import psutil
import torch

from bot import processors

_GB = 1e9


@dataclass(frozen=True, slots=True)
class Device:
    """One device, the one of this process.

    Args:
        kind: where tensors lie.
        name: as people know it.
        memory_bytes: of the device; of the machine, where it is the processor.
        bfloat16: computed natively.
        float8: multiplied natively (compute capability 8.9 and above).
    """

    kind: Literal["cuda", "cpu"]
    name: str
    memory_bytes: int
    bfloat16: bool = True
    float8: bool = False

    @property
    def torch_device(self) -> torch.device:
        """For tensors; under torchrun the GPU of this process."""
        return (
            torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if self.kind == "cuda" else torch.device("cpu")
        )

    def free_bytes(self) -> int:
        """Memory that can be had now."""
        if self.kind == "cuda":
            return int(torch.cuda.mem_get_info(self.torch_device)[0])
        return int(psutil.virtual_memory().available)

    def __str__(self) -> str:
        return f"{self.name}, {self.memory_bytes / _GB:.0f} GB"


def free() -> None:
    """Give back what was trained with: modules and their forward passes hold each other, so counting frees none of it.

    The night goes on in this process, with llama.cpp beside it.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def here() -> Device:
    """The device of this process: a GPU where torch finds one, else the processor."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(int(os.environ.get("LOCAL_RANK", "0")))
        capability = (properties.major, properties.minor)
        return Device("cuda", properties.name, properties.total_memory, capability >= (8, 0), capability >= (8, 9))
    memory = psutil.virtual_memory().total
    return Device("cpu", f"{processors.usable()} cores", memory, bfloat16=torch.ops.mkldnn._is_mkldnn_bf16_supported())
