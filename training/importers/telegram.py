"""Telegram Desktop's result.json, one chat or a whole export → messages.

Ids are Telegram's own (`user123`). The owner is `personal_information.user_id`, or in a private chat whoever is not the
peer. A forwarded message reads `[聊天记录]`, as its words are somebody else's. Channels are read as groups.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bot.message import Message, Scene
from training.importers.jsonscan import members, shapes
from training.importers.record import CALL, SYSTEM, each, message, moment, named
from training.importers.source import Item, Reading, Skipped, Source
from training.importers.text import chunks
from training.importers.wording import FORWARD, PICTURE, STICKER, VIDEO, VOICE, card, file, joined

_LIST = "chats.list.*"
_LEFT = "left_chats.list.*"
_OPENED = (
    "", "messages", "personal_information", "chats", "chats.list", _LIST, f"{_LIST}.messages", "left_chats",
    "left_chats.list", _LEFT, f"{_LEFT}.messages",
)  # fmt: skip
_ROUTES = ("messages.*", f"{_LIST}.messages.*", f"{_LEFT}.messages.*")
_HEADS = ("name", "type", "id")
_MEDIA = {
    "sticker": STICKER, "animation": STICKER, "video_file": VIDEO, "video_message": VIDEO, "voice_message": VOICE,
}  # fmt: skip


def sniff(_: Path, beginning: bytes) -> bool:
    """Whether it lists chats, or is a chat with Telegram's dates."""
    for s in shapes(beginning):
        if "chats.list" in s and ("about" in s or "personal_information" in s or "chats.list.*.messages" in s):
            return True
        # Of an account of hundreds of contacts, these fill the beginning of the file.
        if "Telegram" in str(s.get("about")) and {"personal_information", "contacts", "frequent_contacts"} & _tops(s):
            return True
        if {"name", "type", "id", "messages"} <= s.keys() and ("messages.*.date" in s or "messages.*.from_id" in s):
            return True
    return False


def _tops(shape: Mapping[str, Any]) -> set[str]:
    return {route.partition(".")[0] for route in shape}


def items(path: Path, reading: Reading) -> Iterator[Item]:
    """Every message, in the file's order.

    Raises:
        ImportFault: the file cannot be read.
    """
    told: dict[str, Any] = {}
    owner = ""
    number = 0

    def make(member: tuple[str, Any]) -> Message | None:
        nonlocal owner, number
        route, value = member
        if route == "personal_information.user_id" and (user := named(value)):
            owner = f"user{user}"
            reading.owners[owner] += 1
        if route in _ROUTES:
            number += 1
            reading.place = f"{path.name} message {number}"
            return _message(value, told, owner, path, reading)
        head, _, key = route.rpartition(".")
        if route.endswith("list.*"):
            told.clear()
        elif key in _HEADS and (not head or head.endswith("list.*")):
            told[key] = value
        return None

    yield from each(members(chunks(path, reading), _OPENED, reading.skip), reading, make)


def _message(row: Mapping[str, Any], chat: Mapping[str, Any], owner: str, path: Path, reading: Reading) -> Message:
    if row.get("type") != "message":
        raise Skipped(CALL if row.get("action") == "phone_call" else SYSTEM)
    kind, name = named(chat.get("type")), named(chat.get("name"))
    private = kind in ("personal_chat", "bot_chat", "saved_messages", "verification_codes", "replies")
    scene = Scene("private" if private else "group", named(chat.get("id")) or name or path.stem)
    sender = named(row.get("from_id"))
    text, mentions = _text(row)
    made = message(
        named(row.get("id")), scene, sender, named(row.get("from")),
        moment(row.get("date_unixtime") or row.get("date"), reading.told.zone), text,
        reply_to=None if row.get("reply_to_peer_id") else named(row.get("reply_to_message_id")), mentions=mentions,
        seq=row.get("id"), scene_name="" if private else name,
    )  # fmt: skip
    if not made.id:
        raise Skipped("a message without an id")
    if sender == owner or (not owner and kind == "personal_chat" and sender != f"user{scene.id}"):
        reading.owners[sender] += 1
    return made


def _text(row: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Canonical text and who is mentioned."""
    if "forwarded_from" in row or row.get("saved_from"):  # null: of an account that is deleted
        return FORWARD, []
    parts, mentions = [_media(row)], list[str]()
    said = row.get("text") or ""
    for piece in [said] if isinstance(said, str | Mapping) else said:
        if isinstance(piece, str):
            parts.append(piece)
            continue
        words = str(piece.get("text") or "")
        if piece.get("type") == "mention_name":
            mentions.append(f"user{named(piece.get('user_id'))}")
            words = f"@{words}"
        parts.append(words)
    return joined("".join(parts)), mentions


def _media(row: Mapping[str, Any]) -> str:
    kind = named(row.get("media_type"))
    if kind in _MEDIA:
        return _MEDIA[kind]
    if row.get("photo"):
        return PICTURE
    if row.get("file"):
        path = named(row.get("file"))
        return file(row.get("file_name") or (path.rpartition("/")[2] if not path.startswith("(") else ""))
    if row.get("location_information"):
        return "[位置]"
    if row.get("contact_information"):
        return card("名片")
    poll = row.get("poll")
    return card(poll.get("question")) if isinstance(poll, Mapping) else ""


SOURCE = Source("telegram", "Telegram JSON", sniff, items)
