"""OneBot segments ⇄ canonical text: what a person sees, as text that survives a round trip.

In: `[微笑]` for a face, `[动画表情]` for an image sticker, `[图片]`, `[语音]`, `@昵称`; a quote becomes `reply_to`;
a line break is `↵`. Out: known `[name]` → face, a market face the person used → that one, `@昵称` → at when exactly one
recent speaker bears the name, all else as text segments: nothing a model wrote is ever parsed as CQ code, @全体成员 is
never sent, and what stands for a picture, a voice or a card that is not there is left out.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from loguru import logger

from bot.message import Segment

ALL = "全体成员"
DICE, RPS, POKE, STICKER, UNKNOWN = "[骰子]", "[猜拳]", "[戳一戳]", "[动画表情]", "[未知]"
_SPECIAL_FACES = {"358": DICE, "359": RPS}
_TOKEN = re.compile(r"\[(?:文件|卡片|动画表情|图片):[^\[\]]*\]|\[[^\[\]\s]{1,12}\]|@")
_NOTHING_TO_SEND = re.compile(
    r"\[(?:图片|语音|视频|聊天记录|卡片|位置|未知|表情|动画表情|(?:文件|卡片|动画表情|图片):.*)\]"
)
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"
"""Letters and signs that are drawn as nothing: fillers of Hangul, and Braille without a dot."""
Sticker = Callable[[str], dict[str, Any] | None]
"""Canonical text of a market face or sticker (`[贴贴]`, `[动画表情:name]`) → what sends it, or None."""


@dataclass(frozen=True, slots=True)
class Canonical:
    """A message's segments as text.

    Args:
        text: canonical text, possibly empty.
        reply_to: id of the quoted message.
        mentions: QQ numbers in order; `"all"` for everyone.
    """

    text: str
    reply_to: str | None = None
    mentions: tuple[str, ...] = ()


@cache
def face_names() -> dict[str, str]:
    """QQ's own name of every system face by id (bot/faces.json)."""
    table: dict[str, str] = json.loads(files("bot").joinpath("faces.json").read_text("utf-8"))
    return table


@cache
def face_ids() -> dict[str, str]:
    """Id by name; of two faces with one name the lower id, which every client has."""
    ids: dict[str, str] = {}
    for face_id, name in sorted(face_names().items(), key=lambda row: int(row[0])):
        ids.setdefault(name, face_id)
    return ids


def to_text(segments: Iterable[Segment], name_of: Callable[[str], str | None]) -> Canonical:
    """Canonical text of a message.

    A malformed segment is logged with its type and becomes `[未知]`; nothing is raised.

    Args:
        segments: as OneBot v11 sends them (NapCat, LLBot, Lagrange).
        name_of: newest nickname of a QQ number, or None.
    """
    parts: list[str] = []
    mentions: list[str] = []
    reply_to = None
    for segment in segments:
        if segment is None:  # NapCat's quote of a message it no longer finds
            continue
        try:
            kind, data = str(segment["type"]), segment.get("data") or {}
            if kind == "reply":
                reply_to = str(data.get("id") or data.get("seq") or "") or reply_to
                continue
            if kind == "at":
                mentions.append(str(data["qq"]))
            parts.append(_one(kind, data, name_of))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as e:
            logger.warning("segment of type {} not understood: {}", _type(segment), type(e).__name__)
            parts.append(UNKNOWN)
    text = whole("".join(parts)).replace("\r\n", "\n").replace("\r", "\n").strip().replace("\n", "↵")
    return Canonical(text, reply_to, tuple(mentions))


def whole(text: str) -> str:
    """A text without halves of surrogate pairs (emoji cut by a client): they can be neither stored nor tokenized."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _type(segment: Any) -> str:
    return str(segment.get("type"))[:32] if isinstance(segment, Mapping) else type(segment).__name__


def _one(kind: str, data: Mapping[str, Any], name_of: Callable[[str], str | None]) -> str:
    """Canonical text of one segment that is neither a reply nor malformed."""
    match kind:
        case "text":
            return str(data["text"] or "")
        case "at":
            qq = str(data["qq"])
            given = str(data.get("name") or "").lstrip("@")
            return "@" + (ALL if qq == "all" else given or name_of(qq) or qq)
        case "face":
            return _face(data)
        case "image":
            return _image(data)
        case "mface" | "marketface":
            return _bracketed(str(data.get("summary") or "")) or STICKER
        case "file":
            return f"[文件:{str(data.get('name') or data.get('file') or '').strip() or '未命名'}]"
        case "json" | "xml":
            return f"[卡片:{title}]" if (title := _card_title(str(data.get("data", "")))) else "[卡片]"
        case "share" | "music" | "contact":
            title = str(data.get("title") or "").strip()
            return f"[卡片:{title}]" if title else "[卡片]"
        case "markdown":
            return str(data.get("content") or "[卡片]")
        case _:
            return _FIXED.get(kind, UNKNOWN)


_FIXED = {
    "record": "[语音]", "video": "[视频]", "forward": "[聊天记录]", "node": "[聊天记录]", "longmsg": "[聊天记录]",
    "poke": POKE, "shake": POKE, "dice": DICE, "rps": RPS, "location": "[位置]",
    "flash_file": "[文件:闪传]", "flashtransfer": "[文件:闪传]", "onlinefile": "[文件:在线文件]", "keyboard": "",
}  # fmt: skip


def _face(data: Mapping[str, Any]) -> str:
    face_id = str(data["id"])
    if face_id in _SPECIAL_FACES:
        return _SPECIAL_FACES[face_id]
    raw = data.get("raw")
    said = str(raw.get("faceText") or "") if isinstance(raw, Mapping) else ""
    name = said.strip("/[] ") or face_names().get(face_id, "")
    return f"[{name}]" if name else "[表情]"


def _image(data: Mapping[str, Any]) -> str:
    summary = str(data.get("summary") or "")
    named = _bracketed(summary)
    if data.get("emoji_id"):
        return named or STICKER
    kind = data.get("sub_type", data.get("subType", 0))
    sticker = str(kind or "0") != "0" or (named is not None and named != "[图片]")
    return STICKER if sticker else "[图片]"


def _bracketed(text: str) -> str | None:
    return text if re.fullmatch(r"\[[^\[\]]+\]", text) else None


def _card_title(text: str) -> str:
    try:
        card = json.loads(text)
    except ValueError:
        return ""
    if not isinstance(card, dict):
        return ""
    title = str(card.get("prompt") or card.get("desc") or "")
    return " ".join(re.sub(r"[\[\]]", " ", title).split())[:40]


def market_face(segments: Iterable[Segment], name: str) -> dict[str, Any] | None:
    """The market face of a message that reads as `name`, as it can be sent again; None if it has none.

    It comes as `mface` (LLBot, Lagrange) or as an image with an `emoji_id` (NapCat), and leaves as `mface` everywhere.
    """
    for segment in segments:
        data = segment.get("data") if isinstance(segment, Mapping) else None
        keys = ("emoji_id", "emoji_package_id", "key")
        if isinstance(data, Mapping) and all(data.get(k) for k in keys) and to_text([segment], _nobody).text == name:
            return {"type": "mface", "data": {k: str(data[k]) for k in keys} | {"summary": name}}
    return None


def _nobody(_: str) -> None:
    return None


def to_segments(text: str, speakers: Mapping[str, set[str]], sticker: Sticker = _nobody) -> list[dict[str, Any]]:
    """Segments of one bubble the model wrote.

    Args:
        text: canonical text, one bubble.
        speakers: recent names in the scene and the QQ numbers bearing each; a name of exactly one becomes an at.
        sticker: finds market faces and image stickers.

    Returns:
        text, face, mface, image, at, dice, rps and poke segments (of whom, the sender knows, unless one is named:
        `[戳一戳]@昵称`); empty when nothing is left.
    """
    out: list[dict[str, Any]] = []
    position = 0
    plain = re.sub(f"@+{ALL}", ALL, text.replace("↵", "\n"))
    while position < len(plain):
        found = _next_special(plain, position, speakers, sticker)
        if found is None:
            break
        start, end, segment = found
        _add_text(out, plain[position:start])
        if segment is not None:
            out.append(segment)
        position = end
    _add_text(out, plain[position:])
    return [s for s in out if s["type"] != "text" or is_seen(s["data"]["text"])]


def is_seen(text: str) -> bool:
    """Whether anything of a text is seen: it holds more than blanks, marks, control and format characters."""
    return any(c not in _BLANK and not re.match("Z|M|Cc|Cf", unicodedata.category(c)) for c in text)


def _next_special(
    text: str, start: int, speakers: Mapping[str, set[str]], sticker: Sticker
) -> tuple[int, int, dict[str, Any] | None] | None:
    """What is no text next from `start`: (begin, end, segment); no segment for what cannot be sent."""
    for match in _TOKEN.finditer(text[start:]):
        begin = start + match.start()
        if match[0] == "@":
            if (named := _named(text, begin + 1, speakers)) is not None and named[1]:
                return begin, named[0], {"type": "at", "data": {"qq": named[1]}}
        elif match[0] == POKE:
            return _poke(text, begin, start + match.end(), speakers)
        elif match[0] in (DICE, RPS):
            return begin, start + match.end(), {"type": "dice" if match[0] == DICE else "rps", "data": {}}
        elif (face := face_ids().get(match[0][1:-1])) is not None:
            return begin, start + match.end(), {"type": "face", "data": {"id": face}}
        elif (used := sticker(match[0])) is not None or _NOTHING_TO_SEND.fullmatch(match[0]):
            return begin, start + match.end(), used
    return None


def _named(text: str, start: int, speakers: Mapping[str, set[str]]) -> tuple[int, str | None] | None:
    """The longest speaker's name that begins at `start`: its end, and the QQ number if exactly one bears it."""
    name = max((n for n in speakers if n and text.startswith(n, start)), key=len, default=None)
    if name is None:
        return None
    (qq,) = speakers[name] if len(speakers[name]) == 1 else ("",)
    return start + len(name), qq if qq.isdecimal() else None


def _poke(text: str, begin: int, end: int, speakers: Mapping[str, set[str]]) -> tuple[int, int, dict[str, Any] | None]:
    """A poke, with whom it is at where that is told; none where that is not exactly one speaker.

    It is a message of its own: of a name that nobody bears the rest of the line is part.
    """
    if not text.startswith("@", end):
        return begin, end, {"type": "poke", "data": {}}
    named = _named(text, end + 1, speakers)
    if named is None:
        return begin, min((at for c in "\n[" if (at := text.find(c, end)) >= 0), default=len(text)), None
    return begin, named[0], {"type": "poke", "data": {"id": named[1]}} if named[1] else None


def _add_text(out: list[dict[str, Any]], text: str) -> None:
    if text:
        out.append({"type": "text", "data": {"text": text}})
