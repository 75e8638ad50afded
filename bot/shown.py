"""Messages as stored → as the model sees them, live and in training: redacted, stripped, without what is hidden.

`bot.memory` and `training.corpus` both read through this, before anything is cut or rendered: the two would otherwise
learn from one text and answer to another. The archive keeps what was written.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache

from bot.config import Cleaning
from bot.message import Message
from bot.redact import redact
from bot.stickers import named

_PLACEHOLDER = re.compile(
    r"\[(?:图片|语音|视频|聊天记录|卡片|位置|未知|戳一戳|表情|动画表情|(?:文件|卡片|动画表情|图片):[^\[\]]*)\]"
)
_MENTION = re.compile(r"@[^\s@,，。！？!?：:]{1,24} ?")
TEXT_MAX = 5000
"""Characters of a message that are looked at: QQ lets nobody send more, and a megabyte held the daemon for minutes."""
_name = lru_cache(maxsize=4096)(redact)
"""Names come again and again; some hold a number (`张三138…`)."""


def shown(
    messages: Iterable[Message],
    rules: Cleaning,
    stickers: Mapping[str, str] = {},
) -> Iterator[Message]:
    """The messages a model may see, in order, as it sees them; what says nothing then is left out.

    A message is looked at alone, so later ones change nothing of it.

    Args:
        messages: not recalled.
        rules: `[corpus]` of bot.toml.
        stickers: names of the sticker library by key.
    """
    for message in messages:
        if message.sender_id in rules.system_senders:
            continue
        seen = as_shown(named(message, stickers), rules)
        if seen.text.strip():
            yield seen


def as_shown(message: Message, rules: Cleaning) -> Message:
    """One message as the model sees it; its text may be empty then."""
    text = message.text if len(message.text) <= TEXT_MAX else message.text[:TEXT_MAX]
    if rules.strip_mentions or rules.strip_placeholders:
        text = stripped(text, rules)
    if not rules.redact:
        return message if text == message.text else replace(message, text=text)
    text, name, scene = redact(text), _name(message.sender_name), _name(message.scene_name)
    if (text, name, scene) == (message.text, message.sender_name, message.scene_name):
        return message
    return replace(message, text=text, sender_name=name, scene_name=scene)


def stripped(text: str, rules: Cleaning) -> str:
    """A text without what `strip_mentions` and `strip_placeholders` take out of it."""
    if rules.strip_mentions:
        text = _MENTION.sub("", text)
    if rules.strip_placeholders:
        text = _PLACEHOLDER.sub("", text)
    return text.strip()
