"""Checkpoint + PEFT LoRA in transformers: what was trained, in float32 and unquantized. Parity's first side.

Logits are made at asked positions only: all of a 262,144-word vocabulary would take gigabytes.
"""

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import psutil
import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM

from bot.errors import ExportError
from export.tensors import checkpoint_tensors, text_name

_CHUNK = 64
"""Positions whose logits are held at once; 64 of 262,144 words are 67 MB."""


def require_memory(checkpoint: Path) -> None:
    """Raise ExportError where less memory is free than a checkpoint takes in float32: the proof reads it so."""
    try:
        needed = 4 * sum(stored.n_numbers for stored in checkpoint_tensors(checkpoint).values())
    except ExportError:
        return  # loading it says what is wrong
    free = psutil.virtual_memory().available
    if free < needed:
        raise ExportError(
            f"to be proven, {checkpoint.name!r} is held in float32: that takes {needed / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} GB are free; end what else runs, or take a smaller base"
        )


def require_watchable(names: Iterable[str]) -> None:
    """Raise ExportError where these parameters are a mixture's: no importance matrix is made of one."""
    if any("experts" in name for name in names):
        raise ExportError("no importance matrix is made of a mixture of experts; choose a type without one")


class Reference:
    """A trained model, on the CPU.

    Args:
        checkpoint: the Hugging Face checkpoint that was trained on.
        peft: the trained LoRA; None for the bare checkpoint.
        quantization: a transformers quantization config, to see what NF4 adds; None: unquantized.

    Raises:
        ExportError: the checkpoint or the LoRA cannot be loaded, or there is too little memory.
    """

    def __init__(self, checkpoint: Path, peft: Path | None, quantization: Any = None) -> None:
        gc.collect()  # modules and their forward passes hold each other: one before may lie there yet
        if quantization is None:
            require_memory(checkpoint)
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                checkpoint, dtype=torch.float32, quantization_config=quantization, local_files_only=True,
                device_map={"": "cpu"} if quantization is not None else None,
            )  # fmt: skip
            if peft is not None:
                model = PeftModel.from_pretrained(model, peft).get_base_model()
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as e:
            raise ExportError(f"checkpoint {checkpoint.name!r} with its LoRA cannot be loaded for parity ({e})") from e
        self._model = model.eval()
        self._decoder, self._head = model.get_decoder(), model.get_output_embeddings()
        self._softcap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)

    @torch.inference_mode()
    def log_probs(self, ids: Sequence[int], wanted: Sequence[tuple[int, int]]) -> npt.NDArray[np.float64]:
        """Log p(token | ids[:position]) in nats for each wanted (position, token)."""
        if not wanted:
            return np.empty(0)
        last = max(position for position, _ in wanted)
        hidden = self._decoder(input_ids=torch.tensor([ids[:last]]), use_cache=False).last_hidden_state[0]
        parts = []
        for start in range(0, len(wanted), _CHUNK):
            part = wanted[start : start + _CHUNK]
            logits = self._head(hidden[[position - 1 for position, _ in part]]).double()
            if self._softcap is not None:
                logits = torch.tanh(logits / self._softcap) * self._softcap
            asked = torch.tensor([[token] for _, token in part])
            parts.append((logits.gather(1, asked) - logits.logsumexp(1, keepdim=True)).squeeze(1))
        found: npt.NDArray[np.float64] = torch.cat(parts).numpy()
        return found

    @torch.inference_mode()
    def greedy(self, ids: Sequence[int], n: int, ends: frozenset[int]) -> list[int]:
        """The likeliest token after `ids`, again and again: `n` at most, up to and with the first of `ends`."""
        said: list[int] = []
        cache, step = None, list(ids)
        while len(said) < n and not (said and said[-1] in ends):
            out = self._decoder(input_ids=torch.tensor([step]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            step = [int(self._head(out.last_hidden_state[0, -1]).argmax())]
            said += step
        return said

    @torch.inference_mode()
    def mean_squares(self, texts: Sequence[Sequence[int]], architecture: str) -> dict[str, npt.NDArray[np.float32]]:
        """Mean square of each input of every linear layer over all tokens: llama.cpp's importance matrix.

        Args:
            texts: token ids.
            architecture: GGUF's, for the tensors' names. The permutation of q and k moves rows, and these are columns.

        Returns:
            GGUF tensor name → (in,). The output layer is left out, as it is at llama.cpp's collector.

        Raises:
            ExportError: a mixture: its experts see different tokens each, and are not layers that can be watched.
        """
        arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
        names = gguf.get_tensor_name_map(arch, int(self._model.config.get_text_config().num_hidden_layers))
        require_watchable(name for name, _ in self._model.named_parameters())
        sums: dict[str, torch.Tensor] = {}
        with _watched(self._model, sums):
            for ids in texts:
                self._decoder(input_ids=torch.tensor([list(ids)]), use_cache=False)
        tokens = max(1, sum(len(ids) for ids in texts))
        found = {names.get_name(text_name(module)): total for module, total in sums.items()}
        return {f"{name}.weight": (total / tokens).numpy() for name, total in found.items() if name is not None}


@contextmanager
def _watched(model: nn.Module, sums: dict[str, torch.Tensor]) -> Iterator[None]:
    """Add the squares of what goes into linear layers to `sums`, by the base layer's name."""

    def watch(name: str) -> Any:
        def told(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            squares = inputs[0].float().flatten(0, -2).square().sum(0)
            sums[name] = sums[name] + squares if name in sums else squares

        return told

    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".lora_" not in n}
    hooks = [m.register_forward_pre_hook(watch(n.removesuffix(".base_layer"))) for n, m in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
