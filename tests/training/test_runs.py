"""A run folder after its machine went down while it wrote."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from training import runs


def checkpoint(run: Path, step: int) -> Path:
    """A whole checkpoint."""
    folder = run / runs.CHECKPOINTS / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    save_file({"a": torch.zeros(64)}, folder / "adapter_model.safetensors")
    (folder / "trainer_state.json").write_text('{"global_step": 1}', "utf-8")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"a": torch.zeros(64)}, folder / name)
    return folder


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def halved(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("damage", [emptied, halved, Path.unlink])
@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
)
def test_a_checkpoint_with_a_damaged_file_is_none(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    whole, broken = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    assert runs.last_checkpoint(tmp_path) == broken
    damage(broken / name)
    assert runs.last_checkpoint(tmp_path) == whole
    assert not broken.exists()


def test_lines_of_steps_done_again_and_half_a_line_are_cut(tmp_path: Path) -> None:
    file = tmp_path / runs.METRICS_FILE
    file.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n{"step": 3, "lo', "utf-8")
    runs.cut_metrics(tmp_path, 1)
    assert file.read_text("utf-8") == '{"step": 1, "loss": 2.0}\n'
    file.write_text('{"step": 1, "loss": 2.0}\n{"st', "utf-8")
    runs.cut_metrics(tmp_path, 5)
    assert file.read_text("utf-8") == '{"step": 1, "loss": 2.0}\n'
