"""bot/log.py: no chat text and no secret in the log."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from loguru import logger

from bot import log


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    log.setup("DEBUG", tmp_path / "logs", 3)
    yield tmp_path / "logs" / "twin.log"
    logger.remove()
    logger.configure(patcher=lambda _: None)


def written(file: Path) -> str:
    logger.complete()
    return file.read_text("utf-8")


def speak_as(module: str, level: str, text: str) -> None:
    """Log as code of another module would."""
    exec(
        compile("logger.log(level, text)", module, "exec"),
        {"logger": logger, "level": level, "text": text, "__name__": module},
    )


@pytest.mark.parametrize(
    "module", ["nonebot", "nonebot.message", "nonebot.adapters.onebot", "uvicorn.error", "websockets.x"]
)
def test_frameworks_are_heard_from_warning_on(file: Path, module: str) -> None:
    for level in ("TRACE", "DEBUG", "INFO", "SUCCESS"):
        speak_as(module, level, "聊天内容")
    speak_as(module, "WARNING", "要紧的事")
    assert "聊天内容" not in written(file)
    assert "要紧的事" in written(file)


def test_our_own_lines_are_shown_from_the_chosen_level_on(file: Path) -> None:
    speak_as("bot.presence", "INFO", "一句")
    speak_as("bot.presence", "TRACE", "细节")
    assert "一句" in written(file)
    assert "细节" not in written(file)


@pytest.mark.parametrize(
    "line",
    [
        "GET /onebot/v11/ws?access_token=s3cret HTTP/1.1", "Authorization: Bearer s3cret",
        "Authorization: Token s3cret", "ws?x=1&access_token=s3cret&y=2",
    ],
)  # fmt: skip
def test_tokens_are_masked(file: Path, line: str) -> None:
    logger.warning("{}", line)
    found = written(file)
    assert "s3cret" not in found
    assert "***" in found


def test_values_of_variables_are_not_shown_in_tracebacks(file: Path) -> None:
    def fail(text: str) -> None:
        raise ValueError("bad")

    try:
        fail("聊天内容" * 2)
    except ValueError as e:
        logger.opt(exception=e).error("failed")
    found = written(file)
    assert "ValueError: bad" in found
    assert "聊天内容聊天内容" not in found


def test_setting_up_twice_writes_once(file: Path) -> None:
    log.setup("DEBUG", file.parent, 3)
    logger.info("一次")
    assert written(file).count("一次") == 1
    logging.getLogger("x")
