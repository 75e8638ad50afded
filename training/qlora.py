"""Windows → a PEFT LoRA that speaks as the person. TRL's SFTTrainer with a loss on the person's tokens only.

The base is frozen, as `training.precision` says; the LoRA on its linear layers is trained in float32. What is left open
in bot.toml is chosen from the data and the device (`training.choices`), told and kept. What is made lies in the run
folder (`training.runs`); a killed run goes on from its newest checkpoint. Nothing is sent anywhere.
"""

import errno
import math
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from loguru import logger
from safetensors import SafetensorError

from bot.config import Training
from bot.errors import TrainingError
from training import choices, device, fp8, known, precision, runs, targets, trainer, world
from training.base import fingerprint, load
from training.choices import Chosen
from training.loss import Unusable
from training.memory import AT_ONCE_TOKENS, shape_of
from training.precision import Precision
from training.runs import Run
from training.samples import Window
from training.selection import Extra, Selected, select
from training.watch import Progress, Watch, library_versions, peak_bytes, plot

_NOTHING = Extra()


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is given besides windows and settings.

    Args:
        extra: other rows.
        going_on: folder of the PEFT LoRA to go on with; None: a fresh one.
        deepspeed: a DeepSpeed configuration.
        tell: gets a line about the device, each choice and the parameters.
        admit: see `training.trainer.Trainer`.
        at_once: tokens that one pass reads at most, if more than one row, where one process trains on a processor.
    """

    extra: Extra = _NOTHING
    going_on: Path | None = None
    deepspeed: Path | None = None
    tell: Callable[[str], None] = logger.info
    admit: Callable[[int], None] | None = None
    at_once: int = AT_ONCE_TOKENS


_PLAIN = Options()


def train(
    windows: Sequence[Window],
    checkpoint: Path,
    run_dir: Path,
    settings: Training,
    progress: Callable[[Progress], None] | None = None,
    options: Options = _PLAIN,
) -> Run:
    """Train a LoRA, or go on with a run that was interrupted, or give back one that is finished.

    SIGTERM and Ctrl-C end it after the step that runs, with a checkpoint; a second one ends it at once.

    Args:
        windows: from `training.samples.windows`.
        checkpoint: base, a Hugging Face folder (`training.base.checkpoint`).
        run_dir: the run folder. What lies there is gone on with if windows, base and settings are the same.
        settings: bot.toml's [training].
        progress: told every `logging_steps`.
        options: what else.

    Raises:
        TrainingError: nothing to learn, a base that cannot be trained, no room, or a loss that is no number.
    """
    selected = select(windows, settings, options.extra)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    name = runs.identity(selected.train, selected.tune, fingerprint(checkpoint), settings, options.going_on)
    finished = world.first(lambda: runs.claim(run_dir, name))
    if finished is not None:
        return Run(run_dir, run_dir / runs.LORA_FOLDER, finished)
    session = _Session(selected, checkpoint, run_dir, progress, options)
    while True:
        try:
            with _room(run_dir):
                return session.run(settings)
        except (RuntimeError, MemoryError) as e:
            if not trainer.is_no_memory(e):
                raise
            raise TrainingError(
                "memory ran out beside the passes (loading the base, in an optimizer step, or measuring the held-out "
                "loss); set [training] precision = 'nf4' on a GPU, lower r, model_max_length or "
                "per_device_train_batch_size, or choose a smaller base"
            ) from e
        except Unusable as e:
            if not e.early or session.how.dtype == torch.float32:
                raise
            logger.warning("{} in {}; it begins anew in float32", e, session.how.dtype_name)
            world.first(lambda: runs.clear(run_dir))
            settings = settings.model_copy(update={"compute_dtype": "float32"})
            world.first(lambda: runs.forget_chosen(run_dir))
        finally:
            device.free()


class _Session:
    """One start of a run, with what its starts share."""

    def __init__(
        self, selected: Selected, checkpoint: Path, run_dir: Path, progress: Callable[[Progress], None] | None,
        options: Options,
    ) -> None:  # fmt: skip
        self.selected, self.checkpoint, self.run_dir = selected, checkpoint, run_dir
        self.progress, self.options = progress, options
        self.device = device.here()
        self.how: Precision
        # Several processes must pass equally often, or they wait for each other.
        self.at_once = options.at_once if self.device.kind == "cpu" and world.size() == 1 else None

    def run(self, given: Training) -> Run:
        before = world.first(lambda: runs.chosen(self.run_dir))
        self.how = precision.chosen(before.settings if before else given, self.device)
        precision.require(self.how, self.device)
        model = self._base(before.settings if before else given)
        found = before or world.first(lambda: self._choose(given, model))
        made, watch = self._trainer(model, found)
        last = world.first(lambda: runs.last_checkpoint(self.run_dir))
        if last is not None and world.is_first():
            self.options.tell(f"training goes on from {last.name}")
        with _signals(watch.stop), closing(watch):
            made.train(resume_from_checkpoint=str(last) if last else None)
        if watch.best_step is None:
            raise made.unusable(math.nan)
        if watch.best_step == 0 and world.is_first():
            logger.warning(
                "no step made the held-out loss better ({}): the LoRA is kept as it was gone on with; lower [training] "
                "learning_rate, or set start = 'fresh'",
                ", ".join(f"{x['loss']:.3f}" for x in watch.tune),
            )
        record = self._record(made, watch, found)
        world.first(lambda: self._finish(record))
        watch.end_if_asked()  # during the last measurement, after the last step
        return Run(self.run_dir, self.run_dir / runs.LORA_FOLDER, record)

    def _base(self, settings: Training) -> Any:
        attention = settings.attn_implementation
        if attention == "auto":
            attention = "flash_attention_2" if choices.flash_attention(self.device, self.how.dtype) else "sdpa"
        model = load(self.checkpoint, self.how, attn_implementation=attention, trust=settings.trust_remote_code)
        if self.how.weights == "fp8":
            fp8.shrink(model)
        return model

    def _choose(self, given: Training, model: Any) -> Chosen:
        rows = self.selected.train
        data = choices.Data(
            self.selected.answers, len(rows), max(len(r.ids) for r in rows), held_out=bool(self.selected.tune)
        )
        going_on = None if self.options.going_on is None else known.on(model, self.options.going_on, given)
        found = choices.choose(
            given, data, shape_of(model), self.device, self.how, self.device.free_bytes(), going_on=going_on,
            processes=world.size(), at_once=self.at_once,
        )  # fmt: skip
        runs.keep_chosen(self.run_dir, found)
        return found

    def _trainer(self, model: Any, found: Chosen) -> tuple[trainer.Trainer, Watch]:
        settings, going_on = found.settings, self.options.going_on
        lora = None
        if going_on is None:
            lora = targets.lora_config(settings, targets.targets(model, settings), model)
        else:
            model = known.onto(model, going_on)
        folder = self.run_dir / runs.CHECKPOINTS
        made = trainer.trainer(
            model, lora, self.selected.train, folder, settings, self.options.deepspeed, self.how, self.at_once
        )
        if self.options.admit is not None:
            made.admit = self.options.admit
        trained, total = targets.counts(made.model)
        _enough_room(self.run_dir, trained, settings.save_total_limit)
        if world.is_first():
            self._tell(found, trained, total)
        watch = Watch(
            made.model, made.tokens_together, lambda: made.parts, self.selected.tune, self.run_dir, self.progress,
            settings, going_on=going_on is not None,
        )  # fmt: skip
        made.add_callback(watch)
        return made, watch

    def _tell(self, found: Chosen, trained: int, total: int) -> None:
        tell = self.options.tell
        if self.device.kind == "cpu":
            tell(f"no GPU is found: it trains on the processor ({self.device})")
        for reason in found.reasons:
            tell(reason)
        parts = ", ".join(f"{n} {what}" for what, n in self.selected.counts.items() if n)
        tell(f"{len(self.selected.train)} windows ({parts}), {self.selected.answers} answers")
        tell(f"trainable {trained:,} of {total:,} parameters ({100 * trained / total:.3f} %)")

    def _record(self, made: trainer.Trainer, watch: Watch, found: Chosen) -> dict[str, Any]:
        state, rows = made.state, self.selected.train
        epoch = state.epoch or 0.0
        labels = sum(r.labels for r in rows)
        trained, total = targets.counts(made.model)
        return {
            "settings": found.settings.model_dump(mode="json"),
            "reasons": list(found.reasons),
            "precision": self.how.weights,
            "compute_dtype": self.how.dtype_name,
            "device": self.device.kind,
            "device_name": self.device.name,
            "processes": world.size(),
            "threads": torch.get_num_threads(),
            "checkpoint": fingerprint(self.checkpoint),
            "trainable_parameters": trained,
            "total_parameters": total,
            "steps": state.global_step,
            "epochs": epoch,
            "windows": len(rows),
            "rows": self.selected.counts,
            "answers": self.selected.answers,
            "batch_parts": made.parts,
            "going_on": None if self.options.going_on is None else self.options.going_on.parent.name,
            "labels_per_epoch": labels,
            "trained_tokens": round(labels * epoch),
            "seconds": round(watch.seconds, 1),
            "trained_tokens_per_s": round(made.tokens_together() / max(watch.seconds, 1e-9), 2),
            "resumed_at": watch.resumed_at,
            "loss": [{k: x[k] for k in ("step", "loss", "learning_rate")} for x in state.log_history if "loss" in x],
            "tune": watch.tune,
            "best_step": watch.best_step,
            **peak_bytes(),
            "libraries": library_versions(),
        }

    def _finish(self, record: dict[str, Any]) -> None:
        plot(record["loss"], record["tune"], self.run_dir / "loss.png")
        runs.finish(self.run_dir, record)


@contextmanager
def _signals(stop: Callable[[int], None]) -> Iterator[None]:
    """Tell the first SIGTERM or Ctrl-C to `stop`; a second one does what it did before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def asked(number: int, _: FrameType | None) -> None:
        stop(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, asked)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _enough_room(run_dir: Path, trained: int, checkpoints: int) -> None:
    """Refuse to begin where checkpoints (the LoRA and two moments, float32) and the result will not fit."""
    needed, free = trained * 4 * (3 * (checkpoints + 1) + 2), shutil.disk_usage(run_dir).free
    if free < needed:
        raise TrainingError(
            f"checkpoints in {str(run_dir)!r} take {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free; make "
            "room, or lower [training] save_total_limit or r"
        )


@contextmanager
def _room(run_dir: Path) -> Iterator[None]:
    """Say in one line that the disk is full; what was half written goes."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as e:
        full = getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(e)
        if not full and "PytorchStreamWriter" not in str(e):
            raise
        runs.last_checkpoint(run_dir)
        raise TrainingError(
            f"the disk is full: the run in {str(run_dir)!r} stopped at its last checkpoint; make room and start it "
            "again, it goes on from there"
        ) from e
