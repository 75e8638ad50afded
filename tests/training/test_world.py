"""Two processes train as one with a batch as large as both, by torchrun over gloo; what fails in one fails in all."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import talks
import tinymodel
import torch
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from safetensors.torch import load_file
from transformers import TrainingArguments
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from bot.config import Training
from training import world
from training.qlora import train

ROOT = Path(__file__).parents[2]
SETTINGS = Training(
    r=4, lora_alpha=8, learning_rate=5e-3, max_steps=2, per_device_train_batch_size=3, gradient_accumulation_steps=2,
    model_max_length=160, logging_steps=1, lora_dropout=0.0, threads=1, compute_dtype="float32",
)  # fmt: skip


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 checkpoint."""
    return tinymodel.build(tmp_path_factory.mktemp("tiny"), "qwen3").hf


def together(base: Path, folder: Path, settings: Training, *more: str) -> list[dict[str, Any]]:
    """Train in two processes; what each ended with."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "lib"), os.environ.get("PYTHONPATH", "")])
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        str(ROOT / "tests" / "lib" / "together.py"), str(base), str(folder), settings.model_dump_json(), *more,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(folder.with_name(f"{folder.name}-rank-{n}.json").read_text("utf-8")) for n in range(2)]


def test_two_processes_learn_what_one_does_with_a_batch_as_large_as_both(base: Path, tmp_path: Path) -> None:
    told = together(base, tmp_path / "two", SETTINGS)
    assert [(x["rank"], x["world"], x["processes"]) for x in told] == [(0, 2, 2), (1, 2, 2)]
    assert all(x["patience_s"] >= 3600 for x in told), "while one fetches a base the others wait"
    assert {x["wrapped"] for x in told} == {"DistributedDataParallel"}
    assert {x["total"] for x in told} == {5 + 6}
    # Tokens a second are those of both.
    record = json.loads((tmp_path / "two" / "train.json").read_text("utf-8"))
    logged = json.loads((tmp_path / "two" / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    done = record["trained_tokens_per_s"] * record["seconds"]
    assert done == pytest.approx(record["trained_tokens"], rel=0.25)
    assert logged["trained_tokens_per_s"] >= record["trained_tokens_per_s"]
    assert told[0]["lora"] == told[1]["lora"]
    whole = SETTINGS.model_copy(update={"per_device_train_batch_size": 6})
    one = lora(train(talks.samples(base), base, tmp_path / "one", whole).peft)
    two = lora(tmp_path / "two" / "peft")
    alone = lora(train(talks.samples(base), base, tmp_path / "alone", SETTINGS).peft)
    # AdamW's first steps are signs: where a gradient is nearly 0, rounding decides them.
    assert apart(two, one) < 1e-3
    assert apart(alone, one) > 0.1


def lora(peft: Path) -> dict[str, torch.Tensor]:
    return load_file(peft / "adapter_model.safetensors")


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """How far two LoRAs' B, which begin at 0, are from each other."""
    names = [n for n in one if "lora_B" in n]
    difference = sum(float((one[n] - other[n]).square().sum()) for n in names)
    return (difference / sum(float(other[n].square().sum()) for n in names)) ** 0.5


def test_alone_nobody_is_waited_for() -> None:
    assert (world.size(), world.is_first(), world.first(lambda: 7)) == (1, True, 7)
    assert world.anywhere(True, torch.device("cpu"))
    assert world.total(7, torch.device("cpu")) == 7


class Filled(HfTrainerDeepSpeedConfig, HfDeepSpeedConfig):  # type: ignore[misc]
    """Transformers' configuration over accelerate's, whose place an empty class takes where DeepSpeed is missing."""


def test_the_shipped_deepspeed_configuration_takes_every_value_from_the_run(tmp_path: Path) -> None:
    # Without DeepSpeed, which needs CUDA to install: what transformers fills in before it hands the file over.
    made: Any = Filled.__new__(Filled)
    HfDeepSpeedConfig.__init__(made, str(world.ZERO2))  # type: ignore[no-untyped-call]
    made._dtype, made.mismatches = None, []
    given = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=3, gradient_accumulation_steps=2,
        max_grad_norm=0.5, report_to="none",
    )  # fmt: skip
    made.trainer_config_process(given)
    assert made.mismatches == []
    assert "auto" not in json.dumps(made.config)
    wanted = {"train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 2, "gradient_clipping": 0.5}
    assert {name: made.config[name] for name in wanted} == wanted
    assert made.is_zero2()
    assert not made.is_offload()
    assert "optimizer" not in made.config, "the run's own"
