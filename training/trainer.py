"""TRL's SFTTrainer with our rows, our order and our loss, and what to do when memory or numbers run out."""

import importlib.util
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
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
from training import device, world
from training.batches import IGNORED, ByLength, Row, collate, pack, wide
from training.lean import slim
from training.loss import Unusable, teach_sparse_loss
from training.precision import Precision, scaled

_FIRST_STEPS = 20
"""A loss that is no number within these is the numbers' fault; later it is the learning rate's."""
_SAME = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "learning_rate", "weight_decay",
    "max_grad_norm", "optim", "use_liger_kernel", "seed", "logging_steps", "save_steps", "save_total_limit",
)  # fmt: skip
"""Settings that the trainer knows under the same names."""
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "alloc_failed")
"""Of RuntimeErrors: torch's allocator on a CPU has no class of its own, nor has cuBLAS (CUBLAS_STATUS_ALLOC_FAILED)."""


class Trainer(SFTTrainer):
    """Trains rows.

    `admit` is told the tokens of each forward pass, padding included, before it, and may raise what the allocator
    raises: a port, since memory that runs out cannot be had on purpose.
    """

    admit: Callable[[int], None] = staticmethod(lambda _: None)
    tokens_done = 0
    """Trained tokens of this session, in this process."""
    parts = 1
    """Pieces a batch is read in since memory ran out."""
    at_once: int | None = None
    """Tokens that one forward pass reads at most, if more than one row; None: a whole batch."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean negative log-likelihood of the optimizer step's trained tokens; the logits are never all made."""
        self.admit(inputs["input_ids"].numel())
        read = {name: inputs[name] for name in ("input_ids", "position_ids") if name in inputs}
        total = model(**read, targets=inputs["labels"])
        here = (inputs["labels"] != IGNORED).sum()
        value, labels, step = float(total.detach()), int(here), self.state.global_step
        if world.anywhere(not math.isfinite(value) or (value == 0 and labels > 0 and step == 0), total.device):
            raise self.unusable(value)
        self.tokens_done += labels
        if num_items_in_batch is None:
            return total / here.clamp(min=1)
        scale = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return total * scale / torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)

    def tokens_together(self) -> int:
        """Trained tokens of this session, in all processes; asked by all at the same point."""
        return world.total(self.tokens_done, self.args.device)

    def unusable(self, loss: float) -> Unusable:
        """A loss that is no number, told."""
        step = self.state.global_step
        return Unusable(
            f"the loss became {loss} at step {step}; lower [training] learning_rate (it is "
            f"{self.args.learning_rate:g})",
            early=step < _FIRST_STEPS,
        )

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One forward and backward pass; where it does not fit in memory, in halves, which sum to the same gradient.

        Raises:
            TrainingError: a single row does not fit, or one of several processes ran out alone.
        """
        while True:
            # A pass that failed half way leaves half a gradient behind.
            before = [(p, p.grad.clone() if p.grad is not None else None) for p in self._trained()]
            parts = self._pieces(inputs)
            try:
                losses = [
                    super(Trainer, self).training_step(model, part, num_items_in_batch)  # type: ignore[no-untyped-call]
                    for part in _split(inputs, parts)
                ]
                return torch.stack(losses).sum()
            except (RuntimeError, MemoryError) as e:
                if not is_no_memory(e):
                    raise
                self._smaller(inputs, parts, e)
            for parameter, gradient in before:
                parameter.grad = gradient
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _pieces(self, inputs: dict[str, Any]) -> int:
        """In how many a batch is read."""
        if self.at_once is None:
            return self.parts
        rows = _rows(inputs)
        together = max(1, self.at_once * rows // int(inputs["labels"].numel()))
        return max(self.parts, math.ceil(rows / together))

    def _smaller(self, inputs: dict[str, Any], parts: int, error: Exception) -> None:
        rows = _rows(inputs)
        together = math.ceil(rows / parts)
        if world.size() > 1 or together <= 1:
            raise TrainingError(
                f"memory ran out over {together} of {rows} rows, {inputs['labels'].numel()} tokens in all; lower "
                "[training] per_device_train_batch_size or model_max_length, or set gradient_checkpointing = true"
            ) from error
        self.parts = 2 * parts
        logger.warning("memory ran out over {} rows; goes on with {} at a time", together, math.ceil(rows / self.parts))

    def _trained(self) -> list[torch.nn.Parameter]:
        model: Any = self.model
        return [p for p in model.parameters() if p.requires_grad]

    def _get_train_sampler(self, train_dataset: Any = None) -> ByLength:
        rows: Any = self.train_dataset
        lengths = [len(ids) for ids in rows["input_ids"]]
        # Batches go to the processes in turn: together they read what one would with a batch as large as all.
        return ByLength(lengths, self.args.per_device_train_batch_size * world.size(), self.args.seed)

    def _send_telemetry(self) -> None:
        """TRL reports each run to its makers; this one stays here."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No README beside checkpoints."""


def trainer(
    model: Any, lora: LoraConfig | None, rows: Sequence[Row], folder: Path, settings: Training,
    deepspeed: Path | None, precision: Precision, at_once: int | None = None,
) -> Trainer:  # fmt: skip
    """A trainer, ready to run.

    Args:
        model: the base, or with `lora` None a PEFT model to go on with.
        lora: what is put on it.
        rows: to train.
        folder: for checkpoints.
        settings: complete (`training.choices`).
        deepspeed: a DeepSpeed configuration.
        precision: how the base is held.
        at_once: tokens that one forward pass reads at most, if more than one row; None: a whole batch.

    Raises:
        TrainingError: Liger is asked for and not installed, or the base cannot be trained with our loss.
    """
    if settings.use_liger_kernel and importlib.util.find_spec("liger_kernel") is None:
        raise TrainingError(
            "[training] use_liger_kernel = true needs liger-kernel, which is not installed: pip install liger-kernel, "
            "or set it to false"
        )
    cuda = torch.cuda.is_available()
    packed = settings.packing == "on"
    args = SFTConfig(
        output_dir=str(folder),
        **{name: getattr(settings, name) for name in _SAME},
        max_steps=settings.max_steps or -1,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(steps(len(rows), settings) * settings.warmup_ratio),
        bf16=False,  # weights are bf16 already; autocast on top only costs
        fp16=scaled(precision, device.here()),
        **_recompute(bool(settings.gradient_checkpointing)),
        # The loss is ours: Liger's would not know of it.
        liger_kernel_config={"fused_linear_cross_entropy": False, "cross_entropy": False},
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        report_to="none",  # `training.watch` does
        disable_tqdm=True,
        use_cpu=not cuda,
        ddp_backend="gloo" if world.size() > 1 and not cuda else None,
        deepspeed=None if deepspeed is None else str(deepspeed),
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    args._n_gpu = min(args.n_gpu, 1)  # one process, one GPU; several are torchrun's
    data = Dataset.from_dict({"input_ids": [r.ids for r in rows], "labels": [r.targets for r in rows]})
    # Rows are ids already. A tokenizer is asked for all the same; a real one is copied into every checkpoint (33 MB).
    nobody = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE()))  # type: ignore[no-untyped-call]
    made = Trainer(
        model=model, args=args, train_dataset=data, data_collator=pack if packed else collate, processing_class=nobody,
        peft_config=lora,
    )  # fmt: skip
    made.remove_callback(PrinterCallback)
    # TRL makes the LoRA of a quantized base bf16, in which small updates vanish.
    for parameter in made._trained():
        parameter.data = parameter.data.float()
    slim(made.model)
    made.at_once = at_once
    # Ours is the loss, whatever the base's own forward takes: without the number of labels each part of a batch would
    # be a mean of its own, and their sum too large.
    made.model_accepts_loss_kwargs = True
    teach_sparse_loss(made.model, packed=packed)
    return made


def steps(rows: int, settings: Training) -> int:
    """Optimizer steps of a run."""
    batches = math.ceil(rows / ((settings.per_device_train_batch_size or 1) * world.size()))
    an_epoch = math.ceil(batches / (settings.gradient_accumulation_steps or 1))
    return settings.max_steps or math.ceil(an_epoch * (settings.num_train_epochs or 1))


def _recompute(wanted: bool) -> dict[str, Any]:
    """Gradient checkpointing, under the name this transformers knows it by (renamed within 5.x)."""
    if "activation_checkpointing" in SFTConfig.__dataclass_fields__:
        return {"activation_checkpointing": wanted, "gradient_checkpointing": None}
    return {"gradient_checkpointing": wanted}


def _rows(inputs: dict[str, Any]) -> int:
    """Rows of a batch, padded or packed."""
    return int((inputs["position_ids"] == 0).sum()) if "position_ids" in inputs else len(inputs["labels"])


def _split(inputs: dict[str, Any], parts: int) -> list[dict[str, Any]]:
    """A batch in pieces of rows; padded ones without columns of padding alone."""
    if parts == 1:
        return [inputs]
    found = []
    if "position_ids" in inputs:
        starts = (inputs["position_ids"][0] == 0).nonzero().flatten().tolist()
        size = math.ceil(len(starts) / parts)
        cuts = [*starts[::size], inputs["position_ids"].shape[1]]
        return [{n: column[:, i:j] for n, column in inputs.items()} for i, j in pairwise(cuts)]
    size = math.ceil(len(inputs["input_ids"]) / parts)
    for start in range(0, len(inputs["input_ids"]), size):
        piece = {name: column[start : start + size] for name, column in inputs.items()}
        labelled = (piece["labels"] != IGNORED).any(0).nonzero()
        width = wide(int(labelled[-1]) + 1 if len(labelled) else 1)
        found.append({name: column[:, :width] for name, column in piece.items()})
    return found


def is_no_memory(error: Exception) -> bool:
    """Whether memory ran out, of the GPU or of the machine."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error).lower() for words in _NO_MEMORY
    )
