"""A running training → progress reports, the LoRA with the best held-out loss, and what the machine gave."""

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from bot.config import Training
from training import world
from training.batches import Row, collate
from training.events import Events
from training.loss import measuring
from training.runs import BEST_FOLDER, METRICS_FILE, cut_metrics
from training.state import read_state, write_state

_LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate")


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is.

    Args:
        step: optimizer steps done.
        steps: optimizer steps in all.
        loss: mean loss since the last report, nats per trained token.
        tokens_per_s: trained tokens per second of this session.
        eta_s: seconds left, at this rate.
    """

    step: int
    steps: int
    loss: float
    tokens_per_s: float
    eta_s: float


class Watch(TrainerCallback):
    """Reports progress and keeps the LoRA with the lowest held-out loss in `best/`; ends a run that gets no better.

    Args:
        model: the PEFT model that is trained.
        tokens_done: gives the trained tokens of this session, in all processes, which ask at the same points.
        parts: gives the pieces that a batch is read in since memory ran out; held-out rows are read alone then.
        tune: held-out rows; without any, the last state is kept.
        run_dir: the run folder.
        progress: told at every log.
        settings: the run's: batch size, when to measure, patience.
        going_on: a LoRA is gone on with: it is measured before the first step, and kept where every step made it worse.
    """

    def __init__(
        self,
        model: Any,
        tokens_done: Callable[[], int],
        parts: Callable[[], int],
        tune: Sequence[Row],
        run_dir: Path,
        progress: Callable[[Progress], None] | None,
        settings: Training,
        *,
        going_on: bool = False,
    ) -> None:
        self._model, self._tokens_done, self._run_dir, self._progress = model, tokens_done, run_dir, progress
        self._parts, self._going_on = parts, going_on
        # By length, so that little is padding.
        self._rows, self._settings = sorted(tune, key=lambda r: len(r.ids)), settings
        self._began = 0.0
        self._stop_signal: int | None = None
        self._events: Events | None = None
        self.resumed_at = 0
        """Step this session began at."""
        self.tune: list[dict[str, float]] = []
        """Held-out loss in nats per token by step and epoch."""
        self.best_step: int | None = None
        """Step whose LoRA is kept, 0: as it was gone on with; None: none, since no held-out loss was a number."""

    @property
    def seconds(self) -> float:
        """Length of this session, without loading."""
        return time.monotonic() - self._began

    def stop(self, number: int) -> None:
        """Leave a checkpoint after the step that runs and then end as the signal would have.

        Args:
            number: of the signal.
        """
        self._stop_signal = number

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take up what an interrupted session measured; else measure a LoRA that is gone on with."""
        self._began, self.resumed_at = time.monotonic(), state.global_step
        file = self._run_dir / "tune.json"
        if file.is_file() and (self._run_dir / BEST_FOLDER).is_dir():
            self.tune = (read_state(file) or {}).get("tune", [])
            self.best_step = int(min(self.tune, key=lambda x: x["loss"])["step"]) if self.tune else None
        if world.is_first():
            cut_metrics(self._run_dir, state.global_step)
            self._events = Events(self._run_dir, state.global_step)
            for later in (x for x in self.tune if x["step"] > state.global_step):  # and is not measured again
                self._note(int(later["step"]), {"tune/loss": later["loss"]})
        if self._going_on and state.global_step == 0:
            self._keep_if_best(state, control)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure every `eval_steps`; obey a signal."""
        every = self._settings.eval_steps
        if every is not None and state.global_step % every == 0:
            self._keep_if_best(state, control)
        if self._stop_signal is not None:
            control.should_save = True

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End here, if that was asked."""
        self.end_if_asked()

    def end_if_asked(self) -> None:
        """End as the signal would have, if one came.

        Raises:
            SystemExit: it came.
        """
        if self._stop_signal is not None:
            raise SystemExit(128 + self._stop_signal)

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Write down and report."""
        loss = (logs or {}).get("loss")
        if logs is None or loss is None:
            return
        rate = self._tokens_done() / max(self.seconds, 1e-9)
        if not world.is_first():
            return
        line: dict[str, float] = {x: logs[x] for x in ("loss", "learning_rate", "grad_norm") if x in logs}
        line["trained_tokens_per_s"] = round(rate, 2)
        with (self._run_dir / METRICS_FILE).open("a", encoding="utf-8") as f:
            f.write(json.dumps({"step": state.global_step, **line}) + "\n")
        self._note(state.global_step, {f"train/{name}": x for name, x in line.items()})
        if self._progress is not None:
            a_step = self.seconds / max(state.global_step - self.resumed_at, 1)
            left = (state.max_steps - state.global_step) * a_step
            self._progress(Progress(state.global_step, state.max_steps, loss, rate, left))

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure."""
        if self._settings.eval_steps is None:
            self._keep_if_best(state, control)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure, where the run ended between two measurements."""
        self._keep_if_best(state, control)

    def _keep_if_best(self, state: TrainerState, control: TrainerControl) -> None:
        if any(x["step"] == state.global_step for x in self.tune):
            return
        best = min((x["loss"] for x in self.tune), default=math.inf)
        now = world.first(self._tune_loss)
        if now is None or now < best:
            if world.is_first():
                self._save(self._run_dir / BEST_FOLDER)
            self.best_step = state.global_step
        if now is None:
            return
        place = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 3), "seconds": round(self.seconds, 1)}
        self.tune.append({**place, "loss": now})
        if world.is_first():
            write_state(self._run_dir / "tune.json", {"tune": self.tune})
            self._note(state.global_step, {"tune/loss": now})
        patience = self._settings.early_stopping_patience
        since_best = [x["loss"] for x in self.tune if x["step"] > (self.best_step or 0)]
        if patience is not None and len(since_best) >= patience:
            control.should_training_stop = True

    def _note(self, step: int, figures: dict[str, float]) -> None:
        if self._events is not None:
            self._events.add(step, figures)

    def close(self) -> None:
        """End what is written."""
        if self._events is not None:
            self._events.close()

    def _tune_loss(self) -> float | None:
        """Mean loss on the tune split in nats per token, or None without any."""
        if not self._rows:
            return None
        total, labels = 0.0, 0
        # Before the first pass nobody knows whether a batch fits.
        alone = self._parts() > 1 or (self._going_on and not self.tune)
        size = 1 if alone else self._settings.per_device_train_batch_size or 1
        for start in range(0, len(self._rows), size):
            rows = self._rows[start : start + size]
            batch = collate([{"input_ids": r.ids, "labels": r.targets} for r in rows])
            batch = {name: tensor.to(self._model.device) for name, tensor in batch.items()}
            with measuring(self._model):
                total += float(self._model(input_ids=batch["input_ids"], targets=batch["labels"]))
            labels += sum(r.labels for r in rows)
        return total / labels

    def _save(self, folder: Path) -> None:
        beside = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(beside, ignore_errors=True)
        config = self._model.peft_config["default"]
        path = config.base_model_name_or_path
        config.base_model_name_or_path = Path(path).name  # no folder of this machine travels with the LoRA
        # With embedding layers on "auto", PEFT would ask a hub for the base's own.
        self._model.save_pretrained(beside, save_embedding_layers=False)
        config.base_model_name_or_path = path
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)


def library_versions() -> dict[str, str]:
    """Versions of what a run depends on."""
    return {name: version(name) for name in _LIBRARIES}


def peak_bytes() -> dict[str, int]:
    """The most memory this process held, of the machine and, where it has one, of the GPU."""
    found = {"peak_rss_bytes": _peak_rss_bytes()}
    if torch.cuda.is_available():
        found["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    return found


def _peak_rss_bytes() -> int:
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    try:
        # Not getrusage: what it says begins with the peak of the process that started this one.
        with open("/proc/self/status", encoding="ascii", errors="replace") as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def plot(loss: Sequence[dict[str, float]], tune: Sequence[dict[str, float]], file: Path) -> None:
    """Draw the loss by step.

    Args:
        loss: entries with `step` and `loss`.
        tune: the same, measured on the tune split.
        file: PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([x["step"] for x in loss], [x["loss"] for x in loss], label="train")
    if tune:
        axes.plot([x["step"] for x in tune], [x["loss"] for x in tune], "o-", label="tune")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("nats per trained token")
    axes.legend()
    figure.savefig(file, dpi=120)
