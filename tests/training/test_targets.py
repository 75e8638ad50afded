"""What gets a LoRA: all linear layers, named ones, experts, routers; counted, listed, and nothing else learns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tinymodel
import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen3Config, Qwen3MoeConfig

from bot.config import Training
from bot.errors import TrainingError
from training import dryrun, known
from training.loss import teach_sparse_loss
from training.targets import cannot_serve, counts, lora_config, lora_size, targets

SHAPE: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32,
}  # fmt: skip
MIXTURES: dict[str, Callable[[], Any]] = {
    "qwen3_moe": lambda: Qwen3MoeConfig(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, **SHAPE),
    "mixtral": lambda: MixtralConfig(num_local_experts=4, num_experts_per_tok=2, **SHAPE),
}
ATTENTION = [f"model.layers.*.self_attn.{p}_proj × 2" for p in "qkvo"]
EXPERTS = ["model.layers.*.mlp.experts.gate_up_proj × 2", "model.layers.*.mlp.experts.down_proj × 2"]
ROUTERS = ["model.layers.*.mlp.gate.weight × 2"]
FULL = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0}


def test_qwen3_of_600_million_has_the_published_numbers() -> None:
    config = Qwen3Config(
        vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = targets(model, Training())
    trained, total = counts(model, lora_size(model, found, 16))
    assert (trained, total) == (10_092_544, 761_724_928)
    assert round(100 * trained / total, 3) == 1.325
    # And so many PEFT makes.
    with torch.device("meta"):
        tuned = get_peft_model(model, lora_config(Training(r=16, lora_alpha=32, lora_dropout=0.0), found, model))
    assert counts(tuned) == (trained, total)


@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.parametrize(
    ("scope", "listed"),
    [("off", ATTENTION), ("expert_only", EXPERTS), ("router_only", ROUTERS), ("all", ATTENTION + EXPERTS + ROUTERS)],
)
def test_a_scope_takes_its_part_of_a_mixture_and_trains_nothing_else(kind: str, scope: Any, listed: list[str]) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MIXTURES[kind]())
    settings = Training(moe_scope=scope, **FULL)
    found = targets(model, settings)
    assert found.listing == listed
    size = lora_size(model, found, 4)
    tuned = get_peft_model(model, lora_config(settings, found, model))
    assert counts(tuned)[0] == size
    _grads_everywhere_but_in_the_base(tuned)


@pytest.mark.parametrize("kind", MIXTURES)
def test_where_a_lora_of_a_mixture_lies_is_known(kind: str, tmp_path: Path) -> None:
    def base() -> Any:
        return AutoModelForCausalLM.from_config(MIXTURES[kind]())

    for scope, names in (
        ("expert_only", ("down_proj", "gate_up_proj")), ("off", None),
        ("all", ("down_proj", "gate_up_proj", "k_proj", "o_proj", "q_proj", "v_proj", "weight")),
    ):  # fmt: skip
        settings, model = Training(moe_scope=scope, **FULL), base()
        tuned = get_peft_model(model, lora_config(settings, targets(model, settings), model))
        tuned.save_pretrained(tmp_path / scope, save_embedding_layers=False)
        assert known.on(base(), tmp_path / scope, settings).target_modules is None
        assert known.on(base(), tmp_path / scope, Training()).target_modules == names
        for other in {"expert_only", "router_only", "all"} - {scope}:
            with pytest.raises(TrainingError, match=rf"moe_scope = '{other}' mean other layers .* leave both out"):
                known.on(base(), tmp_path / scope, Training(moe_scope=other))


@pytest.mark.parametrize("architecture", ["gemma3", "qwen3", "llama", "gemma2"])
def test_gradients_reach_every_target_and_the_base_stays_as_it_was(architecture: Any, tmp_path: Path) -> None:
    tiny = tinymodel.build(tmp_path, architecture)
    model = AutoModelForCausalLM.from_pretrained(tiny.hf, dtype=torch.float32)
    before = {n: p.clone() for n, p in model.named_parameters()}
    settings = Training(**FULL)
    found = targets(model, settings)
    assert len(found.modules) == 14
    tuned = get_peft_model(model, lora_config(settings, found, model))
    teach_sparse_loss(tuned)
    trained = _grads_everywhere_but_in_the_base(tuned)
    assert len(trained) == 2 * len(found.modules)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=0.01)
    optimizer.step()
    after = {n.replace(".base_layer", ""): p for n, p in tuned.get_base_model().named_parameters() if "lora_" not in n}
    assert set(after) == set(before)
    assert all(torch.equal(after[n], before[n]) for n in before)


def _grads_everywhere_but_in_the_base(tuned: Any) -> list[str]:
    torch.manual_seed(1)
    with torch.no_grad():  # B is 0 at first, and A's gradient with it
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
    ids = torch.randint(0, tuned.config.vocab_size, (4, 24))
    tuned(input_ids=ids, labels=ids).loss.backward()
    reached = [n for n, p in tuned.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0]
    assert sorted(reached) == sorted(n for n, _ in tuned.named_parameters() if "lora_" in n)
    return reached


def test_layers_can_be_named(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(Qwen3Config(**SHAPE))
    found = targets(model, Training(target_modules=("q_proj", "mlp.down_proj")))
    assert found.listing == ["model.layers.*.self_attn.q_proj × 2", "model.layers.*.mlp.down_proj × 2"]
    size = lora_size(model, found, 4)
    tuned = get_peft_model(model, lora_config(Training(**FULL), found, model))
    assert counts(tuned)[0] == size
    with pytest.raises(TrainingError, match=r"'W_pack', and the base has no such linear layer; it has .*q_proj"):
        targets(AutoModelForCausalLM.from_config(Qwen3Config(**SHAPE)), Training(target_modules=("q_proj", "W_pack")))
    with pytest.raises(TrainingError, match=r"'W_pack', and the base has no such linear layer"):
        targets(model, Training(target_modules=("all-linear", "W_pack")))


class _Other(nn.Module):
    """Layers as other families have them: a fused projection, and experts that are layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Module() for _ in range(2))
        for layer in self.layers:
            layer.W_pack = nn.Linear(8, 24)
            layer.mlp = nn.Module()
            layer.mlp.gate = nn.Linear(8, 3)
            layer.mlp.experts = nn.ModuleList(nn.Module() for _ in range(3))
            for expert in layer.mlp.experts:
                expert.up_proj = nn.Linear(8, 16)
        self.lm_head = nn.Linear(8, 50)

    def get_decoder(self) -> nn.Module:
        return self

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


def test_a_fused_projection_is_found_and_experts_of_their_own_are_capped() -> None:
    model = _Other()
    assert targets(model, Training()).modules == ("layers.0.W_pack", "layers.1.W_pack")
    every = targets(model, Training(moe_scope="expert_only"))
    assert len(every.modules) == 6
    capped = targets(model, Training(moe_scope="expert_only", max_experts_per_layer=2))
    assert capped.modules == tuple(f"layers.{a}.mlp.experts.{e}.up_proj" for a in range(2) for e in range(2))
    routed = targets(model, Training(moe_scope="router_only"))
    assert routed.modules == routed.routers == ("layers.0.mlp.gate", "layers.1.mlp.gate")


def test_what_cannot_be_done_is_refused_with_a_remedy() -> None:
    mixture = AutoModelForCausalLM.from_config(MIXTURES["qwen3_moe"]())
    dense = AutoModelForCausalLM.from_config(Qwen3Config(**SHAPE))
    with pytest.raises(TrainingError, match=r"Qwen3ForCausalLM has no experts .*moe_scope = 'off'"):
        targets(dense, Training(moe_scope="expert_only"))
    with pytest.raises(TrainingError, match=r"has no routers .*router_patterns"):
        targets(mixture, Training(moe_scope="all", router_patterns=("nowhere",)))
    with pytest.raises(TrainingError, match=r"max_experts_per_layer = 2.*one parameter.*leave it unset"):
        targets(mixture, Training(moe_scope="expert_only", max_experts_per_layer=2))
    dropping = Training(moe_scope="expert_only", r=4, lora_alpha=8, lora_dropout=0.1)
    with pytest.raises(TrainingError, match=r"fused parameter.*lora_dropout = 0\.0"):
        lora_config(dropping, targets(mixture, dropping), mixture)


def test_what_no_gguf_holds_is_told_before_training() -> None:
    assert cannot_serve(Training()) is None
    assert cannot_serve(Training(moe_scope="expert_only")) is None
    assert "use_dora" in str(cannot_serve(Training(use_dora=True)))
    assert "expert_only" in str(cannot_serve(Training(moe_scope="all")))


def test_a_dry_run_lists_what_would_be_trained_from_the_shape_alone(tmp_path: Path) -> None:
    MIXTURES["qwen3_moe"]().save_pretrained(tmp_path)  # config.json, no weights
    told = dryrun.lines(tmp_path, Training(moe_scope="all", r=4))
    assert told[: len(ATTENTION + EXPERTS + ROUTERS)] == ATTENTION + EXPERTS + ROUTERS
    assert "trainable 11,296 of" in told[-3]
    assert "GB with 4 ×" in told[-2]
    assert "cannot be served" in told[-1]
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}', "utf-8")
    with pytest.raises(TrainingError, match="no causal language model"):
        dryrun.lines(tmp_path, Training())
