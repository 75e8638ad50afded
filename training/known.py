"""A LoRA that is gone on with: its folder → a model that trains it further, if it is of this base."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from bot.config import Training
from bot.errors import TrainingError
from training.choices import Known
from training.targets import ALL_LINEAR, targets

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
"""What PEFT puts before a layer's name."""


def known(folder: Path, settings: Training) -> Known:
    """What a LoRA is like.

    Raises:
        TrainingError: it cannot be read, or the settings want another rank, strength, dropout or kind.
    """
    try:
        config = json.loads((folder / _CONFIG).read_text("utf-8"))
        found = Known(int(config["r"]), int(config["lora_alpha"]), float(config.get("lora_dropout", 0.0)))
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise TrainingError(
            f"the LoRA in {str(folder)!r} has no readable {_CONFIG}; set [training] start = 'fresh' for this run"
        ) from e
    for name in ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora"):
        ours, theirs = getattr(settings, name), config.get(name, 0)
        if ours is not None and ours != theirs:
            raise TrainingError(
                f"[training] {name} = {ours}, and the LoRA to go on with has {name} = {theirs}; set it to that, or set "
                "start = 'fresh'"
            )
    return found


def on(model: Any, folder: Path, settings: Training) -> Known:
    """What a LoRA is like, and where on a base it lies if that is elsewhere than the settings mean.

    Args:
        model: the base.
        folder: of the LoRA.
        settings: bot.toml's.

    Raises:
        TrainingError: as `known`, or the settings name other places.
    """
    found, theirs = known(folder, settings), _places(model, folder)
    wanted = targets(model, settings)
    ours = {*wanted.modules, *wanted.parameters}
    if not theirs or theirs == ours or not theirs <= {*dict(model.named_modules()), *dict(model.named_parameters())}:
        return found  # of another base: told by `onto`
    names = tuple(sorted({_last(name) for name in theirs}))
    asked = settings.moe_scope != "off" or settings.target_modules != (ALL_LINEAR,)
    if asked and names != tuple(sorted({_last(name) for name in ours})):
        raise TrainingError(
            f"[training] target_modules = {list(settings.target_modules)} and moe_scope = {settings.moe_scope!r} mean "
            f"other layers than the LoRA to go on with lies on, {', '.join(names)}; leave both out to stay on those, "
            "or set start = 'fresh'"
        )
    return replace(found, target_modules=names)


def _places(model: Any, folder: Path) -> set[str]:
    """Full names of the layers and parameters a LoRA lies on; none where it cannot be read."""
    try:
        with safe_open(folder / _WEIGHTS, "pt") as file:
            keys = list(file.keys())
    except (OSError, SafetensorError):
        return set()
    fused = json.loads((folder / _CONFIG).read_text("utf-8")).get("target_parameters") or []
    parameters = {n for n, _ in model.named_parameters() for f in fused if n == f or n.endswith(f".{f}")}
    # PEFT wraps the module of a fused parameter, once for each of them.
    wrapped = {k.removeprefix(_PREFIX).rpartition(".lora_")[0] for k in keys if ".lora_" in k}
    layers = {name.replace(".base_layer", "") for name in wrapped}
    return (layers - {_parent(n) for n in parameters}) | parameters


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def onto(model: Any, folder: Path) -> Any:
    """The base with the LoRA on it, ready to train.

    Raises:
        TrainingError: it was trained on another base.
    """
    told = "it is of another base; set [training] start = 'fresh', or the base it was trained on"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # told below, as an error
            peft = PeftModel.from_pretrained(model, folder, is_trainable=True)
        with safe_open(folder / _WEIGHTS, "pt") as file:
            theirs = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (ValueError, RuntimeError, OSError, SafetensorError) as e:
        raise TrainingError(f"the LoRA in {folder.name!r} does not fit the base {_name(model)!r}: {told}") from e
    ours = {name: tuple(t.shape) for name, t in get_peft_model_state_dict(peft, save_embedding_layers=False).items()}
    if theirs != ours:
        raise TrainingError(
            f"the LoRA in {folder.name!r} has {len(theirs)} tensors, {len(ours.items() & theirs.items())} of which fit "
            f"the base {_name(model)!r}: {told}"
        )
    # PEFT would ask a hub for a base that it knows by its bare name.
    peft.peft_config["default"].base_model_name_or_path = model.config.name_or_path
    return peft


def _name(model: Any) -> str:
    return Path(str(model.config.name_or_path)).name
