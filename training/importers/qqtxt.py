"""QQ's own TXT export (消息管理器) → messages.

A group's lines bear the sender's number, or a mail address; in private chats there are names alone. The file names the
chat (消息对象) and no number of it: the scene's id is that name, a sender's id the number or else the name. In a
private chat whoever does not bear the peer's name is the owner. Message ids are made (record.Ids).
"""

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from bot.message import Message, Scene
from training.importers.record import EMPTY, RECALLED, SYSTEM, Ids, each, message, moment
from training.importers.source import Item, Reading, Skipped, Source
from training.importers.text import decoded, lines
from training.importers.wording import canonical

_HEADER = re.compile(r"(\d{4}-\d{1,2}-\d{1,2} \d{1,2}:\d{2}:\d{2}) (.*)")
_FIELD = re.compile(r"消息(分组|对象)[:：](.*)")
_SPEAKER = re.compile(r"(.*?)(?:\((\d{5,})\)|<([^<>]+@[^<>]+)>)?")
_SPEAKER_CHARS = 300
_TITLE = re.compile(r"(?:【[^【】]{1,12}】)+(?=.)")
_RULE = re.compile(r"={40,}")
_SYSTEM_ID, _SYSTEM_NAME = "10000", "系统消息"
_TOOK_BACK = re.compile(r".{0,40}撤回了(?:一条|成员.{0,40}的一条)消息.{0,20}", re.DOTALL)


class Speaker(NamedTuple):
    """Who is named at the head of a message.

    Args:
        id: the number; of a name without one the number it had before, else the name.
        name: the name.
        written: number or name as this line has it: what a message's id is made of must not hang on earlier lines.
    """

    id: str
    name: str
    written: str


class Block(NamedTuple):
    """A message as it is written."""

    place: str
    chat: "Chat"
    time: datetime | str
    speaker: str
    text: str
    own: bool | None = None


class Chat:
    """A chat of QQ's own export: its kind, its name, its ids.

    Args:
        name: 消息对象.
        group: 消息分组, which for groups says so.
    """

    def __init__(self, name: str, group: str = "") -> None:
        self.name = name
        self._kind = "group" if re.search("群|讨论组", group) else "private" if "好友" in group else ""
        self._ids = Ids()
        self._numbers: dict[str, str] = {}

    def message(self, block: Block, reading: Reading) -> Message:
        """A message; Skipped says why there is none."""
        who = self._speaker(block.speaker)
        if who.id == _SYSTEM_ID or who.name == _SYSTEM_NAME:
            raise Skipped(SYSTEM)
        text = canonical(block.text)
        if not text:
            raise Skipped(EMPTY)
        if _TOOK_BACK.fullmatch(text):
            raise Skipped(RECALLED)
        time = block.time if isinstance(block.time, datetime) else moment(block.time, reading.told.zone)
        if not self._kind:
            self._kind = "group" if who.written != who.name else "private"
        scene = Scene(self._kind, self.name)
        if block.own or (block.own is None and scene.private and who.name != self.name):
            reading.owners[who.id] += 1
        return message(
            self._ids.of(scene, time, who.written, text), scene, who.id, who.name, time, text,
            scene_name="" if scene.private else self.name,
        )  # fmt: skip

    def _speaker(self, head: str) -> Speaker:
        """Number and name of `【管理员】昵称(123456)`; a name seen with a number keeps it."""
        found = _SPEAKER.fullmatch(head.strip()) if len(head) <= _SPEAKER_CHARS else None
        if found is None:
            raise Skipped("a message without a sender")
        name, number = _TITLE.sub("", found[1], count=1).strip(), found[2] or found[3]
        if number:
            self._numbers[name] = number
        return Speaker(number or self._numbers.get(name, name), name or number, number or name)


def sniff(_: Path, beginning: bytes) -> bool:
    """Whether it is headed 消息记录 or 消息对象 between rules of `=`, or begins with dated names and their numbers."""
    text = decoded(beginning)
    start = text[:2000]
    headed = "=" * 40 in start and ("消息对象:" in start or start.startswith("消息记录"))
    first = text.lstrip().partition("\n")[0][:_SPEAKER_CHARS].rstrip()
    return headed or (_HEADER.fullmatch(first) is not None and first.endswith((")", ">")))


def items(path: Path, reading: Reading) -> Iterator[Item]:
    """Every message, in the file's order.

    Raises:
        ImportFault: the file cannot be read.
    """

    def make(block: Block) -> Message:
        reading.place = block.place
        return block.chat.message(block, reading)

    yield from each(_blocks(path, reading), reading, make)


def _blocks(path: Path, reading: Reading) -> Iterator[Block]:
    """The messages' lines; a file may hold several chats."""
    chat = Chat(path.stem)
    group, head, content = "", ("", "", ""), list[str]()

    def closed() -> Iterator[Block]:
        while content and _RULE.fullmatch(content[-1]):
            content.pop()
        if head[1]:
            yield Block(head[0], chat, head[1], head[2], "\n".join(content))

    for line in lines(path, reading):
        if found := _HEADER.fullmatch(line):
            yield from closed()
            head, content = (reading.place, found[1], found[2]), []
        elif (told := _FIELD.fullmatch(line)) and (not head[1] or any(map(_RULE.fullmatch, content[-1:]))):
            yield from closed()
            head, content = ("", "", ""), []
            if told[1] == "分组":
                group = told[2]
            else:
                chat = Chat(told[2].strip() or path.stem, group)
        elif _RULE.fullmatch(line) or head[1]:
            content.append(line)
    yield from closed()


SOURCE = Source("qq-txt", "QQ's TXT export", sniff, items)
