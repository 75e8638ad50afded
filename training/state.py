"""Small JSON files of a run folder, whole or not there."""

import json
import os
from pathlib import Path
from typing import Any


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
