"""A file → its sha256; a model file's is remembered.

The hash of a model is 250 MB of reading and more; it is kept beside it, valid while size and time of the file are.
"""

import hashlib
import json
from pathlib import Path

from loguru import logger


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def digest(path: Path) -> str:
    """sha256 of a model file, remembered in `<file>.sha256.json` beside it."""
    stat = path.stat()
    note = path.with_name(path.name + ".sha256.json")
    seen = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    try:
        remembered = json.loads(note.read_text("utf-8"))
        if all(remembered.get(k) == v for k, v in seen.items()):
            return str(remembered["sha256"])
    except (OSError, ValueError, KeyError, AttributeError):
        pass
    value = sha256(path)
    try:
        note.write_text(json.dumps({**seen, "sha256": value}), "utf-8")
    except OSError as e:
        logger.debug("the hash of {} is not remembered: {}", path.name, e.strerror)
    return value
