"""Archive → ChatLab JSONL, the neutral chat log: one file a scene, every message that was not taken back.

Format: ChatLab's standard 0.0.2 (hellodigua/ChatLab, docs/standard/chatlab-format): a header line, a line a member, a
line a message. A twin's messages stand under a member of their own, `twin:NUMBER` with the role `bot`: the format knows
no origin, and whoever imports the log must not take them for the person's.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bot.archive import Archive
from bot.config import Cleaning
from bot.errors import TwinError
from bot.message import Message, Origin, Scene
from bot.shown import as_shown
from training.sharing import write_lines

VERSION = "0.0.2"
_TEXT, _IMAGE, _VOICE, _VIDEO, _FILE, _EMOJI, _LOCATION, _POKE, _SHARE, _FORWARD = 0, 1, 2, 3, 4, 5, 8, 22, 24, 26
_NAME_CHARS = 50
"""Of a chat's name in its file's: four bytes each, and what stands around it, fit the 255 of a file system."""
_REDACTED = Cleaning(redact=True, strip_mentions=False, strip_placeholders=False)
_KINDS = {
    "图片": _IMAGE, "语音": _VOICE, "视频": _VIDEO, "文件": _FILE, "动画表情": _EMOJI, "位置": _LOCATION,
    "戳一戳": _POKE, "卡片": _SHARE, "聊天记录": _FORWARD,
}  # fmt: skip


def export(
    archive: Archive, people: Collection[str], folder: Path, now: datetime, *, raw: bool = False
) -> list[tuple[Path, int]]:
    """Write every scene the person spoke in; gives the files and their messages.

    Args:
        archive: the message store.
        people: the person's QQ numbers.
        folder: where.
        now: when it is exported.
        raw: as written; else numbers, addresses and the like are placeholders, as in what is trained.

    Raises:
        ArchiveError: the store cannot be read.
        TwinError: there is none, or a file cannot be written.
    """
    written = []
    for summary in archive.scenes():
        messages = archive.history(summary.scene)
        if any(m.sender_id in people and m.origin is Origin.HUMAN for m in messages):
            file = folder / file_name(summary.scene)
            told = messages if raw else [as_shown(m, _REDACTED) for m in messages]
            lines = log(summary.scene, told, people, now)
            write_lines(file, (json.dumps(line, ensure_ascii=False) for line in lines))
            written.append((file, len(messages)))
    if not written:
        raise TwinError("nothing to export: the person spoke in no scene of the archive; see `twin corpus stats`")
    return written


def file_name(scene: Scene) -> str:
    """A scene's file: of one folder on any system, whatever a history called the chat, and another one for each."""
    kept = "".join(c if c.isalnum() or c in "_-@. " else "_" for c in scene.id)
    if kept == scene.id == scene.id.casefold() and len(kept) <= _NAME_CHARS:  # some systems know one case alone
        return f"{scene.kind}-{kept}.jsonl"
    digest = hashlib.sha256(scene.id.encode("utf-8", "replace")).hexdigest()[:8]
    return f"{scene.kind}-{kept[:_NAME_CHARS]}-{digest}.jsonl"


def log(scene: Scene, messages: Sequence[Message], people: Collection[str], now: datetime) -> Iterator[dict[str, Any]]:
    """A scene's lines: header, members, messages."""
    owner = next((m.sender_id for m in messages if m.sender_id in people and m.origin is Origin.HUMAN), "")
    meta = {"name": _name(scene, messages), "platform": "qq", "type": scene.kind, "ownerId": owner}
    if not scene.private:
        meta["groupId"] = scene.id
    yield {
        "_type": "header",
        "chatlab": {
            "version": VERSION, "exportedAt": int(now.timestamp()), "generator": f"qqtwin {version('qqtwin')}",
        },
        "meta": meta,
    }  # fmt: skip
    yield from _members(messages)
    known = {m.id for m in messages}
    for message in messages:
        line = {
            "_type": "message", "sender": _sender(message), "accountName": message.sender_name,
            "timestamp": int(message.time.timestamp()), "type": _kind(message.text),
            "content": message.text.replace("↵", "\n"), "platformMessageId": message.id,
        }  # fmt: skip
        if message.reply_to in known:
            line["replyToMessageId"] = message.reply_to
        yield line


def _name(scene: Scene, messages: Sequence[Message]) -> str:
    if scene.private:
        found = (m.sender_name for m in reversed(messages) if m.sender_id == scene.id and m.sender_name)
    else:
        found = (m.scene_name for m in reversed(messages) if m.scene_name)
    return next(found, scene.id)


def _members(messages: Sequence[Message]) -> Iterator[dict[str, Any]]:
    """Everyone who spoke, by their first word: the newest name, the older ones as aliases."""
    names: dict[str, list[str]] = {}
    for message in messages:
        had = names.setdefault(_sender(message), [])
        if message.sender_name:
            had[:] = [*(name for name in had if name != message.sender_name), message.sender_name]
    for sender, had in names.items():
        member: dict[str, Any] = {"_type": "member", "platformId": sender, "accountName": had[-1] if had else sender}
        if had[:-1]:
            member["aliases"] = had[:-1]
        if sender.startswith("twin:"):
            member["roles"] = [{"id": "bot", "name": "分身"}]
        yield member


def _sender(message: Message) -> str:
    return f"twin:{message.sender_id}" if message.origin is Origin.TWIN else message.sender_id


def _kind(text: str) -> int:
    """ChatLab's type of a message that is nothing but one placeholder; else text."""
    inner = text[1:-1] if text.startswith("[") and text.find("]") == len(text) - 1 else ""
    return _KINDS.get(inner.split(":", 1)[0], _TEXT)
