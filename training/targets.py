"""A model and the settings → what of it gets a LoRA, listed before anything is trained.

`all-linear` takes every linear layer but the output layer, so fused projections such as Baichuan's `W_pack` are found
without naming them. Of a mixture, experts and routers are told by patterns: current transformers hold a layer's experts
as one parameter (`mlp.experts.gate_up_proj`) and the router as another, which PEFT adapts as `target_parameters`;
elsewhere an expert is a module with linear layers of its own.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig
from torch import nn

from bot.config import Training
from bot.errors import TrainingError

ALL_LINEAR = "all-linear"
_NUMBERED = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Targets:
    """What gets a LoRA.

    Args:
        modules: full names of linear layers.
        parameters: full names of parameters that are no layer's weight: fused experts, routers.
        routers: those of both that are routers.
    """

    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    routers: tuple[str, ...]

    @property
    def listing(self) -> list[str]:
        """A line for each kind of place, layers counted together: `model.layers.*.mlp.down_proj × 28`."""
        counts: dict[str, int] = {}
        for name in (*self.modules, *self.parameters):
            kind = _NUMBERED.sub(".*.", name)
            counts[kind] = counts.get(kind, 0) + 1
        return [f"{kind} × {n}" for kind, n in counts.items()]


def targets(model: nn.Module, settings: Training) -> Targets:
    """What of a model gets a LoRA.

    Args:
        model: the base, perhaps on the meta device.
        settings: `target_modules`, `moe_scope`, the patterns and the cap.

    Raises:
        TrainingError: a name or a scope matches nothing, or the cap cannot be kept.
    """
    experts, routers = _matcher(settings.expert_patterns), _matcher(settings.router_patterns)
    linear = list(_linear(model))
    # A linear layer beside which another `gate` stands is a router only in a mixture: patterns name whole last parts.
    in_mixture = [n for n in linear if experts(f".{n}.") or routers(f".{n}")]
    plain = [n for n in linear if n not in set(in_mixture)]
    chosen: list[str] = []
    parameters: list[str] = []
    found_routers: list[str] = []
    if settings.moe_scope in ("off", "all"):
        chosen += _named(plain, settings.target_modules)
    if settings.moe_scope in ("expert_only", "all"):
        own = [n for n in in_mixture if experts(f".{n}.")]
        fused = [n for n in _bare_parameters(model) if experts(f".{n}.") and not routers(f".{n}")]
        _require(own + fused, "expert_only" if settings.moe_scope == "expert_only" else "all", "experts", model)
        chosen += _capped(own, fused, settings.max_experts_per_layer)
        parameters += fused
    if settings.moe_scope in ("router_only", "all"):
        found_routers = [n for n in in_mixture if routers(f".{n}") and not experts(f".{n}.")]
        bare = [n for n in _bare_parameters(model) if routers(f".{n}") and not experts(f".{n}.")]
        _require(found_routers + bare, settings.moe_scope, "routers", model)
        chosen += found_routers
        parameters += bare
        found_routers += bare
    return Targets(tuple(chosen), tuple(parameters), tuple(found_routers))


def lora_config(settings: Training, found: Targets, model: nn.Module) -> LoraConfig:
    """PEFT's configuration of a LoRA on these places.

    Raises:
        TrainingError: PEFT cannot do this to fused parameters.
    """
    if found.parameters and (settings.lora_dropout or settings.use_dora):
        raise TrainingError(
            f"{found.parameters[0]!r} is a fused parameter, on which PEFT has neither dropout nor DoRA; set [training] "
            "lora_dropout = 0.0 and use_dora = false, or moe_scope = 'off'"
        )
    same = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora")
    return LoraConfig(
        **{name: getattr(settings, name) for name in same}, task_type="CAUSAL_LM",
        target_modules=_shortest(found.modules, [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]),
        target_parameters=list(found.parameters) or None,
    )  # fmt: skip


def cannot_serve(settings: Training) -> str | None:
    """Why what these settings train cannot be served by llama.cpp; None where it can.

    Told before hours of training; `export.deltas` would refuse it after them.
    """
    if settings.use_dora:
        return "no GGUF holds DoRA; set [training] use_dora = false, or use `twin train` alone"
    if settings.moe_scope in ("router_only", "all"):
        return "LoRAs on routers are not exported; set [training] moe_scope = 'expert_only', or use `twin train` alone"
    return None


def counts(model: Any, trained: int | None = None) -> tuple[int, int]:
    """Trainable and total parameters, as the hub counts: an output layer tied to the embedding is one of its own.

    Args:
        model: base or PEFT model.
        trained: parameters of a LoRA that is not on it yet; None: those that require a gradient.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    # Packed 4-bit weights have half as many numbers as weights; their layers know how many there were.
    packed = {id(m.weight): m.in_features * m.out_features for m in model.modules() if isinstance(m, nn.Linear)}
    total = sum(packed.get(id(p), p.numel()) for p in model.parameters())
    output, words = base.get_output_embeddings(), base.get_input_embeddings()
    if output is not None and output.weight is words.weight:
        total += int(output.weight.numel())
    if trained is None:
        return sum(p.numel() for p in model.parameters() if p.requires_grad), total
    return trained, total + trained


def lora_size(model: nn.Module, found: Targets, r: int) -> int:
    """Parameters of a LoRA of rank r: r · (in + out) a layer, times the experts of a fused parameter."""
    total = 0
    for name in found.modules:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        total += r * (layer.in_features + layer.out_features)
    for name in found.parameters:
        shape = model.get_parameter(name).shape
        total += r * sum(shape[-2:]) * (shape[0] if len(shape) == 3 else 1)
    return total


def _of_text(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules of the language model with their full names: chats never reach a vision tower beside it."""
    base: Any = model
    decoder = base.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    yield from decoder.named_modules(prefix=prefix)


def _linear(model: nn.Module) -> Iterator[str]:
    """Names of linear layers but the output layer, which some models hold in what they call their decoder."""
    base: Any = model
    output = base.get_output_embeddings()
    return (name for name, module in _of_text(model) if isinstance(module, nn.Linear) and module is not output)


def _bare_parameters(model: nn.Module) -> Iterator[str]:
    """Names of matrices (of all experts at once: three axes) that are no linear layer's or embedding's."""
    for name, module in _of_text(model):
        if isinstance(module, nn.Linear | nn.Embedding):
            continue
        for part, parameter in module.named_parameters(recurse=False):
            if parameter.dim() in (2, 3):
                yield f"{name}.{part}"


def _matcher(patterns: Sequence[str]) -> Any:
    return lambda name: any(re.search(pattern, name) for pattern in patterns)


def _named(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    missing = [w for w in wanted if w != ALL_LINEAR and not any(_ends(n, w) for n in names)]
    if missing:
        there = ", ".join(sorted({n.rpartition(".")[2] for n in names}))
        raise TrainingError(
            f"[training] target_modules names {', '.join(map(repr, missing))}, and the base has no such linear layer; "
            f"it has {there}"
        )
    return [n for n in names if ALL_LINEAR in wanted or any(_ends(n, w) for w in wanted)]


def _ends(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def _require(found: Sequence[str], scope: str, what: str, model: nn.Module) -> None:
    if not found:
        raise TrainingError(
            f"moe_scope = {scope!r}, and {type(model).__name__} has no {what} that the patterns match; set [training] "
            f"{what[:-1]}_patterns, or moe_scope = 'off' for a base that is no mixture"
        )


def _capped(own: Sequence[str], fused: Sequence[str], cap: int | None) -> list[str]:
    """The first `cap` experts of each layer."""
    if cap is None:
        return list(own)
    if fused:
        raise TrainingError(
            f"max_experts_per_layer = {cap}, and the base holds a layer's experts as one parameter ({fused[0]!r}), "
            "which has a LoRA as a whole or none; leave it unset"
        )
    return [n for n in own if int(_NUMBERED.findall(n)[-1]) < cap]


def _shortest(chosen: Sequence[str], every: Sequence[str]) -> list[str]:
    """Last name parts, if they mean exactly the chosen layers to PEFT; else full names."""
    short = sorted({n.rpartition(".")[2] for n in chosen})
    meant = [n for n in every if any(_ends(n, s) for s in short)]
    return short if set(meant) == set(chosen) else list(chosen)
