"""WeFlow's and echotrace's JSON of a WeChat chat → messages.

`session` names the chat (`…@chatroom` is a group); `type` is WeChat's kind in words, `localType` is not reliable.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bot.message import Message, Scene
from training.importers.jsonscan import members, shapes
from training.importers.record import CALL, RECALLED, SYSTEM, Ids, each, message, moment, named
from training.importers.source import Item, Reading, Skipped, Source
from training.importers.text import chunks
from training.importers.wording import FORWARD, PICTURE, STICKER, VIDEO, VOICE, canonical, card, file

_KINDS = (
    ("撤回", RECALLED), ("系统", SYSTEM), ("拍一拍", SYSTEM), ("通话", CALL),
)  # fmt: skip
_FIXED = (
    ("图片", PICTURE), ("语音", VOICE), ("视频", VIDEO), ("表情", STICKER), ("聊天记录", FORWARD), ("位置", "[位置]"),
    ("红包", "[卡片:红包]"), ("转账", "[卡片:转账]"), ("名片", "[卡片:名片]"),
)  # fmt: skip


def sniff(_: Path, beginning: bytes) -> bool:
    """Whether it has a `session` with a wxid, and messages with `senderUsername` or the `weflow` mark."""
    return any(
        "session.wxid" in s and ("weflow" in s or "messages.*.senderUsername" in s or "messages.*.isSend" in s)
        for s in shapes(beginning)
    )


def items(path: Path, reading: Reading) -> Iterator[Item]:
    """Every message, in the file's order.

    Raises:
        ImportFault: the file cannot be read.
    """
    scene, name = Scene("private", path.stem), ""
    ids = Ids()
    number = 0

    def make(member: tuple[str, Any]) -> Message | None:
        nonlocal scene, name, number
        route, value = member
        if route == "session" and isinstance(value, Mapping):
            wxid = named(value.get("wxid")) or path.stem
            group = wxid.endswith("@chatroom") or "群" in named(value.get("type"))
            scene = Scene("group" if group else "private", wxid)
            name = named(value.get("displayName")) or named(value.get("nickname"))
        if route != "messages.*":
            return None
        number += 1
        reading.place = f"{path.name} message {number}"
        text = _text(value)
        sender, time = named(value.get("senderUsername")), moment(value.get("createTime"), reading.told.zone)
        if value.get("isSend") is None:
            raise Skipped(SYSTEM)
        message_id = named(value.get("serverId")) or ids.of(scene, time, sender, text)
        made = message(
            message_id, scene, sender, named(value.get("senderDisplayName")), time, text,
            scene_name="" if scene.private else name,
        )  # fmt: skip
        if value["isSend"] == 1:
            reading.owners[sender] += 1
        return made

    yield from each(members(chunks(path, reading), ("", "messages", "avatars"), reading.skip), reading, make)


def _text(row: Mapping[str, Any]) -> str:
    """Canonical text of a message; Skipped says why there is none."""
    kind, said = named(row.get("type")), str(row.get("content") or "")
    for word, why in _KINDS:
        if word in kind:
            raise Skipped(why)
    if "文本" in kind or "引用" in kind or not kind:
        return canonical(said)
    for word, text in _FIXED:
        if word in kind:
            return text
    if "文件" in kind:
        return file(said.removeprefix("[文件]").strip())
    return card("" if said.lstrip().startswith("<") else said)


SOURCE = Source("weflow", "WeFlow JSON", sniff, items)
