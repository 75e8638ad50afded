"""A run's figures → TensorBoard's event files, in the run folder's `tensorboard/`, where tensorboard is installed."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.runs import EVENTS_FOLDER


class Events:
    """The event files of a run; a session that goes on adds one, which TensorBoard reads behind the others.

    Args:
        run_dir: the run folder.
        step: this session begins after; what an earlier one noted of later steps is not shown.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        self._writer: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(run_dir / EVENTS_FOLDER), purge_step=step + 1)

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Note figures of a step, by their names there, such as `train/loss`; at once, since a run may be killed."""
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def close(self) -> None:
        """End the file."""
        if self._writer is not None:
            self._writer.close()
