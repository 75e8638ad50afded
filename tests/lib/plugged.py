"""A plugin's module, imported beside a NoneBot that serves nothing: importing a plugin asks NoneBot for its driver."""

from importlib import import_module
from pathlib import Path
from typing import Any

import nonebot

from bot.config import Settings


class Nothing:
    """Takes the place of the twin's parts while a plugin is imported: any attribute, any call."""

    settings = Settings()

    def __getattr__(self, name: str) -> Any:
        return Nothing()

    def __call__(self, *_: Any, **__: Any) -> Any:
        return Nothing()


def plugged(name: str) -> Any:
    """A module of `plugins`, such as `chat.opening`."""
    nonebot.init(_env_file=None, driver="~none")
    config: Any = nonebot.get_driver().config
    if not hasattr(config, "twin"):
        config.twin, config.transport, config.outbox, config.config_path = Nothing(), Nothing(), Nothing(), Path("x")
    return import_module(f"plugins.{name}")
