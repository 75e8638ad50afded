"""A trained LoRA and pairs of answers → the same LoRA that prefers what was wanted: DPO or KTO, by TRL.

Only the LoRA is trained; the reference is the LoRA as it was before the pass (TRL keeps a frozen copy of it), so `beta`
weighs how far corrections may pull from what the history taught. DPO is joined by the loss of the wanted answer
(RPO, arXiv:2404.19733): without it both answers may become unlikelier, the rejected one only more so.

What else was learned must not suffer. Every step also trains two windows of the history: without it twelve corrections
cost a tiny model that had learned four answers by heart up to 1.6 nats a token on the others. And of a pass that still
costs more than `RISE_MAX` on the tune split a half, then a quarter of the way is taken, or nothing.
"""

import hashlib
import math
import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from loguru import logger
from peft import PeftModel
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.trainer_callback import PrinterCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer

from bot.checksum import sha256
from bot.config import Training
from bot.errors import TrainingError
from training import device, precision
from training.base import load
from training.batches import IGNORED, Row
from training.device import Device
from training.loss import measuring, sparse_nll
from training.precision import Precision
from training.preferences import Pair
from training.samples import Split
from training.state import read_state, write_state
from training.trainer import is_no_memory

RECORD_FILE = "preferences.json"
RISE_MAX = 0.05
"""Nats per token the tune loss may rise by: half of what the gate lets words be worse by (`[gate] words_worse_max`, as
shipped)."""
_WEIGHTS = "adapter_model.safetensors"
_BATCH = 2
"""Pairs in a forward pass; KTO's KL term needs more than one. Few prompts fit beside two answers each."""
_SCRATCH = ".aligning-"
_SFT_WEIGHT = 1.0
_REPLAYED = 2
"""Windows of the history trained again in each step."""
_PARTS = (1.0, 0.5, 0.25)
"""Parts of the pass's change that are tried, until what was learned no longer suffers."""


def align(
    pairs: Sequence[Pair], replay: Sequence[Row], tune: Sequence[Row], checkpoint: Path, run_dir: Path, peft: Path,
    settings: Training,
) -> dict[str, Any]:  # fmt: skip
    """Run the pass over a run's LoRA, in place; a pass that was done already is not done again.

    Args:
        pairs: from `training.preferences.pairs`; those of the train split are trained.
        replay: rows of the train split, of which each step trains some again.
        tune: rows of the tune split.
        checkpoint: base, a Hugging Face folder (`training.base.checkpoint`).
        run_dir: where `preferences.json` is kept.
        peft: the LoRA's folder; its weights are replaced in one step.
        settings: bot.toml's [training], precision and compute_dtype as the run had them.

    Returns:
        What preferences.json holds: `outcome` (`too few`, `kept`, `undone`, `no memory`), `pairs`, `loss`, `beta`, the
        `part` of the pass's change that was kept, the mean log-odds of wanted over rejected (`margin`, nats) and the
        loss on the tune split (`tune`, nats per token) before and after.

    Raises:
        TrainingError: the base or the LoRA cannot be loaded, or the loss is no number.
    """
    usable = [
        p for p in pairs if p.split is Split.TRAIN and (p.chosen is not None or settings.preference_loss == "kto")
    ]
    kept = read_state(run_dir / RECORD_FILE) or {}
    if kept.get("lora") == sha256(peft / _WEIGHTS) and kept.get("of") == _described(usable, settings):
        return kept
    record: dict[str, Any] = {
        "of": _described(usable, settings), "pairs": len(usable), "loss": settings.preference_loss,
        "beta": settings.preference_beta,
    }  # fmt: skip
    if len(usable) < settings.preference_min_pairs:
        record |= {"outcome": "too few", "lora": sha256(peft / _WEIGHTS)}
        write_state(run_dir / RECORD_FILE, record)
        return record
    logger.info("a preference pass over {} corrections ({})", len(usable), settings.preference_loss)
    for stale in run_dir.glob(f"{_SCRATCH}*"):  # of a pass that was killed
        shutil.rmtree(stale)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=run_dir) as made:
        try:
            record |= _passed(usable, replay, tune, checkpoint, peft, Path(made), settings)
        except (RuntimeError, MemoryError) as e:
            if not is_no_memory(e):
                raise
            logger.warning(
                "memory ran out in the preference pass, and what was trained before it stays; lower [training] "
                "model_max_length, or set gradient_checkpointing = true"
            )
            record |= {"outcome": "no memory"}
        finally:
            device.free()
        # First what it will be, then the weights: a kill between the two only has the pass done again.
        weights = Path(made) / "lora" / _WEIGHTS
        record["lora"] = sha256(weights if record["outcome"] == "kept" else peft / _WEIGHTS)
        write_state(run_dir / RECORD_FILE, record)
        if record["outcome"] == "kept":
            os.replace(weights, peft / _WEIGHTS)
    return record


def _described(pairs: Sequence[Pair], settings: Training) -> str:
    """Names the pass: its pairs and settings."""
    fixed = {k: v for k, v in settings.model_dump().items() if k.startswith("preference_")}
    return f"{_hash(pairs)} {sorted(fixed.items())}"


def _hash(pairs: Sequence[Pair]) -> str:
    """A hash of pairs, the same on every machine."""
    return hashlib.sha256(repr([(p.prompt, p.chosen, p.rejected) for p in pairs]).encode()).hexdigest()


def _passed(
    pairs: Sequence[Pair], replay: Sequence[Row], tune: Sequence[Row], checkpoint: Path, peft: Path, made: Path,
    settings: Training,
) -> dict[str, Any]:  # fmt: skip
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    how = precision.chosen(settings, device.here())
    model = _model(checkpoint, peft, settings, how)
    before, start = _measured(model, pairs, tune), _tuned(model)
    trainer = (_dpo if settings.preference_loss == "dpo" else _kto)(model, pairs, made / "checkpoints", settings, how)
    _in_float(model)  # TRL makes the LoRA of a quantized base bf16, in which small updates vanish
    trainer.replay = random.Random(settings.seed).sample(replay, len(replay))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = [x["loss"] for x in trainer.state.log_history if "loss" in x]
    if not all(map(math.isfinite, losses)):
        raise TrainingError(
            f"the loss of the preference pass became no number; lower [training] preference_learning_rate "
            f"(it is {settings.preference_learning_rate})"
        )
    shutil.rmtree(made / "checkpoints", ignore_errors=True)
    end = _tuned(model)
    for part in _PARTS:
        _go(model, start, end, part)
        after = _measured(model, pairs, tune)
        if after["tune"] - before["tune"] <= RISE_MAX:
            model.save_pretrained(made / "lora", selected_adapters=["default"], save_embedding_layers=False)
            return {"outcome": "kept", "part": part, "before": before, "after": after}
    logger.warning(
        "the preference pass cost {:.3f} nats on the tune split and is undone", after["tune"] - before["tune"]
    )
    return {"outcome": "undone", "part": 0.0, "before": before, "after": after}


def _tuned(model: Any) -> dict[str, torch.Tensor]:
    """A copy of what is trained."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def _go(model: Any, start: dict[str, torch.Tensor], end: dict[str, torch.Tensor], part: float) -> None:
    """Set the LoRA to a part of the way from start to end."""
    for name, parameter in model.named_parameters():
        if name in end:
            parameter.copy_(torch.lerp(start[name], end[name], part))


def _model(checkpoint: Path, peft: Path, settings: Training, how: Precision) -> Any:
    base = load(checkpoint, how, trust=settings.trust_remote_code)
    try:
        model: Any = PeftModel.from_pretrained(base, peft, is_trainable=True)
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        raise TrainingError(f"LoRA {peft.name!r} cannot be loaded onto {checkpoint.name!r} ({e}); train again") from e
    _in_float(model)
    return model


def _in_float(model: Any) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


class _Ours:
    """Both trainers: with the history beside the pairs; without tokenizing, READMEs and telling their makers."""

    replay: Sequence[Row] = ()
    _steps = 0

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        start = self._steps * _REPLAYED
        self._steps += 1
        rows = [self.replay[i % len(self.replay)] for i in range(start, start + _REPLAYED)] if self.replay else []
        tuned = self.accelerator.unwrap_model(self.model)  # type: ignore[attr-defined]
        return loss + sum(_nll(tuned, r) for r in rows) / max(sum(r.labels for r in rows), 1)

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _send_telemetry(self) -> None: ...

    def create_model_card(self, *args: Any, **kwargs: Any) -> None: ...


class _DPO(_Ours, DPOTrainer):
    pass


class _KTO(_Ours, KTOTrainer):
    pass


def _dpo(model: Any, pairs: Sequence[Pair], out: Path, settings: Training, how: Precision) -> Any:
    data = Dataset.from_list([
        {"prompt_ids": list(p.prompt), "chosen_ids": list(p.chosen or ()), "rejected_ids": list(p.rejected)}
        for p in pairs
    ])  # fmt: skip
    args = DPOConfig(
        **_arguments(model, out, settings, how, device.here()), loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, _SFT_WEIGHT], beta=settings.preference_beta,
    )  # fmt: skip
    collator = DataCollatorForPreference(pad_token_id=0)
    return _DPO(model=model, args=args, train_dataset=data, data_collator=collator, processing_class=_nobody())


def _kto(model: Any, pairs: Sequence[Pair], out: Path, settings: Training, how: Precision) -> Any:
    rows = [
        {"prompt_ids": list(p.prompt), "completion_ids": list(answer), "label": good}
        for p in pairs
        for answer, good in ((p.chosen, True), (p.rejected, False))
        if answer is not None
    ]
    # The KL term reads an answer to another prompt (KTO, arXiv:2402.01306, section 4.1): what was wanted instead of
    # this one would be pulled at from both sides.
    for number, row in enumerate(rows):
        others = (x for x in (*rows[number + 1 :], *rows[:number]) if x["prompt_ids"] != row["prompt_ids"])
        row["KL_completion_ids"] = next(others, row)["completion_ids"]
    good = sum(bool(r["label"]) for r in rows)
    args = KTOConfig(
        **_arguments(model, out, settings, how, device.here()), beta=settings.preference_beta,
        # Both sides weigh alike (KTO, arXiv:2402.01306, section 4.2), as far as there are two.
        undesirable_weight=good / (len(rows) - good) if good else 1.0,
    )  # fmt: skip
    collator = DataCollatorForUnpairedPreference(pad_token_id=0)
    data = Dataset.from_list(rows)
    return _KTO(model=model, args=args, train_dataset=data, data_collator=collator, processing_class=_nobody())


def _arguments(model: Any, out: Path, settings: Training, how: Precision, where: Device) -> dict[str, Any]:
    cuda = where.kind == "cuda"
    return {
        "output_dir": str(out), "per_device_train_batch_size": _BATCH, "num_train_epochs": settings.preference_epochs,
        "learning_rate": settings.preference_learning_rate, "lr_scheduler_type": "constant",
        "max_grad_norm": settings.max_grad_norm, "optim": "adamw_torch", "bf16": False,
        "fp16": precision.scaled(how, where),
        "gradient_checkpointing": bool(settings.gradient_checkpointing) or model.num_parameters() > 1_000_000_000,
        "seed": settings.seed, "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": not cuda,
        "dataloader_pin_memory": cuda, "remove_unused_columns": False, "max_length": None,
    }  # fmt: skip


def _nobody() -> PreTrainedTokenizerFast:
    """The tokenizer a trainer asks for and, with ids given, never uses."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE()), pad_token="<pad>")  # type: ignore[no-untyped-call]


def _measured(model: Any, pairs: Sequence[Pair], tune: Sequence[Row]) -> dict[str, float]:
    """`margin`: mean log p(wanted) - log p(rejected) in nats, 0 without any; `tune`: nats per token, 0 without any."""
    with measuring(model):
        margins = [
            float(_nll(model, _row(p.prompt, p.rejected)) - _nll(model, _row(p.prompt, p.chosen)))
            for p in pairs
            if p.chosen is not None
        ]
        total, tokens = sum(float(_nll(model, r)) for r in tune), sum(r.labels for r in tune)
    return {"margin": sum(margins) / max(len(margins), 1), "tune": total / max(tokens, 1)}


def _row(prompt: Sequence[int], answer: Sequence[int]) -> Row:
    return Row([*prompt, *answer][:-1], [IGNORED] * (len(prompt) - 1) + list(answer))


def _nll(model: Any, row: Row) -> torch.Tensor:
    """-log p of a row's labels (nats), without ever holding all logits."""
    base = model.get_base_model()
    softcap = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
    ids, targets = (torch.tensor([x], device=model.device) for x in (row.ids, row.targets))
    hidden = base.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    return sparse_nll(hidden, base.get_output_embeddings().weight, targets, softcap, 128)
