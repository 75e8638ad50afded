"""Image stickers the imitated people send → the sticker library, while their links still work."""

import asyncio
import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nonebot
from loguru import logger
from nonebot.adapters.onebot.v11.exception import ActionFailed, ApiNotAvailable, NetworkError

from bot.message import Message, Origin
from bot.stickers import key_of
from bot.twin import Twin
from plugins.recorder.fetching import TIMEOUT_S, download

_AT_ONCE = 2
"""Downloads at once: somebody sending twenty stickers must not take the line."""


class Collector:
    """Fetches what is not in the library yet.

    Args:
        twin: the assembled twin.
    """

    def __init__(self, twin: Twin) -> None:
        self._twin = twin
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def look(self, message: Message, account: str) -> None:
        """Note the stickers of a message of an imitated person; unknown ones are fetched in the background."""
        library = self._twin.stickers
        if not library.enabled or message.origin is not Origin.HUMAN:
            return
        stickers = [(key, s["data"]) for s in message.segments if (key := key_of(s)) is not None]
        if not stickers or message.sender_id not in self._twin.imitated():
            return
        for key, data in stickers:
            try:
                known = key in self._fetching or library.seen(key, message.sender_id, message.time)
            except OSError as e:  # a full disk must not keep the message from being heard
                logger.warning("that a sticker was sent again is not noted: {}", e.strerror)
                continue
            if not known:
                task = asyncio.create_task(self._fetch(key, data, message, account))
                self._fetching[key] = task
                task.add_done_callback(lambda _, key=key: self._fetching.pop(key, None))  # type: ignore[misc]

    async def close(self) -> None:
        """Stop what is being fetched."""
        tasks = list(self._fetching.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fetch(self, key: str, data: Mapping[str, Any], message: Message, account: str) -> None:
        """The worker's edge: a sticker that cannot be had is one less."""
        try:
            most = self._twin.stickers.max_file_bytes
            async with self._turns:
                content = await download(data.get("url"), most) or await self._asked(data, account)
                if content is None:
                    logger.info("a sticker could not be fetched")
                    return
                if self._twin.archive.optouts.is_out(message.sender_id):  # since it was asked for
                    return
                summary = str(data.get("summary") or "")
                self._twin.stickers.add(content, key, summary, message.sender_id, message.time)
        except Exception as e:  # noqa: BLE001 - the worker's edge
            logger.warning("a sticker was not kept: {}", type(e).__name__)

    async def _asked(self, data: Mapping[str, Any], account: str) -> bytes | None:
        """The file from the client itself (`get_image`): its content, a new link, or a path on this machine."""
        bot = nonebot.get_bots().get(account)
        if bot is None or not data.get("file"):
            return None
        try:
            found = await bot.call_api("get_image", file=str(data["file"]), _timeout=TIMEOUT_S)
        except (ActionFailed, ApiNotAvailable, NetworkError) as e:
            logger.info("the client has no file of a sticker: {}", type(e).__name__)
            return None
        if not isinstance(found, Mapping):
            return None
        if encoded := found.get("base64"):
            return base64.b64decode(str(encoded).removeprefix("base64://"))
        return self._read(found.get("file")) or await download(found.get("url"), self._twin.stickers.max_file_bytes)

    def _read(self, path: object) -> bytes | None:
        if not isinstance(path, str) or not path:
            return None
        try:
            with Path(path.removeprefix("file://")).open("rb") as f:
                return f.read(self._twin.stickers.max_file_bytes + 1)
        except OSError:
            return None
