"""chatlog's JSON of WeChat messages → messages: an array, each row with its chat (`talker`) and type codes."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bot.message import Message, Scene
from training.importers.jsonscan import members, shapes
from training.importers.record import CALL, RECALLED, SYSTEM, Ids, each, message, moment, named
from training.importers.source import Item, Reading, Skipped, Source
from training.importers.text import chunks
from training.importers.wording import FORWARD, PICTURE, STICKER, VIDEO, VOICE, canonical, card, file

_FIXED = {
    3: PICTURE, 34: VOICE, 42: "[卡片:名片]", 43: VIDEO, 47: STICKER, 48: "[位置]",
}  # fmt: skip
_TEXT, _SHARE, _CALL, _SYSTEM, _RECALL = 1, 49, 50, 10000, 10002
_QUOTE, _FILE, _STICKER, _FORWARD, _PAT, _TRANSFER, _RED_PACKET = 57, 6, 8, 19, 62, 2000, 2001


def sniff(_: Path, beginning: bytes) -> bool:
    """Whether it is an array of objects with `talker` and `isSelf`."""
    return any({"*.talker", "*.isSelf", "*.content"} <= s.keys() for s in shapes(beginning))


def items(path: Path, reading: Reading) -> Iterator[Item]:
    """Every message, in the file's order.

    Raises:
        ImportFault: the file cannot be read.
    """
    ids = Ids()
    number = 0

    def make(member: tuple[str, Any]) -> Message | None:
        nonlocal number
        route, row = member
        if route != "*":
            return None
        number += 1
        reading.place = f"{path.name} message {number}"
        talker = named(row.get("talker"))
        if not talker:
            raise Skipped("a message without a chat")
        scene = Scene("group" if row.get("isChatRoom") or talker.endswith("@chatroom") else "private", talker)
        text = _text(row)
        sender, time = named(row.get("sender")), moment(row.get("time"), reading.told.zone)
        refer = _contents(row).get("refer")
        made = message(
            named(row.get("seq")) or ids.of(scene, time, sender, text), scene, sender, named(row.get("senderName")),
            time, text, reply_to=named(refer.get("seq")) if isinstance(refer, Mapping) else None, seq=row.get("seq"),
            scene_name="" if scene.private else named(row.get("talkerName")),
        )  # fmt: skip
        if row.get("isSelf") is True:
            reading.owners[sender] += 1
        return made

    yield from each(members(chunks(path, reading), ("",), reading.skip), reading, make)


def _contents(row: Mapping[str, Any]) -> Mapping[str, Any]:
    found = row.get("contents")
    return found if isinstance(found, Mapping) else {}


def _text(row: Mapping[str, Any]) -> str:
    """Canonical text by the type codes; Skipped says why there is none."""
    kind, sub, said, contents = row.get("type"), row.get("subType"), str(row.get("content") or ""), _contents(row)
    title = contents.get("title") or ("" if said.lstrip().startswith("<") else said)
    if kind == _RECALL or (kind == _SYSTEM and "撤回" in said):
        raise Skipped(RECALLED)
    if kind == _SYSTEM or (kind == _SHARE and sub == _PAT):
        raise Skipped(SYSTEM)
    if kind == _CALL:
        raise Skipped(CALL)
    if kind == _TEXT or (kind == _SHARE and sub == _QUOTE):
        return canonical(said)
    if isinstance(kind, int) and kind in _FIXED:
        return _FIXED[kind]
    if kind == _SHARE:
        if sub == _FILE:
            return file(title)
        if sub in (_STICKER, _FORWARD):
            return STICKER if sub == _STICKER else FORWARD
        if sub in (_TRANSFER, _RED_PACKET):
            return card("转账" if sub == _TRANSFER else "红包")
    return card(title)


SOURCE = Source("chatlog", "chatlog JSON", sniff, items)
