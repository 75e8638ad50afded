"""What a language model that cleans is told of each task: training/prompts/, or the user's own in data/prompts/."""

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeAlias

from bot.config import ModelCleaning
from bot.errors import TrainingError
from training.judge import Sample, key_of

Task: TypeAlias = Literal["score", "question", "fragments", "pairing"]
TASKS: tuple[Task, ...] = ("score", "fragments", "pairing", "question")
"""In the order they are asked: a question is written where no message was found that an answer answers."""
FOLDER = "prompts"


class Words:
    """The tasks' prompts: a user's own, else those that ship.

    Args:
        data: the data folder.
        settings: `[cleaning]`, for the model's name.
    """

    def __init__(self, data: Path, settings: ModelCleaning) -> None:
        self._folder, self._model = data / FOLDER, settings.model or ""
        self._read: dict[Task, str] = {}

    def of(self, task: Task) -> str:
        """A task's prompt.

        Raises:
            TrainingError: the user's own cannot be read.
        """
        if task not in self._read:
            file = self._folder / f"{task}.txt"
            try:
                found = file.read_text("utf-8-sig") if file.exists() else _shipped(task)
            except (OSError, UnicodeDecodeError) as e:
                raise TrainingError(f"{str(file)!r} cannot be read as UTF-8; mend it, or remove it for ours") from e
            self._read[task] = found.strip()
        return self._read[task]

    def install(self) -> None:
        """Put what ships where a user finds it; what is there stays.

        Raises:
            TrainingError: the folder cannot be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for task in TASKS:
                file = self._folder / f"{task}.txt"
                if not file.exists():
                    file.write_text(_shipped(task), "utf-8")
        except OSError as e:
            raise TrainingError(f"{str(self._folder)!r} cannot be written: {e.strerror or e}") from e

    def sample(self, task: Task, title: str, context: Iterable[str], text: str, wanted: dict[str, Any]) -> Sample:
        """A question, under the hash of all it is asked with."""
        lines = tuple(context)
        return Sample(key_of(self._model, self.of(task), title, *lines, text), title, lines, text, wanted)


def _shipped(task: Task) -> str:
    return resources.files("training.prompts").joinpath(f"{task}.txt").read_text("utf-8")
