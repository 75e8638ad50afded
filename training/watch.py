"""A running training → progress reports, the LoRA with the best tune loss, and what the machine gave."""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from transformers import TrainerCallback, TrainerControl, TrainerState

from bot.errors import TrainingError
from training.batches import Row, collate
from training.loss import measuring

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
    """Reports progress, and at the end of each epoch keeps the LoRA in `best/` if its tune loss is the lowest yet.

    Args:
        model: the PEFT model that is trained.
        tokens_done: gives the trained tokens of this session.
        tune: rows of the tune split; without any, the last state is kept.
        run_dir: the run folder.
        progress: told at every log.
        batch_size: rows of one tune forward pass.
    """

    def __init__(
        self,
        model: Any,
        tokens_done: Callable[[], int],
        tune: Sequence[Row],
        run_dir: Path,
        progress: Callable[[Progress], None] | None,
        batch_size: int,
    ) -> None:
        self._model, self._tokens_done, self._run_dir, self._progress = model, tokens_done, run_dir, progress
        # By length, so that little is padding.
        self._rows, self._batch_size = sorted(tune, key=lambda r: len(r.ids)), batch_size
        self._began = 0.0
        self.resumed_at = 0
        """Step this session began at."""
        self.tune: list[dict[str, float]] = []
        """Tune loss in nats per token by step and epoch."""
        self.best_step = 0
        """Step whose LoRA is kept."""

    @property
    def seconds(self) -> float:
        """Length of this session, without loading."""
        return time.monotonic() - self._began

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take up what an interrupted session measured."""
        self._began, self.resumed_at = time.monotonic(), state.global_step
        file = self._run_dir / "tune.json"
        if file.is_file() and (self._run_dir / "best").is_dir():
            self.tune = (read_state(file) or {}).get("tune", [])
            self.best_step = int(min(self.tune, key=lambda x: x["loss"])["step"]) if self.tune else 0

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Report; stop a run that has lost its way."""
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss} at step {state.global_step}; lower [training] learning_rate "
                f"(it is {args.learning_rate})"
            )
        if self._progress is not None:
            a_step = self.seconds / max(state.global_step - self.resumed_at, 1)
            rate = self._tokens_done() / max(self.seconds, 1e-9)
            left = (state.max_steps - state.global_step) * a_step
            self._progress(Progress(state.global_step, state.max_steps, loss, rate, left))

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure."""
        self._keep_if_best(state)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure, where `max_steps` ended the run within an epoch."""
        self._keep_if_best(state)

    def _keep_if_best(self, state: TrainerState) -> None:
        if any(x["step"] == state.global_step for x in self.tune):
            return
        best = min((x["loss"] for x in self.tune), default=math.inf)
        now = self._tune_loss()
        if now is None or now < best:
            self._save(self._run_dir / "best")
            self.best_step = state.global_step
        if now is not None:
            self.tune.append({"step": state.global_step, "epoch": round(state.epoch or 0.0, 3), "loss": now})
            write_state(self._run_dir / "tune.json", {"tune": self.tune})

    def _tune_loss(self) -> float | None:
        """Mean loss on the tune split in nats per token, or None without any."""
        if not self._rows:
            return None
        total, labels = 0.0, 0
        for start in range(0, len(self._rows), self._batch_size):
            rows = self._rows[start : start + self._batch_size]
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


def write_state(file: Path, state: dict[str, Any]) -> None:
    """Write a file of a run folder at once or not at all, also when the machine dies."""
    beside = file.with_name(f".{file.name}.tmp")
    with beside.open("w", encoding="utf-8") as f:
        json.dump(state, f, ensure_ascii=False, indent=1)
        f.flush()
        os.fsync(f.fileno())
    os.replace(beside, file)


def read_state(file: Path) -> dict[str, Any] | None:
    """What `write_state` wrote; None where there is nothing that can be read, so that the step is done again."""
    try:
        state = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def library_versions() -> dict[str, str]:
    """Versions of what a run depends on."""
    return {name: version(name) for name in _LIBRARIES}


def peak_rss_bytes() -> int:
    """The most memory this process held."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
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
