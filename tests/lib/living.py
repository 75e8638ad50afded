"""Which PEFT models run, and whether they are still in memory."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from training.garbage import uncollected


@contextmanager
def seen() -> Iterator[list[weakref.ref[nn.Module]]]:
    """The PEFT models whose forward pass runs meanwhile, each once; nothing is collected unless it is asked for."""
    found: list[weakref.ref[nn.Module]] = []

    def look(module: nn.Module, _: Any) -> None:
        if isinstance(module, PeftModel) and not any(known() is module for known in found):
            found.append(weakref.ref(module))

    handle = register_module_forward_pre_hook(look)
    try:
        with uncollected():
            yield found
    finally:
        handle.remove()
