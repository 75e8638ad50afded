"""The loop closed: history in, a night, a version the running daemon answers with; and a night that is refused.

The base knows the words of tests/lib/lessons.py but not which belongs to which: what is answered right was learned in
the night. Figures are those of a tiny model; what is proven is that every part hands on what the next one needs.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import lessons
import pytest
from daemon import ROOT, Daemon, persona, settings
from napcat import ACCOUNT, NapCat
from safetensors.torch import load_file, save_file

from bot.message import Scene
from training.samples import Split, split_of

TRAINING = {
    "precision": "none", "r": 32, "lora_alpha": 64, "lora_dropout": 0.0, "learning_rate": 5e-3, "num_train_epochs": 12,
    "per_device_train_batch_size": 8, "model_max_length": 160, "logging_steps": 20, "threads": 1,
}  # fmt: skip
NIGHT_S = 600.0
"""A night here takes half a minute on an idle machine."""


@pytest.fixture(scope="module")
def daemon(unlearned_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A running daemon with 小满, who has a history and no version yet."""
    folder = tmp_path_factory.mktemp("loop")
    # One thread, as in training; the night reads the same file as the daemon does.
    found = Daemon(folder, settings(unlearned_base, training=TRAINING, retrain={"min_new_messages": 10}))
    persona(found.data / "personas" / "xiaoman", lessons.NAME, [ACCOUNT])
    lines = lessons.write(folder / "history.jsonl", rounds=24, held_out=True)
    imported = found.run("import", str(folder / "history.jsonl"))
    assert imported.returncode == 0, imported.stderr
    with found.archive() as archive:
        assert sum(s.messages for s in archive.scenes()) == lines
    with found:
        yield found
        found.end()


@pytest.fixture(scope="module")
def first_version(daemon: Daemon) -> str:
    """The first night's version."""
    ended = daemon.run("night", "--persona", "xiaoman", "--json", within_s=NIGHT_S)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    outcome = json.loads(ended.stdout.splitlines()[-1])
    assert outcome["outcome"] == "published", outcome["summary"]
    return str(outcome["version"])


@pytest.fixture
async def client(daemon: Daemon) -> AsyncIterator[NapCat]:
    async with NapCat(daemon.url, daemon.token) as connected:
        yield connected


def test_the_held_out_exchanges_are_in_no_training_split(daemon: Daemon) -> None:
    with daemon.archive() as archive:
        scene = Scene("private", str(lessons.FRIEND))
        held_out = [m for m in archive.history(scene) if (m.text,) in lessons.HELD_OUT]
    assert [m.text for m in held_out] == [heard[0] for heard in lessons.HELD_OUT]
    assert {split_of(scene, m.id) for m in held_out} == {Split.TEST}


def test_a_night_publishes_a_version_that_beats_its_base(daemon: Daemon, first_version: str) -> None:
    folder = daemon.data / "personas" / "xiaoman"
    assert (folder / "current").read_text("utf-8").strip() == first_version
    manifest = json.loads((folder / "versions" / first_version / "manifest.json").read_text("utf-8"))
    assert manifest["metrics"]["loss"]["value"] < manifest["metrics"]["loss_base"] - 0.5
    assert manifest["metrics"]["auc_both"]["value"] > 0.9
    assert manifest["parity"]["passed"]
    assert manifest["calibration"] is not None
    assert (folder / "versions" / first_version / "report.md").stat().st_size > 200


async def test_the_running_daemon_answers_as_learned(daemon: Daemon, client: NapCat, first_version: str) -> None:
    right = 0
    for number, (heard, said) in enumerate(lessons.EXCHANGES.items(), start=101):
        scene = f"private:{number}"
        for bubble in heard:
            await client.say(bubble, user=number)
        await asyncio.to_thread(daemon.wait, lambda s=scene: bool(daemon.outcomes(s)), 20.0)
        with daemon.archive() as archive:
            (decision, *_) = archive.decisions(Scene.parse(scene))
        assert decision.version == first_version
        # The decision is drawn: what was learned is on which side of one half it lies.
        assert (decision.why["p_speak"] > 0.5) == bool(said), (heard, decision.why)
        # Words where there were words to learn; a silence may be broken by the draw, with words nobody taught.
        spoken = tuple(m.text for m in daemon.stored(scene) if m.sender_id == ACCOUNT)
        if decision.outcome == "silent":
            assert spoken == ()
        elif said:
            assert spoken == said, heard
            right += 1
    assert right >= 4
    client.bubbles.clear()


def killed_after_training(daemon: Daemon) -> Path:
    """The run folder of a night that was killed when its LoRA was trained and being exported."""
    words = ["night", "--persona", "xiaoman", "--force", "--json", "--config", str(daemon.config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    line = [sys.executable, "-m", "bot", *words]
    with subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as night:
        assert night.stdout is not None
        exporting = any(json.loads(told).get("step") == "export" for told in night.stdout)
        night.kill()
    assert exporting
    return max(p for p in (daemon.data / "runs" / "xiaoman").iterdir() if (p / "peft").is_dir())


async def test_a_damaged_result_is_refused_and_the_first_version_stays(
    daemon: Daemon, client: NapCat, first_version: str
) -> None:
    run = await asyncio.to_thread(killed_after_training, daemon)
    weights = run / "peft" / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({name: -4 * t if "lora_B" in name else t for name, t in tensors.items()}, weights)
    ended = await asyncio.to_thread(daemon.run, "night", "--persona", "xiaoman", "--json", within_s=NIGHT_S)
    outcome = json.loads(ended.stdout.splitlines()[-1])
    assert (ended.returncode, outcome["outcome"]) == (0, "refused"), outcome
    folder = daemon.data / "personas" / "xiaoman"
    assert (folder / "current").read_text("utf-8").strip() == first_version
    assert [p.name for p in (folder / "versions").iterdir()] == [first_version]
    assert outcome["version"] == run.name, "the killed night was gone on with"
    assert first_version in await client.ask("/twin status", user=lessons.FRIEND, group=201)


async def test_a_broken_version_on_disk_is_refused_by_name(daemon: Daemon, client: NapCat, first_version: str) -> None:
    folder = daemon.data / "personas" / "xiaoman"
    broken = folder / "versions" / "99991231-000000"
    shutil.copytree(folder / "versions" / first_version, broken)
    (broken / "lora.gguf").write_bytes(b"GGUF")
    (folder / "current").write_text(f"{broken.name}\n", "utf-8")
    assert first_version in await client.ask("/twin status", user=lessons.FRIEND, group=202)
    await asyncio.to_thread(daemon.wait, lambda: broken.name in daemon.log())
