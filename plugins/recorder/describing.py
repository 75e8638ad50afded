"""What a message holds beside words → words: voice by the client's speech-to-text, pictures by a vision model.

Speech-to-text is QQ's own, and asked only where the twin is on.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from loguru import logger

from bot.captions import Captions
from bot.errors import ArchiveError, EngineError
from bot.message import Message
from bot.segments import to_text
from bot.twin import Twin
from plugins.recorder.fetching import download

VOICE, PICTURE = "[语音]", "[图片]"
_PICTURES_MAX = 3
_PICTURE_BYTES = 8 * 1024 * 1024


class Describer:
    """Tells in words what was sent.

    Args:
        twin: the assembled twin.
        transcribed: (account, message id) → the words of a voice message, or None.
    """

    def __init__(self, twin: Twin, transcribed: Callable[[str, str], Awaitable[str | None]]) -> None:
        self._twin = twin
        self._transcribed = transcribed
        self._captions = Captions.of(twin.settings.engine)

    async def describe(self, message: Message, account: str) -> None:
        """Put words to a message that is stored already, before anybody answers it; what fails leaves it as it is."""
        if self._twin.presence.stale(message):
            return
        text = message.text
        if text == VOICE and self._twin.settings.chat.voice_to_text and self._twin.presence.scenes.is_on(message.scene):
            words = await self._transcribed(account, message.id)
            text += " ".join((words or "").split())
        elif PICTURE in text and self._captions is not None:
            text = await self._captioned(message, self._captions)
        if text != message.text:
            try:
                self._twin.archive.retell(message.scene, message.id, text)
            except ArchiveError as e:
                logger.warning("the words for a message were not stored: {}", e)

    async def _captioned(self, message: Message, captions: Captions) -> str:
        pictures = [s["data"] for s in message.segments if to_text([s], lambda _: None).text == PICTURE]
        if message.text.count(PICTURE) != len(pictures):  # somebody typed it, too
            return message.text
        text = message.text
        for data in pictures[:_PICTURES_MAX]:
            shown = await self._caption(data, captions)
            text = text.replace(PICTURE, f"[图片:{shown}]" if shown else "\0", 1)
        return text.replace("\0", PICTURE)

    async def _caption(self, data: Mapping[str, Any], captions: Captions) -> str | None:
        content = await download(data.get("url"), _PICTURE_BYTES)
        if content is None or len(content) > _PICTURE_BYTES:
            return None
        try:
            return await captions.caption(content)
        except EngineError as e:
            logger.warning("a picture has no words: {}", e)
            return None

    async def close(self) -> None:
        """Close the connection to the vision model."""
        if self._captions is not None:
            await self._captions.close()
