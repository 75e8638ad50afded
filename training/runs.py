"""A run folder: whose it is, what was chosen, its checkpoints, and how its result is put in place.

`run.json` names the run and holds what was chosen; `checkpoints/` lie there while it runs; `metrics.jsonl` has a line
for every log, `tensorboard/` the same for TensorBoard; `peft/` is the LoRA with the best held-out loss; `train.json`,
written last, says what was done.
"""

import hashlib
import json
import math
import os
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from bot.config import Training
from training.batches import Row
from training.choices import Chosen
from training.state import read_state, write_state

RECORD_FILE = "train.json"
MARK_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
LORA_FOLDER = "peft"
BEST_FOLDER = "best"
"""The LoRA with the best held-out loss while the run lasts."""
CHECKPOINTS = "checkpoints"
EVENTS_FOLDER = "tensorboard"
_STALE = (RECORD_FILE, "tune.json", "loss.png", METRICS_FILE)
_OF_THE_MACHINE = {"threads", "logging_steps", "save_steps", "save_total_limit", "merge_and_save"}
"""Settings that change nothing of what comes out."""
_WEIGHTS, _STATE = "adapter_model.safetensors", "trainer_state.json"
_OPTIMIZER_FILES = (("optimizer.pt", "scheduler.pt"), ("latest",))
"""The trainer's own, or DeepSpeed's."""


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


def identity(rows: Sequence[Row], tune: Sequence[Row], base: str, settings: Training, known: Path | None) -> str:
    """What makes two runs the same: rows, base, settings as they were given, and the LoRA that is gone on with."""
    fixed = settings.model_dump_json(exclude=_OF_THE_MACHINE)
    digest = hashlib.sha256(f"{base}\0{fixed}\0{known.parent.name if known else ''}".encode())
    for row in (*rows, *tune):
        digest.update(repr((row.ids, row.targets)).encode())
    return digest.hexdigest()


def claim(folder: Path, name: str) -> dict[str, Any] | None:
    """Make the folder this run's: the record of the same run if it is finished, else None; another run's is cleared."""
    mark = folder / MARK_FILE
    if (read_state(mark) or {}).get("identity") == name:
        record, lora, best = read_state(folder / RECORD_FILE), folder / LORA_FOLDER, folder / BEST_FOLDER
        if record is None and lora.is_dir() and not best.is_dir():  # killed while it was put in place
            os.replace(lora, best)
        return record if lora.is_dir() else None
    clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_state(mark, {"identity": name})
    return None


def clear(folder: Path) -> None:
    """Take away what a run made; its name stays."""
    for stale in (CHECKPOINTS, BEST_FOLDER, LORA_FOLDER, EVENTS_FOLDER):
        shutil.rmtree(folder / stale, ignore_errors=True)
    for stale in _STALE:
        (folder / stale).unlink(missing_ok=True)


def chosen(folder: Path) -> Chosen | None:
    """What the run was begun with."""
    return Chosen.from_state((read_state(folder / MARK_FILE) or {}).get("chosen"))


def keep_chosen(folder: Path, found: Chosen) -> None:
    """Note what was chosen, so that a run that goes on has the same."""
    mark = folder / MARK_FILE
    write_state(mark, {**(read_state(mark) or {}), "chosen": found.as_state()})


def forget_chosen(folder: Path) -> None:
    """Let the run choose anew."""
    mark = folder / MARK_FILE
    write_state(mark, {k: v for k, v in (read_state(mark) or {}).items() if k != "chosen"})


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; broken ones are removed."""
    found = []
    for path in (folder / CHECKPOINTS).glob("checkpoint-*"):
        if _complete(path):
            found.append(path)
        else:
            shutil.rmtree(path)
    return max(found, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


def _complete(path: Path) -> bool:
    there = {p.name for p in path.iterdir()}
    return (
        {_WEIGHTS, _STATE} <= there
        and any(set(files) <= there for files in _OPTIMIZER_FILES)
        and any(name.startswith("rng_state") for name in there)
        and read_state(path / _STATE) is not None
        and _opens(path / _WEIGHTS)
        and all(zipfile.is_zipfile(p) for p in path.iterdir() if p.suffix in (".pt", ".pth"))
    )


def _opens(file: Path) -> bool:
    try:
        with safe_open(file, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def cut_metrics(folder: Path, step: int) -> None:
    """Forget lines of steps that are done again, and half written ones."""
    file = folder / METRICS_FILE
    if file.is_file():
        lines = file.read_text("utf-8", errors="replace").splitlines(keepends=True)
        file.write_text("".join(line for line in lines if _step(line) <= step), "utf-8")


def _step(line: str) -> float:
    """The step of a line; infinity for one that was half written."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def finish(folder: Path, record: dict[str, Any]) -> None:
    """Put the result in place; train.json last, it says that the run is finished."""
    shutil.rmtree(folder / LORA_FOLDER, ignore_errors=True)
    os.replace(folder / BEST_FOLDER, folder / LORA_FOLDER)
    write_state(folder / RECORD_FILE, record)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
