"""Training beside TRL's SFTTrainer as its documentation sets it up: trained tokens a second, memory, held-out loss.

Same base, rows, labels, precision, LoRA and steps; each side in a process of its own, in turn, since memory is a
process's peak. Theirs keeps its own memory options (gradient checkpointing, its chunked loss). Tokens count that train.
"""

import json
import os
import pickle
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.figures import Figure, at_least, at_most, show
from bench.history import FAMILY
from bot import base, config
from bot.archive import Archive
from bot.child import environment
from bot.cli.options import base_of
from bot.persona import Personas, new_persona
from bot.twin import SHIPPED, install_shipped
from training import history
from training.base import checkpoint
from training.nightly import Night
from training.samples import Split, Window, trained_positions

_STEPS, _ROUNDS, _LENGTH, _BATCH = 6, 3, 512, 4
_MINUTES = (5, 15, 30)
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
_WITH = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "learning_rate": 2e-4}


def main(settings: config.Settings, root: Path, *, full: bool, as_json: bool) -> None:
    """Measure everything and print it.

    Args:
        settings: bot.toml's; the base is [engine] base.
        root: its folder.
        full: also the held-out loss after 5, 15 and 30 minutes (half an hour).
        as_json: for programs.
    """
    path = base.resolve(settings.engine.base, settings.data, root)
    windows = _windows(settings, root)
    folder = checkpoint(path, settings.data / "models")
    figures = _beside_trl(folder, windows)
    if full:
        figures += _curve(folder, windows)
    show("train", figures, as_json=as_json, of=settings.training)


def _windows(settings: config.Settings, root: Path) -> list[Window]:
    """Of the family history (bench/history.py) where there is one, else of the demo's."""
    work = settings.data / "bench-train"
    chosen = settings.training.model_copy(update={"model_max_length": _LENGTH})
    inner = settings.model_copy(update={"paths": config.Paths(data=work), "training": chosen})
    install_shipped(work / "personas")
    file, name = (FAMILY, "family") if FAMILY.is_file() else (SHIPPED.parent / "history.jsonl", "xiaoman")
    archive = Archive(inner.archive_url)
    result = history.load(file, archive)
    archive.close()
    if name not in Personas(work / "personas").names():
        ((me, _),) = result.reading.owners.most_common(1)
        new_persona(work / "personas", name, result.reading.names[me], (me,))
    night = Night(inner, name, *base_of(settings, root / "bot.toml"), lambda *_: None, None)
    return night.windows


def _beside_trl(folder: Path, windows: list[Window]) -> list[Figure]:
    rounds = [[_measured(side, folder, windows) for side in ("ours", "theirs")] for _ in range(_ROUNDS)]
    rate, their_rate, memory, their_memory, loss, their_loss = (
        statistics.median(pair[side][what] for pair in rounds)
        for what in ("tokens_per_s", "peak_bytes", "loss") for side in (0, 1)
    )  # fmt: skip
    rates = [ours["tokens_per_s"] for ours, _ in rounds]
    return [
        at_least("trained tokens", "tokens/s", rate, "TRL SFTTrainer", their_rate, 2.0, n=_ROUNDS,
                 spread=(max(rates) - min(rates)) / rate),
        at_most("peak memory of the process", "MB", memory / 1e6, "TRL SFTTrainer", their_memory / 1e6, 0.4, n=_ROUNDS),
        Figure(f"loss of step {_STEPS}", loss, "nats/token", "TRL SFTTrainer", their_loss, n=_ROUNDS),
    ]  # fmt: skip


def _measured(side: str, folder: Path, windows: list[Window]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as made:
        rows = Path(made) / "windows"
        rows.write_bytes(pickle.dumps(windows))
        command = [sys.executable, "-m", "bench.training", side, str(folder), str(rows), str(Path(made) / "run")]
        # Ours as the daemon starts a night.
        env = {**(environment() if side == "ours" else os.environ), **_OFFLINE}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        if done.returncode:
            raise SystemExit(f"the {side} side failed:\n{done.stderr[-3000:]}")
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found


def _curve(folder: Path, windows: list[Window]) -> list[Figure]:
    """Held-out loss after so many minutes of training, by the choices `twin train` makes."""
    with tempfile.TemporaryDirectory() as made:
        rows, run = Path(made) / "windows", Path(made) / "run"
        rows.write_bytes(pickle.dumps(windows))
        command = [sys.executable, "-m", "bench.training", "curve", str(folder), str(rows), str(run)]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**environment(), **_OFFLINE}
        )
        try:
            process.wait(_MINUTES[-1] * 60 + 120)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            process.wait()
        tune = json.loads((run / "tune.json").read_text("utf-8"))["tune"]
    found = []
    for minutes in _MINUTES:
        losses = [x["loss"] for x in tune if x["seconds"] <= minutes * 60]
        value = min(losses) if losses else None
        found.append(Figure(f"held-out loss after {minutes} minutes", value, "nats/token"))
    return found


# -- in a process of its own ----------------------------------------------------------------------


def _ours(folder: Path, windows: list[Window], run: Path) -> dict[str, float]:
    from training.qlora import Options, train

    settings = config.Training(
        max_steps=_STEPS, per_device_train_batch_size=_BATCH, gradient_accumulation_steps=1, logging_steps=1,
        precision="none", **_WITH,
    )  # fmt: skip
    # The held-out loss is left out on both sides.
    done = train(_train_only(windows), folder, run, settings, options=Options(tell=lambda _: None))
    return {
        "tokens_per_s": done.record["trained_tokens_per_s"], "peak_bytes": done.record["peak_rss_bytes"],
        "loss": done.record["loss"][-1]["loss"],
    }  # fmt: skip


def _theirs(folder: Path, windows: list[Window], run: Path) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from training.watch import peak_bytes

    class Counting(SFTTrainer):
        counted = 0

        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
            self.counted += int((inputs["labels"] != -100).sum())
            return super().training_step(model, inputs, *rest)  # type: ignore[no-untyped-call]

    rows = []
    for window in windows:
        positions = set(trained_positions(window))
        if positions:
            ids = list(window.ids[: max(positions) + 1])
            rows.append({"input_ids": ids, "labels": [t if i in positions else -100 for i, t in enumerate(ids)]})
    args = SFTConfig(
        output_dir=str(run), max_steps=_STEPS, per_device_train_batch_size=_BATCH, learning_rate=_WITH["learning_rate"],
        lr_scheduler_type="cosine", logging_steps=1, report_to="none", save_strategy="no", max_length=None, seed=42,
        model_init_kwargs={"dtype": "bfloat16"}, disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = Counting(
        model=str(folder), args=args, train_dataset=Dataset.from_list(rows), peft_config=lora,
        processing_class=AutoTokenizer.from_pretrained(folder),
    )  # fmt: skip
    began = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - began
    losses = [x["loss"] for x in trainer.state.log_history if "loss" in x]
    return {
        "tokens_per_s": trainer.counted / seconds, "peak_bytes": peak_bytes()["peak_rss_bytes"], "loss": losses[-1],
    }  # fmt: skip


def _forever(folder: Path, windows: list[Window], run: Path) -> dict[str, float]:
    from training.qlora import train

    settings = config.Training(num_train_epochs=20, eval_steps=10, early_stopping_patience=None, max_steps=None)
    train(windows, folder, run, settings)
    return {}


def _train_only(windows: list[Window]) -> list[Window]:
    from dataclasses import replace

    kept = (replace(w, labels=tuple(x for x in w.labels if x.split is Split.TRAIN)) for w in windows)
    return [w for w in kept if w.labels]


if __name__ == "__main__":
    side, folder, rows, run = sys.argv[1], *(Path(a) for a in sys.argv[2:5])
    work = {"ours": _ours, "theirs": _theirs, "curve": _forever}[side]
    print(json.dumps(work(folder, pickle.loads(rows.read_bytes()), run)))
