"""A checkpoint's shape and the settings → what would be trained, and what it would take, without loading a weight."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bot.config import Training
from bot.errors import TrainingError
from training import choices, device, precision
from training.base import needs_trust, untrusted
from training.memory import AT_ONCE_TOKENS, shape_of, training_bytes
from training.targets import cannot_serve, counts, lora_size, targets


def lines(checkpoint: Path, settings: Training) -> list[str]:
    """What gets a LoRA, how many parameters that is, and about how much memory.

    Args:
        checkpoint: a Hugging Face folder; its config.json is enough.
        settings: bot.toml's [training]; an unset rank counts as 16.

    Raises:
        TrainingError: transformers does not know the base, or the settings match nothing in it.
    """
    model = on_meta(checkpoint, trust=settings.trust_remote_code)
    here, r = device.here(), settings.r or 16
    found = targets(model, settings)
    trained, total = counts(model, lora_size(model, found, r))
    how, window, batch = (
        precision.chosen(settings, here), choices.window(settings, here), settings.per_device_train_batch_size or 4,
    )  # fmt: skip
    shape = shape_of(model)
    plain, recomputed = (
        training_bytes(
            shape,
            how.weights,
            trained,
            batch,
            window,
            recomputed=x,
            eight_bit=here.kind == "cuda",
            at_once=AT_ONCE_TOKENS if here.kind == "cpu" else None,
        )
        / 1e9
        for x in (False, True)
    )
    told = [
        *found.listing,
        f"trainable {trained:,} of {total:,} parameters ({100 * trained / total:.3f} %) with r = {r}",
        f"about {plain:.1f} GB with {batch} × {window} tokens and precision {how.weights}, {recomputed:.1f} GB with "
        f"gradient checkpointing; here are {here}",
    ]
    if (why := cannot_serve(settings)) is not None:
        told.append(f"cannot be served by llama.cpp: {why}")
    return told


def on_meta(checkpoint: Path, *, trust: bool = False) -> Any:
    """A model without weights.

    Raises:
        TrainingError: transformers does not know it, or it needs Python that it brings along.
    """
    try:
        config = AutoConfig.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=trust)
        with torch.device("meta"):
            make: Any = AutoModelForCausalLM.from_config
            return make(config, dtype=torch.bfloat16, trust_remote_code=trust)
    except (ValueError, KeyError, OSError) as e:
        if needs_trust(e):
            raise TrainingError(untrusted(checkpoint)) from e
        reason = next(iter(str(e).splitlines()), type(e).__name__)[:200]
        raise TrainingError(
            f"checkpoint {checkpoint.name!r} is no causal language model that transformers knows ({reason}); choose a "
            "base of the Gemma, Qwen or Llama family"
        ) from e
