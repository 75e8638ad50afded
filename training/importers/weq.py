"""WeQ exports → messages: JSON (bare array, or meta + members + messages), JSONL, TXT and CSV.

Elements bear the names of WeQ's decoder (H3CoF6/WeQ, packages/codec/src/element/spec.ts): `text` and `at` have
`textContent`, `face` a `faceText`, `mface` an `emojiDesc`, `pic` a `subType` (not 0 for stickers) and an `md5`. A bare
array, TXT and CSV do not say which chat they are: the scene is then a group named as the file. A private chat is the
member who is not its owner.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bot.message import Message, Scene, Segment
from bot.segments import to_text
from training.importers.jsonscan import members, objects, shapes
from training.importers.record import CALL, RECALLED, SYSTEM, Ids, each, message, moment, named, number
from training.importers.rows import fields, records
from training.importers.source import Item, Reading, Skipped, Source, head
from training.importers.text import chunks, decoded
from training.importers.wording import FORWARD, POKE, STICKER, VIDEO, VOICE, canonical, card_of_json, file

_LINE = re.compile(r"\[(\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2})\] (\d{1,20}): ?(.*)", re.DOTALL)
_CSV_HEAD = "时间,发送者QQ,发送者ID,内容,消息ID,序号"
_CSV_ROW = re.compile(r'"?\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}"?,"?\d*"?,')
_OWN_KEYS = {"msgId", "sendTime", "senderUid", "elements"}
_REPLY = re.compile(r"\A\[回复(?:: [^\n]{0,40}…?)?\] ")
_CALL = "[通话]"
_FORWARDED = re.compile(r"\[合并转发\]\n.*", re.DOTALL)
"""What others said, written out below the mark; such a message holds nothing else."""
_FACE = "[表情]"
"""What TXT and CSV call a sticker and a market face."""


def sniff(_: Path, beginning: bytes) -> bool:
    """Whether it has WeQ's keys, its table's head, or lines of `[time] number: text`."""
    keys = [{route.removeprefix("messages.").removeprefix("*.") for route in s} for s in shapes(beginning)]
    if any(_OWN_KEYS <= k for k in keys):
        return True
    text = decoded(beginning)
    return text.startswith(_CSV_HEAD) or any(_LINE.fullmatch(x) for x in text[:4096].split("\n")[:5])


def items(path: Path, reading: Reading) -> Iterator[Item]:
    """Every message, in the file's order.

    Raises:
        ImportFault: the file cannot be read.
    """
    start = decoded(head(path)[:4096])
    if start.startswith(_CSV_HEAD):
        yield from _table(path, reading)
    elif start.lstrip()[:1] in ("{", "[") and not _LINE.match(start):
        yield from _json(path, reading)
    else:
        yield from _log(path, reading)


class _Chat:
    """A chat being read: its scene, and what can be quoted by running number."""

    def __init__(self, path: Path, reading: Reading) -> None:
        self._reading, self._path = reading, path
        self.scene, self.name = Scene("group", path.stem), ""
        self._owner, self._peers = "", set[str]()

    def told(self, meta: Mapping[str, Any]) -> None:
        """Take scene and, in a private chat, owner from `meta`."""
        self.name = named(meta.get("name"))
        private = meta.get("type") == "private"
        scene_id = named(meta.get("groupId")) or self.name or self._path.stem
        self.scene = Scene("private" if private else "group", scene_id)
        if private and (owner := named(meta.get("ownerId"))):
            self._owner = owner
            self._reading.owners[owner] += 1

    def joined(self, member: Mapping[str, Any]) -> None:
        """Take a member: in a private chat the one who is not the owner is the scene."""
        if self.scene.private and self._owner and (who := named(member.get("platformId"))) != self._owner:
            self._peers.add(who)
            if len(self._peers) == 1 and who:
                self.scene = Scene("private", who)

    def message(self, row: Mapping[str, Any]) -> Message:
        """A message; Skipped says why there is none."""
        elements = [e for e in row["elements"] if isinstance(e, Mapping)]
        kinds = {str(e.get("type")) for e in elements}
        if "grayTipRevoke" in kinds:
            raise Skipped(RECALLED)
        if kinds and all(k.startswith("grayTip") for k in kinds):
            raise Skipped(SYSTEM)
        if kinds == {"call"}:
            raise Skipped(CALL)
        segments = [s for e in elements if (s := _segment(str(e.get("type")), e.get("data") or {})) is not None]
        replies = [e.get("data") or {} for e in elements if e.get("type") == "reply"]
        quoted = (named(replies[0].get("replyOrigMsgIdRef")) or named(replies[0].get("origMsgId"))) if replies else ""
        sender = number(row.get("senderUin")) or named(row.get("senderUid"))
        return message(
            named(row.get("msgId")), self.scene, sender,
            named(row.get("groupNickname")) or named(row.get("senderName")),
            moment(row.get("sendTime"), self._reading.told.zone), to_text(segments, self._reading.names.get).text,
            reply_to=quoted, seq=row.get("msgSeq"), segments=segments,
            scene_name="" if self.scene.private else self.name,
        )  # fmt: skip


def _segment(kind: str, data: Mapping[str, Any]) -> Segment | None:
    match kind:
        case "reply" | "inlineKeyboard" | "unknown":
            return None
        case "text" | "at":
            return _text(str(data.get("textContent") or ""))
        case "face":
            return {
                "type": "face",
                "data": {"id": named(data.get("faceId")), "raw": {"faceText": data.get("faceText")}},
            }
        case "pic":
            return {"type": "image", "data": _picture(data)}
        case "ptt":
            return _text(VOICE)
        case "video":
            return _text(VIDEO)
        case "mface":
            return {"type": "mface", "data": {"summary": named(data.get("emojiDesc"))}}
        case "file" | "onlineFile" | "onlineFolder":
            return _text(file(data.get("fileName")))
        case "ark":
            return _text(card_of_json(data.get("arkData")))
        case "multiMsg":
            return _text(FORWARD)
        case "markdown":
            return _text(str(data.get("markdownTextSummary") or data.get("markdownContent") or "[卡片]"))
        case "shareLocation":
            return _text("[位置]")
        case "emojiBounce":
            return _text("[表情]")
        case "wallet":
            return _text("[卡片:红包]")
        case _:
            return None if kind.startswith("grayTip") else _text(POKE if kind == "poke" else "[未知]")


def _picture(data: Mapping[str, Any]) -> dict[str, Any]:
    """As `ntqq_body` reads the same element; `md5` is what the sticker library knows a sticker by."""
    summaries = data.get("summary")
    summary = next((s for s in summaries if isinstance(s, str) and s), "") if isinstance(summaries, list) else ""
    file = named(data.get("md5")) or named(data.get("fileName"))
    told = {"sub_type": data.get("subType") or 0, "summary": summary}
    return told | {"file": file} if to_text([{"type": "image", "data": told}], _nobody).text == STICKER else told


def _nobody(_: str) -> None:
    return None


def _text(words: str) -> Segment:
    return {"type": "text", "data": {"text": words}}


def _json(path: Path, reading: Reading) -> Iterator[Message]:
    chat = _Chat(path, reading)
    number = 0

    def line(row: Mapping[str, Any]) -> Message | None:
        if row.get("_type") == "header":
            chat.told(row.get("meta") or {})
        if row.get("_type") == "member":
            chat.joined(row)
        return chat.message(row) if "elements" in row else None

    def make(member: tuple[str, Any]) -> Message | None:
        nonlocal number
        route, value = member
        if route == "meta":
            chat.told(value)
        if route == "members.*":
            chat.joined(value)
        if route not in ("messages.*", "*"):
            return None
        number += 1
        reading.place = f"{path.name} message {number}"
        return chat.message(value)

    if any("messages" in s or "*" in s for s in shapes(head(path))):
        yield from each(members(chunks(path, reading), ("", "messages", "members"), reading.skip), reading, make)
    else:
        yield from each(objects(path, reading), reading, line)


def _log(path: Path, reading: Reading) -> Iterator[Message]:
    """`[time] number: text`, over several lines where the text has them."""
    scene, ids = Scene("group", path.stem), Ids()

    def make(record: str) -> Message:
        found = _LINE.fullmatch(record)
        if found is None:
            raise Skipped("a line without time and number")
        return _plain(ids, scene, found[1], found[2], found[3], reading)

    yield from each(records(path, reading, _LINE), reading, make)


def _table(path: Path, reading: Reading) -> Iterator[Message]:
    scene, ids = Scene("group", path.stem), Ids()

    def make(record: str) -> Message | None:
        if record.startswith(_CSV_HEAD):
            return None
        time, uin, uid, content, message_id, seq = fields(record, (6,), reading)
        return _plain(ids, scene, time, number(uin) or uid, content, reading, message_id, seq)

    yield from each(records(path, reading, _CSV_ROW), reading, make)


def _plain(
    ids: Ids, scene: Scene, written: str, sender: str, content: str, reading: Reading, message_id: str = "",
    seq: str = "",
) -> Message:  # fmt: skip
    text = canonical(_FORWARDED.sub("[合并转发]", _REPLY.sub("", content))).replace(_FACE, STICKER)
    if "撤回了" in text and text.startswith("[") and text.endswith("]"):
        raise Skipped(RECALLED)
    if text in (_CALL, "[群提示]", "[临时会话]") or text.startswith(("[文件传输完成", "[临时会话:")):
        raise Skipped(SYSTEM)
    time = moment(written, reading.told.zone)
    return message(
        message_id.strip() or ids.of(scene, time, sender, text), scene, sender, "", time, text, seq=seq.strip()
    )


SOURCE = Source("weq", "WeQ", sniff, items)
