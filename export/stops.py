"""A checkpoint → the tokens at which its answers end, and the end of turn among them."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

_GENERATION_FILE, _CONFIG_FILE = "generation_config.json", "config.json"


def named(checkpoint: Path) -> frozenset[int]:
    """Ids at which an answer may end: `eos_token_id` of generation_config.json and config.json."""
    return _eos(checkpoint / _GENERATION_FILE) | _eos(checkpoint / _CONFIG_FILE)


def served(folder: Path) -> frozenset[int]:
    """Ids at which transformers and vLLM do end an answer: config.json counts where there is nothing else."""
    return _eos(folder / (_GENERATION_FILE if (folder / _GENERATION_FILE).is_file() else _CONFIG_FILE))


def put(folder: Path, end: int) -> None:
    """Let who serves a folder end answers at `end`, too: a bare base's files may name its end of text alone."""
    write(folder, generation(folder), named(folder) | {end})


def generation(checkpoint: Path) -> dict[str, Any]:
    """What generation_config.json sets; empty where there is none that can be read."""
    return _read(checkpoint / _GENERATION_FILE)


def write(folder: Path, generation: dict[str, Any], stops: Collection[int]) -> None:
    """A generation_config.json that ends answers at `stops` and leaves the rest."""
    text = json.dumps({**generation, "eos_token_id": sorted(stops)}, ensure_ascii=False, indent=1)
    (folder / _GENERATION_FILE).write_text(text, "utf-8")


def _eos(file: Path) -> frozenset[int]:
    config = _read(file)
    ids = config.get("eos_token_id", config.get("text_config", {}).get("eos_token_id"))
    return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
