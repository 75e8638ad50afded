"""Processes that train together, as torchrun or `accelerate launch` start them: who is first, what all agree on.

Alone, everything here does nothing.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from torch import distributed

from bot.errors import TrainingError, TwinError

T = TypeVar("T")
_PATIENCE = timedelta(hours=6)
"""How long the others wait for the first, which may fetch a base meanwhile: torch would end them after 10 minutes."""
ZERO2 = Path(__file__).with_name("zero2.json")
"""The shipped DeepSpeed configuration: optimizer states and gradients shared out, no optimizer of its own."""


def size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return int(os.environ.get("RANK", "0")) == 0


def first(work: Callable[[], T]) -> T:
    """What the first process gets, in all of them; they wait for it.

    Raises:
        TwinError: it failed there; in the others a TrainingError with its words.
    """
    if size() == 1:
        return work()
    _join()
    told: list[tuple[T | None, str | None]] = [(None, None)]
    failed: TwinError | None = None
    if is_first():
        try:
            told = [(work(), None)]
        except TwinError as e:
            failed, told = e, [(None, str(e))]
    distributed.broadcast_object_list(told, src=0)
    if failed is not None:
        raise failed
    value, fault = told[0]
    if fault is not None:
        raise TrainingError(fault)
    return value  # type: ignore[return-value]


def anywhere(flag: bool, device: torch.device) -> bool:
    """Whether it is so in any process; asked by all at the same point."""
    if size() == 1:
        return flag
    _join()
    seen = torch.tensor(int(flag), device=device)
    distributed.all_reduce(seen, op=distributed.ReduceOp.MAX)
    return bool(seen)


def total(number: int, device: torch.device) -> int:
    """The sum of a number over all processes; asked by all at the same point."""
    if size() == 1:
        return number
    _join()
    found = torch.tensor(number, device=device)
    distributed.all_reduce(found)
    return int(found)


def leave() -> None:
    """Take leave of the others, at the end of a program."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _join() -> None:
    if not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
