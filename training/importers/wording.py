"""What exporters write for pictures, voices, files and faces → the canonical text that live messages have."""

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from bot.segments import face_names, to_text, whole

TITLE_CHARS = 40
FORWARD, STICKER, PICTURE, VOICE, VIDEO, POKE = "[聊天记录]", "[动画表情]", "[图片]", "[语音]", "[视频]", "[戳一戳]"
_KINDS = {
    "图片": PICTURE, "照片": PICTURE, "语音": VOICE, "语音消息": VOICE, "视频": VIDEO, "视频消息": VIDEO,
    "短视频": VIDEO, "动画表情": STICKER, "表情包": STICKER, "合并转发": FORWARD, "转发消息": FORWARD,
    "合并转发消息": FORWARD, "聊天记录": FORWARD, "合并转发的聊天记录": FORWARD, "卡片消息": "[卡片]", "卡片": "[卡片]",
    "位置": "[位置]", "位置共享": "[位置]", "戳一戳": POKE, "窗口抖动": POKE, "红包": "[卡片:红包]",
    "转账": "[卡片:转账]", "红包/转账": "[卡片:红包]",
}  # fmt: skip
_PLACEHOLDER = re.compile(rf"\[({'|'.join(sorted(_KINDS, key=len, reverse=True))})(?:[:：\s→][^\[\]\n]{{0,300}})?\]")
_FILE = re.compile(r"\[文件(?:[:：]|\s)([^\[\]\n]{1,300})\]")
_DOUBLE = re.compile(r"\[\[([^\[\]\s]{1,12})\]\]")


@cache
def _faces() -> re.Pattern[str]:
    """`/微笑`, but not the slash of 和/或: a name of one character counts only where no word stands before it."""
    names = sorted((n for n in face_names().values() if not n.isascii()), key=len, reverse=True)
    long = "|".join(re.escape(n) for n in names if len(n) > 1)
    short = "|".join(re.escape(n) for n in names if len(n) == 1)
    return re.compile(rf"(?<![0-9A-Za-z/:.])/({long})|(?<!\w)(?<![/:.])/({short})(?!\w)")


def canonical(text: str) -> str:
    """Text of an export that has only text → canonical text."""
    if "[" in text:
        text = _DOUBLE.sub(r"[\1]", text)
        text = _PLACEHOLDER.sub(lambda m: _KINDS[m[1]], text)
        text = _FILE.sub(lambda m: f"[文件:{m[1].strip() or '未命名'}]", text)
    if "/" in text:
        text = _faces().sub(lambda m: f"[{m[1] or m[2]}]", text)
    return joined(text)


def joined(text: str) -> str:
    """Text as one bubble: `↵` for line breaks, no spaces at the ends, no halves of surrogate pairs."""
    return whole(text).replace("\r\n", "\n").replace("\r", "\n").strip().replace("\n", "↵")


def card(title: Any) -> str:
    """A card: a link, a mini program, a shared post."""
    shown = " ".join(re.sub(r"[\[\]]", " ", whole(str(title or ""))).split())[:TITLE_CHARS]
    return f"[卡片:{shown}]" if shown else "[卡片]"


def file(name: Any) -> str:
    """A file."""
    shown = re.sub(r"[\[\]\s]+", " ", whole(str(name or ""))).strip()
    return f"[文件:{shown or '未命名'}]"


def card_of_json(data: Any) -> str:
    """A card from QQ's ark JSON, an object or its text."""
    if isinstance(data, Mapping):
        data = json.dumps(data, ensure_ascii=False)
    return to_text([{"type": "json", "data": {"data": str(data or "")}}], lambda _: None).text
