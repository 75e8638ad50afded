"""ChatLab's JSON and JSONL (0.0.2), which is also what `twin corpus export --format chatlab` writes → messages.

In a private chat the scene is the member who is neither `meta.ownerId` nor, where that is not given, who the importer
is said to be; where that is not to be told, the chat's name.
In what we wrote ourselves text is canonical, `ownerId` is the person in groups, too, and `twin:NUMBER` said what a twin
said.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bot.message import Message, Origin, Scene
from training.importers.jsonscan import members, objects, shapes
from training.importers.record import CALL, RECALLED, SYSTEM, Ids, each, message, moment, named
from training.importers.source import Item, Reading, Skipped, Source, head
from training.importers.text import chunks
from training.importers.wording import FORWARD, PICTURE, POKE, STICKER, VIDEO, VOICE, canonical, card, file, joined

TEXT, FILE, EMOJI, LINK, SHARE, REPLY, CONTACT, OTHER = 0, 4, 5, 7, 24, 25, 27, 99
FIXED = {
    1: PICTURE, 2: VOICE, 3: VIDEO, 8: "[位置]", 20: "[卡片:红包]", 21: "[卡片:转账]", 22: POKE, 26: FORWARD,
    27: "[卡片:名片]",
}  # fmt: skip
_OURS, _TWIN = "qqtwin", "twin:"
_LEFT_OUT = {23: CALL, 80: SYSTEM, 81: RECALLED}


def sniff(_: Path, beginning: bytes) -> bool:
    """Whether it has ChatLab's mark, as a document or as the header line of JSONL."""
    return any("chatlab" in s and ("meta" in s or "messages" in s or "_type" in s) for s in shapes(beginning))


def items(path: Path, reading: Reading) -> Iterator[Item]:
    """Every message, in the file's order.

    Raises:
        ImportFault: the file cannot be read.
    """
    chat = _Chat(path, reading)
    if any("_type" in s for s in shapes(head(path))):
        yield from each(objects(path, reading), reading, chat.line)
    else:
        found = members(chunks(path, reading), ("", "members", "messages"), reading.skip)
        yield from each(found, reading, chat.member)


class _Chat:
    """A chat being read: its scene, its members' names."""

    def __init__(self, path: Path, reading: Reading) -> None:
        self._path, self._reading = path, reading
        self._meta: Mapping[str, Any] = {}
        self._ours = False
        self._names: dict[str, str] = {}
        self._scene: Scene | None = None
        self._ids = Ids()
        self._number = 0

    def line(self, row: Mapping[str, Any]) -> Message | None:
        """The message of a line of JSONL; None for header and members."""
        match row.get("_type"):
            case "header":
                self._made_by(row.get("chatlab") or {})
                self._told(row.get("meta") or {})
                return None
            case "member":
                self._joined(row)
                return None
            case _:
                return self._message(row)

    def member(self, member: tuple[str, Any]) -> Message | None:
        """The message of a member of the document; None for all others."""
        route, value = member
        if route == "chatlab":
            self._made_by(value)
        elif route == "meta":
            self._told(value)
        elif route == "members.*":
            self._joined(value)
        elif route == "messages.*":
            self._number += 1
            self._reading.place = f"{self._path.name} message {self._number}"
            return self._message(value)
        return None

    def _made_by(self, mark: Mapping[str, Any]) -> None:
        self._ours = named(mark.get("generator")).startswith(_OURS)

    def _told(self, meta: Mapping[str, Any]) -> None:
        self._meta = meta
        owner = named(meta.get("ownerId"))
        # In a group the owner is whoever owns the group.
        if owner and (self._ours or meta.get("type") == "private"):
            self._reading.owners[owner] += 1

    def _joined(self, row: Mapping[str, Any]) -> None:
        self._names[named(row.get("platformId"))] = named(row.get("groupNickname")) or named(row.get("accountName"))

    def _place(self) -> Scene:
        if self._scene is None:
            private = self._meta.get("type") == "private"
            owner, name = named(self._meta.get("ownerId")), named(self._meta.get("name"))
            if not owner and self._reading.told.me in self._names:
                owner = str(self._reading.told.me)
            peers = [p for p in self._names if p and p != owner and not p.startswith(_TWIN)]
            peer = peers[0] if private and owner and len(peers) == 1 else ""
            given = peer if private else named(self._meta.get("groupId"))
            self._scene = Scene("private" if private else "group", given or name or self._path.stem)
        return self._scene

    def _message(self, row: Mapping[str, Any]) -> Message:
        scene, sender = self._place(), named(row.get("sender"))
        twins = self._ours and sender.startswith(_TWIN)
        if twins:
            sender = sender.removeprefix(_TWIN)
        read = joined if self._ours else canonical
        text, time = _text(row, read), moment(row.get("timestamp"), self._reading.told.zone)
        name = named(row.get("groupNickname")) or named(row.get("accountName")) or self._names.get(sender, "")
        made = message(
            named(row.get("platformMessageId")) or self._ids.of(scene, time, sender, text), scene, sender, name, time,
            text, reply_to=named(row.get("replyToMessageId")),
            scene_name="" if scene.private else named(self._meta.get("name")),
        )  # fmt: skip
        return replace(made, origin=Origin.TWIN) if twins else made


def _text(row: Mapping[str, Any], read: Callable[[str], str]) -> str:
    """Canonical text of a message; Skipped says why there is none."""
    kind, said = row.get("type"), row.get("content")
    words = said if isinstance(said, str) else ""
    if not isinstance(kind, int):
        raise Skipped("a message without a type")
    if kind in _LEFT_OUT:
        raise Skipped(_LEFT_OUT[kind])
    if kind in FIXED:
        return FIXED[kind]
    if kind == FILE:
        return file(words.strip().removeprefix("[文件:").removeprefix("[文件]").removesuffix("]"))
    if kind == EMOJI:
        shown = read(words)
        return shown if shown.startswith("[") and shown.endswith("]") and "http" not in shown else STICKER
    if kind in (LINK, SHARE):
        return card(words.strip().removeprefix("[卡片").removeprefix(":").removesuffix("]"))
    return read(words) if kind in (TEXT, REPLY) else read(words) or "[未知]"


SOURCE = Source("chatlab", "ChatLab", sniff, items)
