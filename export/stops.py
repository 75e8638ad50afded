"""A checkpoint → the tokens at which its answers end, and the end of turn among them."""

import json
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
    stops = sorted(named(folder) | {end})
    file = folder / _GENERATION_FILE
    file.write_text(json.dumps(_read(file) | {"eos_token_id": stops}, ensure_ascii=False, indent=1), "utf-8")


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
