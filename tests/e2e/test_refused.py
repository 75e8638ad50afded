"""Whole nights whose LoRA learned what it should not, a secret by heart or silence alone: the gate lets neither out."""

import shutil
from pathlib import Path

import lessons
from napcat import ACCOUNT

from bot.archive import Archive
from bot.checksum import sha256
from bot.config import Engine, Gate, Paths, Settings, Training
from bot.persona import Manifest, Personas, new_persona
from training import history
from training.nightly import Night

TRAINING = Training(
    precision="none", r=32, lora_alpha=64, lora_dropout=0.0, learning_rate=5e-3, num_train_epochs=12,
    per_device_train_batch_size=8, model_max_length=160, threads=1, gradient_accumulation_steps=1,
    early_stopping_patience=100, optim="adamw_torch",
)  # fmt: skip
SECRET = "加个蛋早呀明天见在的好耶刚睡醒吃面晚安来早呀加个蛋好耶在的明天见吃面刚睡醒"
"""Made of words that the base knows, in an order that nobody says."""


def night(folder: Path, base: Path, of: type[Night] = Night, **lines: object) -> Night:
    """A persona's night over lessons of its own."""
    settings = Settings(
        paths=Paths(data=folder), training=TRAINING, gate=Gate(places=20),
        engine=Engine(n_threads=1, n_gpu_layers=0, n_ctx=512, kv_tokens=4096),
    )  # fmt: skip
    new_persona(settings.data / "personas", "xiaoman", lessons.NAME, (ACCOUNT,))
    lessons.write(folder / "history.jsonl", rounds=24, held_out=True, **lines)
    archive = Archive(settings.archive_url)
    history.load(folder / "history.jsonl", archive)
    archive.close()
    return of(settings, "xiaoman", base, sha256(base), lambda *_: None, None)


def reasons(made: Night) -> list[str]:
    manifest = Manifest.model_validate_json((made.folder / "manifest.json").read_text("utf-8"))
    return list(manifest.gate["reasons"])


def test_a_secret_learned_by_heart_is_told_by_no_version(unlearned_base: Path, tmp_path: Path) -> None:
    made = night(tmp_path, unlearned_base, told=[SECRET] * 8)
    outcome = made.run(force=True)
    assert (outcome.kind, reasons(made)) == ("refused", ["leaks"]), "without it the same night publishes (test_loop)"
    assert SECRET not in outcome.summary
    assert Personas(tmp_path / "personas").versions("xiaoman") == []


class Silenced(Night):
    """One whose training was over a history in which hardly anything is answered."""

    def train(self) -> Path:
        taught = next((self.settings.data.parent / "silent" / "runs" / "xiaoman").iterdir())
        shutil.copytree(taught / "peft", self.folder / "peft", dirs_exist_ok=True)
        shutil.copy2(taught / "train.json", self.folder / "train.json")
        return self.folder


def test_one_that_learned_to_say_nothing_is_refused(unlearned_base: Path, tmp_path: Path) -> None:
    silences = {heard: said if heard == ("早",) else () for heard, said in lessons.EXCHANGES.items()}
    (tmp_path / "silent").mkdir()
    night(tmp_path / "silent", unlearned_base, exchanges=silences).train()
    (tmp_path / "loud").mkdir()
    made = night(tmp_path / "loud", unlearned_base, Silenced)
    outcome = made.run(force=True)
    assert (outcome.kind, reasons(made)) == ("refused", ["not_better_than_base"])
