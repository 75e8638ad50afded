"""WeChat as CSV (WeClone, PyWxDump, 留痕, WeFlow, Qing-Digital-Self) → messages.

Both layouts: `…,room_name,msg,src,CreateTime[,is_forward]` and `…,room_name,content,CreateTime` whose content is JSON
with `msg` and `src`; WeFlow has no `room_name`. `talker` is who speaks. A scene is its `room_name`, which
PyWxDump writes for private chats, too; without one it is the peer, whose rows have `is_sender` 0, or the file's name.

A folder is read with its folders, one for each contact as WeClone wants them and PyWxDump leaves them. Of the parts of
one chat (`NAME_0_5000.csv`, `NAME_5000_10000.csv`) all are looked at to tell whether it is a group. What else the
folder holds is not read here (training/folders.py).
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath

from bot.errors import ImportFault
from bot.message import Message, Scene
from training.importers.record import CALL, RECALLED, SYSTEM, Ids, each, message, moment, named
from training.importers.rows import fields, records
from training.importers.source import Item, Reading, Skipped, Source, head
from training.importers.text import decoded
from training.importers.wording import FORWARD, PICTURE, STICKER, VIDEO, VOICE, canonical, card, file

_ROW = re.compile(r'"?\d{1,20}"?,"?-?\d{0,20}"?,"?[^",]{0,20}"?,"?[01]"?,')
_QQ_GROUP = "QQ_GROUP_"
_AHEAD = 2_000
_FILES_SNIFFED = 50
_NEEDED = {"type_name", "is_sender", "talker", "CreateTime"}
_FIXED = {
    "图片": PICTURE, "语音": VOICE, "视频": VIDEO, "动画表情": STICKER, "表情包": STICKER, "位置": "[位置]",
    "合并转发的聊天记录": FORWARD, "聊天记录": FORWARD, "转账": "[卡片:转账]", "红包": "[卡片:红包]",
    "微信红包": "[卡片:红包]", "名片": "[卡片:名片]",
}  # fmt: skip
_SPOKEN = ("文本", "引用回复", "用户上传的GIF表情", "")
_CALLS, _SYSTEM = ("通话", "位置共享"), ("系统", "拍一拍", "邀请")


def sniff(path: Path, beginning: bytes) -> bool:
    """Whether its head names the columns; of a folder, that of any CSV in it."""
    if path.is_dir():
        return any(_is_chat(table) for table in islice(_tables(path), _FILES_SNIFFED))
    return _NEEDED <= set(_columns(decoded(beginning[:4096])))


def _columns(text: str) -> list[str]:
    try:
        return [c.strip() for c in next(csv.reader([text.lstrip().partition("\n")[0].strip()]), [])]
    except csv.Error:
        return []


def items(path: Path, reading: Reading) -> Iterator[Item]:
    """Every message, in the file's order.

    Raises:
        ImportFault: the file cannot be read.
    """
    if not path.is_dir():
        yield from _chat([path], reading)
        return
    chats: dict[Path, list[Path]] = {}
    for table in chat_files(path):
        chats.setdefault(table.with_name(_name(table)), []).append(table)
    size, done = sum(part.stat().st_size for parts in chats.values() for part in parts), 0
    for parts in chats.values():
        for made in _chat(parts, reading):
            here, reading.done, reading.size = reading.done, done + reading.done, size
            yield made
            reading.done = here
        done += sum(part.stat().st_size for part in parts)


def chat_files(folder: Path) -> list[Path]:
    """The chats' CSVs in a folder, the parts of one in their order."""
    return [table for table in _tables(folder) if _is_chat(table)]


def _tables(folder: Path) -> Iterator[Path]:
    """Its CSVs, the parts of a chat by their numbers; none that is hidden."""

    def order(file: Path) -> list[tuple[int, str]]:
        pieces = re.split(r"(\d+)", str(file.relative_to(folder)))
        return [(int(piece), "") if n % 2 else (0, piece) for n, piece in enumerate(pieces)]

    def hidden(file: Path) -> bool:
        return any(part.startswith(".") for part in file.relative_to(folder).parts)

    found = (file for file in folder.rglob("*") if file.suffix.lower() == ".csv" and file.is_file())
    yield from sorted((file for file in found if not hidden(file)), key=order)


def _is_chat(file: Path) -> bool:
    try:
        return sniff(file, head(file))
    except ImportFault:
        return False


def _name(file: Path) -> str:
    """The chat's name, as files are called that hold a part of it, too."""
    return re.sub(r"_\d+_\d+\Z", "", file.stem) or file.stem


def _chat(parts: Sequence[Path], reading: Reading) -> Iterator[Message]:
    """The messages of one chat."""
    peers = set().union(*map(_peers, parts))
    ids, name = Ids(), _name(parts[0])

    def make(row: Mapping[str, str] | Skipped) -> Message:
        if isinstance(row, Skipped):
            raise row
        text = _text(row)
        room = named(row.get("room_name"))
        if len(peers) > 1 or room.endswith("@chatroom") or room.startswith(_QQ_GROUP):
            scene = Scene("group", room.removeprefix(_QQ_GROUP) or name)
        else:
            scene = Scene("private", room or next(iter(peers), name))
        sender, time = named(row["talker"]), moment(row["CreateTime"], reading.told.zone)
        given = named(row.get("MsgSvrID"))
        message_id = given if given.strip("0") else ids.of(scene, time, sender, text)
        made = message(message_id, scene, sender, "", time, text)
        if row["is_sender"].strip() == "1":
            reading.owners[sender] += 1
        return made

    for part in parts:
        yield from each(_rows(part, reading), reading, make)


def _rows(path: Path, reading: Reading) -> Iterator[Mapping[str, str] | Skipped]:
    """The rows by their columns' names, or why one has no such columns."""
    columns: list[str] = []
    for record in records(path, reading, _ROW):
        if not columns:
            columns = _columns(record)
            continue
        try:
            yield dict(zip(columns, fields(record, (len(columns),), reading), strict=True))
        except Skipped as why:
            yield why


def _peers(path: Path) -> set[str]:
    """Who the owner talks with, looked up ahead of the reading: two or more make a group."""
    found: set[str] = set()
    for row in islice(_rows(path, Reading()), _AHEAD):
        if not isinstance(row, Skipped) and row.get("is_sender", "").strip() == "0" and not _is_system(row):
            found.add(named(row.get("talker")))
    return found - {""}


def _is_system(row: Mapping[str, str]) -> bool:
    return any(word in row.get("type_name", "") for word in (*_SYSTEM, "撤回"))


def _text(row: Mapping[str, str]) -> str:
    """Canonical text of a row; Skipped says why there is none."""
    kind, said, source = row["type_name"].strip(), row.get("msg", ""), row.get("src", "")
    if "content" in row and "msg" not in row:
        said, source = _content(row["content"])
    if "撤回" in kind:
        raise Skipped(RECALLED)
    if any(word in kind for word in _SYSTEM):
        raise Skipped(SYSTEM)
    if any(word in kind for word in _CALLS):
        raise Skipped(CALL)
    if kind in _FIXED:
        return _FIXED[kind]
    if kind == "文件":
        return file(_base(source) or said)
    if kind in _SPOKEN:
        return canonical(said)
    return card("" if said.lstrip().startswith("<") else said)


def _content(value: str) -> tuple[str, str]:
    try:
        told = json.loads(value, strict=False)
    except ValueError as e:
        raise Skipped("a content that is not JSON") from e
    return str(told.get("msg") or ""), str(told.get("src") or "")


def _base(name: str) -> str:
    return PurePosixPath(PureWindowsPath(name).name).name


SOURCE = Source("wechat-csv", "WeChat CSV", sniff, items)
