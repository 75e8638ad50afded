"""Windows → a PEFT LoRA that speaks as the person. TRL's SFTTrainer with a loss on the person's tokens only.

The base is frozen, in bf16 or NF4; the LoRA on all its linear layers is trained in float32. What is made lies in the
run folder: `checkpoints/` while it runs (a killed run goes on from the newest), `peft/` the LoRA with the best loss on
the tune split, `train.json` what was done and measured, `loss.png`. Nothing is sent anywhere.
"""

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from loguru import logger
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.trainer_callback import PrinterCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from bot.config import Training
from bot.errors import TrainingError
from training.base import linear_names, load, precision_of
from training.batches import IGNORED, ByLength, Row, collate, rows_of
from training.loss import teach_sparse_loss
from training.samples import Split, Window
from training.watch import Progress, Watch, library_versions, peak_rss_bytes, plot, read_state, write_state

RECORD_FILE = "train.json"
LORA_FOLDER = "peft"
_CHECKPOINT_FILES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
_LARGE = 1_000_000_000
"""Parameters from which activations are recomputed (gradient checkpointing): a third slower, several GB less."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run.

    Args:
        folder: the run folder.
        peft: the LoRA: adapter_config.json and adapter_model.safetensors.
        record: what train.json holds.
    """

    folder: Path
    peft: Path
    record: dict[str, Any]


def train(
    windows: Sequence[Window],
    checkpoint: Path,
    run_dir: Path,
    settings: Training,
    progress: Callable[[Progress], None] | None = None,
    save_steps: int = 25,
) -> Run:
    """Train a LoRA, or go on with a run that was interrupted, or give back one that is finished.

    Args:
        windows: from `training.samples.windows`.
        checkpoint: base, a Hugging Face folder (`training.base.checkpoint`).
        run_dir: the run folder. What lies there is gone on with if windows, base and settings are the same.
        settings: bot.toml's [training].
        progress: told every `logging_steps`.
        save_steps: optimizer steps between checkpoints; what a kill costs at most.

    Raises:
        TrainingError: nothing to learn, a base that cannot be trained, or a loss that is no number.
    """
    rows = rows_of(windows, Split.TRAIN, silence_keep=settings.silence_keep, seed=settings.seed)
    tune = rows_of(windows, Split.TUNE)
    if not rows:
        raise TrainingError(
            f"too few messages to train on: none of {len(windows)} windows holds a word of the person in the train "
            "split; import more history (`twin import`), or check `people` in persona.toml"
        )
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    finished = _claim(run_dir, _identity(rows, tune, checkpoint, settings))
    if finished is not None:
        return Run(run_dir, run_dir / LORA_FOLDER, finished)
    trainer = _trainer(rows, checkpoint, run_dir, settings, save_steps)
    watch = Watch(
        trainer.model, lambda: trainer.tokens_done, tune, run_dir, progress, settings.per_device_train_batch_size
    )
    trainer.add_callback(watch)
    last = _last_checkpoint(run_dir / "checkpoints")
    if last is not None:
        logger.info("training goes on from {}", last.name)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    record = _record(trainer, watch, rows, settings)
    _finish(run_dir, record)
    return Run(run_dir, run_dir / LORA_FOLDER, record)


def _identity(rows: Sequence[Row], tune: Sequence[Row], checkpoint: Path, settings: Training) -> str:
    fixed = settings.model_dump_json(exclude={"threads", "logging_steps"})
    digest = hashlib.sha256(f"{checkpoint.name}\0{fixed}".encode())
    for row in (*rows, *tune):
        digest.update(repr((row.ids, row.targets)).encode())
    return digest.hexdigest()


def _claim(run_dir: Path, identity: str) -> dict[str, Any] | None:
    """Make the folder this run's: the record of the same run if it is finished, else None; another run's is cleared."""
    mark = run_dir / "run.json"
    if (read_state(mark) or {}).get("identity") == identity:
        return read_state(run_dir / RECORD_FILE) if (run_dir / LORA_FOLDER).is_dir() else None
    for stale in ("checkpoints", "best", LORA_FOLDER):
        shutil.rmtree(run_dir / stale, ignore_errors=True)
    for stale in (RECORD_FILE, "tune.json", "loss.png"):
        (run_dir / stale).unlink(missing_ok=True)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_state(mark, {"identity": identity})
    return None


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; broken ones are removed."""
    found = []
    for path in folder.glob("checkpoint-*"):
        if all((path / name).is_file() for name in _CHECKPOINT_FILES):
            found.append(path)
        else:
            shutil.rmtree(path)
    return max(found, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


class _Trainer(SFTTrainer):
    """SFTTrainer with our rows, our order and our loss."""

    tokens_done = 0
    """Trained tokens of this session."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean negative log-likelihood of the optimizer step's trained tokens; the logits are never all made."""
        total = model(input_ids=inputs["input_ids"], targets=inputs["labels"])
        here = (inputs["labels"] != IGNORED).sum()
        self.tokens_done += int(here)
        if num_items_in_batch is None:
            return total / here.clamp(min=1)
        scale = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return total * scale / torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)

    def _get_train_sampler(self, train_dataset: Any = None) -> ByLength:
        rows: Any = self.train_dataset
        lengths = [len(ids) for ids in rows["input_ids"]]
        return ByLength(lengths, self.args.per_device_train_batch_size, self.args.seed)

    def _send_telemetry(self) -> None:
        """TRL reports each run to its makers; this one stays here."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No README beside checkpoints."""


def _trainer(rows: Sequence[Row], checkpoint: Path, run_dir: Path, settings: Training, save_steps: int) -> _Trainer:
    cuda = torch.cuda.is_available()
    model = load(checkpoint, precision_of(settings.precision))
    steps = _steps(len(rows), settings)
    args = SFTConfig(
        output_dir=str(run_dir / "checkpoints"),
        per_device_train_batch_size=settings.per_device_train_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        num_train_epochs=settings.num_train_epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(steps * settings.warmup_ratio),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch",
        bf16=False,  # weights are bf16 already; autocast on top only costs
        **_recompute(model.num_parameters() > _LARGE),
        seed=settings.seed,
        logging_steps=settings.logging_steps,
        logging_first_step=True,
        save_strategy="steps",
        save_steps=save_steps,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    lora = LoraConfig(
        r=settings.r, lora_alpha=settings.lora_alpha, lora_dropout=settings.lora_dropout,
        target_modules=linear_names(model), task_type="CAUSAL_LM",
    )  # fmt: skip
    data = Dataset.from_dict({"input_ids": [r.ids for r in rows], "labels": [r.targets for r in rows]})
    # Rows are ids already. A tokenizer is asked for all the same; a real one is copied into every checkpoint (33 MB).
    nobody = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE()))  # type: ignore[no-untyped-call]
    trainer = _Trainer(
        model=model, args=args, train_dataset=data, data_collator=collate, processing_class=nobody, peft_config=lora
    )
    trainer.remove_callback(PrinterCallback)
    # TRL makes the LoRA of a quantized base bf16, in which small updates vanish.
    tuned: Any = trainer.model
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    teach_sparse_loss(tuned)
    return trainer


def _recompute(large: bool) -> dict[str, Any]:
    """Gradient checkpointing, under the name this transformers knows it by (renamed within 5.x)."""
    if "activation_checkpointing" in SFTConfig.__dataclass_fields__:
        return {"activation_checkpointing": large, "gradient_checkpointing": None}
    return {"gradient_checkpointing": large}


def _steps(rows: int, settings: Training) -> int:
    batches = math.ceil(rows / settings.per_device_train_batch_size)
    an_epoch = math.ceil(batches / settings.gradient_accumulation_steps)
    return settings.max_steps or math.ceil(an_epoch * settings.num_train_epochs)


def _record(trainer: _Trainer, watch: Watch, rows: Sequence[Row], settings: Training) -> dict[str, Any]:
    state = trainer.state
    epoch = state.epoch or 0.0
    labels = sum(r.labels for r in rows)
    return {
        "settings": settings.model_dump(),
        "precision": precision_of(settings.precision),
        "device": trainer.args.device.type,
        "threads": torch.get_num_threads(),
        "steps": state.global_step,
        "epochs": epoch,
        "windows": len(rows),
        "labels_per_epoch": labels,
        "trained_tokens": round(labels * epoch),
        "seconds": round(watch.seconds, 1),
        "trained_tokens_per_s": round(trainer.tokens_done / max(watch.seconds, 1e-9), 2),
        "resumed_at": watch.resumed_at,
        "loss": [{k: x[k] for k in ("step", "loss", "learning_rate")} for x in state.log_history if "loss" in x],
        "tune": watch.tune,
        "best_step": watch.best_step,
        "peak_rss_bytes": peak_rss_bytes(),
        "libraries": library_versions(),
    }


def _finish(run_dir: Path, record: dict[str, Any]) -> None:
    """Put the result in place; train.json last, it says that the run is finished."""
    plot(record["loss"], record["tune"], run_dir / "loss.png")
    shutil.rmtree(run_dir / LORA_FOLDER, ignore_errors=True)
    os.replace(run_dir / "best", run_dir / LORA_FOLDER)
    write_state(run_dir / RECORD_FILE, record)
    shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
