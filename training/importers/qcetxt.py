"""QQChatExporter's TXT → messages.

The file has no numbers: a sender's id is the name, the scene's id the chat's name; message ids are made (record.Ids).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bot.message import Message, Scene
from training.importers.record import SYSTEM, Ids, each, message, moment
from training.importers.source import Item, Reading, Skipped, Source
from training.importers.text import decoded, lines
from training.importers.wording import canonical

_TIME = re.compile(r"时间[:：] ?(\d{4}[-/]\d{1,2}[-/]\d{1,2} \d{1,2}:\d{2}:\d{2})\s*")
_NAME = re.compile(r"(?:\[[^\[\]]{1,12}\] )?(.+)[:：]")
_HEADER = re.compile(r"聊天(名称|类型)[:：] ?(.*)")
_QUOTE = re.compile(r"\d\d-\d\d \d\d:\d\d (.+?) - (.*)")
_RULE = re.compile(r"={20,}")
_SYSTEM = "系统消息"
_RECENT = 2_000


@dataclass(slots=True)
class _Block:
    """One message as it is written: name, time, the content's lines, the quoted line."""

    place: str
    name: str
    time: str
    content: list[str] = field(default_factory=list)
    quote: str = ""
    kind: str = ""
    began: bool = False


def sniff(_: Path, beginning: bytes) -> bool:
    """Whether the file begins with the exporter's name in brackets."""
    return decoded(beginning[:4096]).lstrip().startswith("[QQChatExporter")


def items(path: Path, reading: Reading) -> Iterator[Item]:
    """Every message, in the file's order.

    Raises:
        ImportFault: the file cannot be read.
    """
    scene = ["group", path.stem]
    ids = Ids()
    recent: dict[tuple[str, str], str] = {}

    def make(block: _Block) -> Message:
        reading.place = block.place
        if block.name == _SYSTEM or "系统" in block.kind:
            raise Skipped(SYSTEM)
        where = Scene(scene[0], scene[1])
        content = "\n".join(block.content)
        if block.quote and content.startswith("[回复"):
            content = content.partition("]\n")[2] or content
        text, time = canonical(content), moment(block.time, reading.told.zone)
        quoted = _QUOTE.fullmatch(block.quote)
        made = message(
            ids.of(where, time, block.name, text), where, block.name, block.name, time, text,
            reply_to=recent.get((quoted[1], canonical(quoted[2]))) if quoted else None,
            scene_name=scene[1] if scene[0] == "group" else "",
        )  # fmt: skip
        recent[(made.sender_name, made.text)] = made.id
        if len(recent) > _RECENT:
            del recent[next(iter(recent))]
        return made

    yield from each(_blocks(path, reading, scene), reading, make)


def _blocks(path: Path, reading: Reading, scene: list[str]) -> Iterator[_Block]:
    """The messages' lines; a name is known for one by the time that follows it. `scene` gets kind and name."""
    block: _Block | None = None
    before, ended = "", False
    for line in lines(path, reading):
        time, name = _TIME.fullmatch(line), _NAME.fullmatch(before)
        if time and name:
            if block is not None:
                if block.content and block.content[-1] == before:
                    block.content.pop()
                yield _closed(block)
            block, ended = _Block(reading.place, name[1].strip(), time[1]), False
        elif block is None:
            if header := _HEADER.fullmatch(line):
                value = header[2].strip()
                if header[1] == "名称":
                    scene[1] = value or scene[1]
                else:
                    scene[0] = "group" if "群" in value else "private"
        elif _RULE.fullmatch(line):
            ended = True
        elif not ended:
            _add(block, line)
        before = line
    if block is not None:
        yield _closed(block)


def _add(block: _Block, line: str) -> None:
    key, _, value = line.partition(":")
    if not block.began and key == "类型":
        block.kind = value.strip()
    elif not block.began and key == "内容":
        block.began = True
        block.content.append(value.removeprefix(" "))
    elif key == "回复" and _QUOTE.fullmatch(value.strip()):
        block.quote = value.strip()
    elif block.began:
        block.content.append(line)


def _closed(block: _Block) -> _Block:
    """Without the lines on files and mentions that follow the content."""
    end = len(block.content)
    while end and not block.content[end - 1].strip():
        end -= 1
    if end and block.content[end - 1].startswith("提及: "):
        end -= 1
    files = end
    while files and re.fullmatch(r" {2}- \w+: .*", block.content[files - 1]):
        files -= 1
    if files and re.fullmatch(r"资源: \d+ 个文件", block.content[files - 1]):
        end = files - 1
    block.content = block.content[:end]
    return block


SOURCE = Source("qce-txt", "QQChatExporter TXT", sniff, items)
