"""A OneBot message written as text, `message_format: string` → segments.

Only what a client sent is read so; what a model wrote never is, and is said without its codes. Escapes are the base
standard's: `&amp; &#91; &#93;`, and `&#44;` within a code. A code that is none, as a person may have typed it, stays
text.
"""

import re

from bot.message import Segment

_CODE = re.compile(r"\[CQ:([A-Za-z0-9_.-]{1,64})((?:,[^,=\[\]]{1,64}=[^,\[\]]*)*)\]")
_ESCAPED = re.compile(r"&(?:amp|#91|#93|#44);")
_MEANT = {"&amp;": "&", "&#91;": "[", "&#93;": "]", "&#44;": ","}


def segments(text: str) -> list[Segment]:
    """The segments of a message, in its order; their values are text."""
    found: list[Segment] = []
    at = 0
    for code in _CODE.finditer(text):
        _say(found, text[at : code.start()])
        pairs = (pair.partition("=") for pair in code[2].split(",")[1:])
        found.append({"type": code[1], "data": {key: _unescaped(value) for key, _, value in pairs}})
        at = code.end()
    _say(found, text[at:])
    return found


def without(text: str) -> str:
    """A text without its codes, nor any that comes together where one was taken out."""
    while (left := _CODE.sub("", text)) != text:
        text = left
    return text


def _say(found: list[Segment], text: str) -> None:
    if text:
        found.append({"type": "text", "data": {"text": _unescaped(text)}})


def _unescaped(text: str) -> str:
    """Every escape once: `&amp;#91;` is the text `&#91;`."""
    return _ESCAPED.sub(lambda m: _MEANT[m[0]], text)
