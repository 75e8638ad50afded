"""Elements of a QQ NT message → the segments a OneBot client would have sent for them, and their canonical text.

One reading of what people see: kinds become segments here, and bot/segments.py alone makes text of them. Kinds that
OneBot clients pass over are named by what QQ shows (`[卡片:红包]`), else `[未知]`. A voice stays `[语音]`, as it does
live; what QQ made of it in writing is kept in the segment.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bot.message import Segment
from bot.segments import ALL, to_text
from training.importers.ntqq_wire import Element, cached, elements, said

TEXT, REPLY, GRAY_TIP, CALL = 1, 7, 8, 21
_POKE = 5
_AT_ALL, _AT_ONE = 1, 2
_TRANSFER = 1
_DICE, _RPS = 358, 359
_FORWARD_APP = b"com.tencent.multimsg"
_PLAIN = {"text", "at", "face"}
_FIXED = {
    5: "video", 16: "forward", 17: "keyboard", 23: "onlinefile", 28: "location", 30: "onlinefile", 44: "keyboard",
}  # fmt: skip
UinOf = Callable[[str], str | None]


class Told(NamedTuple):
    """What a message says (a tuple: made in a third of the time a frozen dataclass takes).

    Args:
        text: canonical text, without the quote.
        mentions: QQ numbers, `"all"` for everyone.
        segments: those worth keeping: none where text holds everything.
        quote: the element that names the quoted message.
    """

    text: str
    mentions: tuple[str, ...] = ()
    segments: tuple[Segment, ...] = ()
    quote: Element | None = None


def told(parts: Sequence[Element], uin_of: UinOf) -> Told:
    """What a message of these elements says.

    Args:
        parts: its elements.
        uin_of: QQ number of an NT uid, or None.
    """
    words = []
    for part in parts:
        if part.kind != TEXT or part.at_kind or part.at_uid:
            break
        words.append(part.text)
    else:
        # What `to_text` gives for text alone, in a fifth of the time; seven of ten messages. UTF-8 holds no halves.
        text = said(b"".join(words)).strip()
        return Told(text.replace("\r\n", "↵").replace("\r", "↵").replace("\n", "↵"))
    made = segments(parts, uin_of)
    kept = tuple(made) if any(s["type"] not in _PLAIN for s in made) else ()
    found = to_text(made, _nobody)
    return Told(found.text, found.mentions, kept, next((p for p in parts if p.kind == REPLY), None))


def segments(parts: Sequence[Element], uin_of: UinOf) -> list[dict[str, Any]]:
    """The segments of a message, in display order, its quote left out."""
    made: list[dict[str, Any]] = []
    for part in parts:
        if part.kind == TEXT:
            made += _text(part, uin_of)
        elif part.kind != REPLY:
            kind, data = _one(part)
            made.append({"type": kind, "data": data})
    return made


def quote(part: Element, cache: object) -> dict[str, Any]:
    """The segment of a quote whose message is not in the history: what is known of it, and its words.

    Args:
        part: the element of kind `REPLY`.
        cache: column 40900 of the row, which holds quoted messages.
    """
    stored = next((parts for parts in cached(cache) if parts), []) if isinstance(cache, bytes) else []
    words = _words(stored) or _words(elements(part.quoted)) or said(part.quoted_text)
    return {"type": "reply", "data": {"qq": str(part.sender), "time": part.time, "seq": part.seq, "text": words}}


def poked(parts: Sequence[Element], uin_of: UinOf) -> tuple[tuple[str, str], tuple[str, str]] | None:
    """Who poked whom, as (QQ number, name, empty where it is not told); None of another gray tip, or of strangers.

    Its JSON (48271) lists what is shown: `{"items": [{"type": "qq", "uid", "nm"}, {"type": "nor", "txt": "戳了戳"},
    …]}`.
    """
    tip = next((p.tip for p in parts if p.kind == GRAY_TIP and p.tip), b"")
    try:
        shown = json.loads(said(tip), strict=False)["items"]
        people = [item for item in shown if item.get("type") == "qq" and isinstance(item.get("uid"), str)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    who = [(uin_of(p["uid"]), p.get("nm")) for p in people]
    match who:
        case [(str(one), name), (str(other), whom)]:
            return (one, name if isinstance(name, str) else ""), (other, whom if isinstance(whom, str) else "")
    return None


def _words(parts: Sequence[Element]) -> str:
    return told(parts, _nobody).text


def _text(part: Element, uin_of: UinOf) -> list[dict[str, Any]]:
    """A text element; an @ has one of its own, whose text is `@昵称` and perhaps a space."""
    text = said(part.text)
    plain = {"type": "text", "data": {"text": text}}
    if not part.at_uid and part.at_kind not in (_AT_ALL, _AT_ONE):
        return [plain]
    name = text.strip().lstrip("@")
    if part.at_kind == _AT_ALL or name == ALL:
        qq: str | None = "all"
    else:
        qq = str(part.at_uin) if part.at_uin else uin_of(said(part.at_uid))
    if qq is None:
        return [plain]
    rest = text[len(text.rstrip()) :]
    at = {"type": "at", "data": {"qq": qq, "name": name}}
    return [at, {"type": "text", "data": {"text": rest}}] if rest else [at]


def _one(part: Element) -> tuple[str, dict[str, Any]]:
    """Type and data of an element that is neither text nor a quote."""
    match part.kind:
        case 2:
            summary = next((said(s) for s in part.summary if s), "")
            return "image", {"file": said(part.name), "sub_type": part.sub_kind, "summary": summary}
        case 3:
            return "file", {"name": said(part.name)}
        case 4:
            return "record", {"file": said(part.name)} | ({"text": said(part.spoken)} if part.spoken else {})
        case 6:
            return _face(part)
        case 9:
            return "share", {"title": "转账" if part.purse == _TRANSFER else "红包"}
        case 10:
            return ("forward", {}) if _FORWARD_APP in part.card else ("json", {"data": said(part.card)})
        case 11:
            return "mface", _market_face(part)
        case 14:
            return ("markdown", {"content": said(part.markdown)}) if part.markdown else ("flash_file", {})
        case 27:
            return "text", {"text": said(part.bubble) or "[表情]"}
        case kind:
            return _FIXED.get(kind, f"nt_{kind}"), {}


def _face(part: Element) -> tuple[str, dict[str, Any]]:
    if part.sub_kind == _POKE:
        return "poke", {}
    if part.face in (_DICE, _RPS):
        return "dice" if part.face == _DICE else "rps", {"result": said(part.result)}
    return "face", {"id": str(part.face), "raw": {"faceText": said(part.face_text)}}


def _market_face(part: Element) -> dict[str, Any]:
    """A market face; with `emoji_id` (32 hex digits) and `key` (16), where they are, it can be sent again."""
    data = {"summary": said(part.emoji_text), "emoji_package_id": str(part.pack)}
    id_field, key_field = part.emoji_id, said(part.emoji_key)
    emoji_id = id_field.hex() if len(id_field) == 16 else said(id_field)
    if len(key_field) == 32 and not emoji_id:
        return data | {"emoji_id": key_field}
    return data | {k: v for k, v in (("emoji_id", emoji_id), ("key", key_field)) if v}


def _nobody(_: str) -> None:
    return None
