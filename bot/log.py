"""loguru, set up once: what is shown, and what never is.

Chat text, tokens and names never reach a log. NoneBot prints every message at SUCCESS and its whole configuration (the
token in it) at DEBUG; uvicorn prints a refused handshake's URL with its query. All three end here.
"""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

if TYPE_CHECKING:
    from loguru import Record

_SECRET = re.compile(r"(access_token=|Bearer |Token )[^&\s\"']+")
_FORMAT = "<g>{time:MM-DD HH:mm:ss}</g> <lvl>{level:<7}</lvl> {message}"


def setup(level: str, folder: Path | None = None, retention_days: int = 14) -> None:
    """Send the log to stderr, and to `folder`/twin.log where one is given (rotated daily)."""
    logger.remove()
    logger.configure(patcher=_mask)
    logger.add(sys.stderr, level=level, filter=quiet, format=_FORMAT, diagnose=False)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        logger.add(
            folder / "twin.log", level=level, filter=quiet, format=_FORMAT, rotation="1 day", encoding="utf-8",
            retention=f"{retention_days} days", diagnose=False, colorize=False,
        )  # fmt: skip


def quiet(record: "Record") -> bool:
    """Whether a record may be shown: of the frameworks, warnings and worse (below, they print texts and secrets)."""
    framework = (record["name"] or "").startswith(("nonebot", "uvicorn", "websockets"))
    return not framework or record["level"].no >= 30


def _mask(record: "Record") -> None:
    record["message"] = _SECRET.sub(r"\1***", record["message"])
