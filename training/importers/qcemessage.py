"""One message of QQChatExporter (V3–V6) → a message.

V6 lists what a message is made of. V4 and V5 list it, too, but put the whole rendered text before it as a first `text`
element; V3 has the rendered text and lists of what is in it. Known from the project's own exporter and its snapshots.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from bot.message import Message, Scene, Segment
from bot.segments import to_text
from training.importers.record import CALL, EMPTY, RECALLED, SYSTEM, Ids, message, moment, named, number
from training.importers.source import Reading, Skipped
from training.importers.wording import FORWARD, PICTURE, STICKER, canonical, card, card_of_json

RECENT = 20_000
"""Messages among which a quoted one is looked up by its time and sender."""
_WHOLE = {"forward", "json", "location", "file", "video", "audio", "market_face", "wallet", "markdown"}
_QUOTE = re.compile(r"\A\[回复(?:消息\]| [^\n]*\]\n)\s*")
_NOBODY = "未知"


def peer(info: Mapping[str, Any], rows: Iterable[Any]) -> str:
    """The number of who a private chat is with, where `chatInfo` does not tell it; empty if the rows do not either.

    By the peer's inner id; without one it is who is not the owner, if that can be told: the chat has two sides.

    Args:
        info: `chatInfo`.
        rows: the chat's messages as they stand in the file; read up to the first one that tells it.
    """
    uid, own_uid, own_uin = named(info.get("peerUid")), named(info.get("selfUid")), number(info.get("selfUin"))
    if info.get("type", "group") == "group" or number(info.get("peerUin")) or uid.isdecimal():
        return ""
    if not (uid or own_uid or own_uin):
        return ""
    for row in rows:
        with suppress(AttributeError):  # a record of another shape; it is counted when it is read
            theirs, uin = _sender(row)
            other = theirs != own_uid and uin != own_uin and bool(own_uin or theirs)
            if uin and not _by_the_system(row) and (theirs == uid if uid else other):
                return uin
    return ""


def _sender(row: Mapping[str, Any]) -> tuple[str, str]:
    """Inner id and number of a sender; either may be empty."""
    sender, raw = row.get("sender") or {}, row.get("rawMessage") or {}
    return named(sender.get("uid")), number(sender.get("uin")) or number(raw.get("senderUin"))


def _by_the_system(row: Mapping[str, Any]) -> bool:
    return (
        bool(row.get("system") or row.get("isSystemMessage"))
        or row.get("type") == "system"
        or (_sender(row) == (_NOBODY, ""))
    )


class Chat:
    """A chat being read: where it is, who is who, what can be quoted.

    Args:
        info: `chatInfo`; empty where there is none.
        fallback: stands for the scene's id where neither number nor name is given.
        reading: gets owners.
    """

    def __init__(self, info: Mapping[str, Any], fallback: str, reading: Reading) -> None:
        kind = "group" if info.get("type", "group") == "group" else "private"
        self.name = named(info.get("name"))
        given = number(info.get("peerUin")) or named(info.get("peerUid"))
        self.scene = Scene(kind, given or self.name or fallback)
        self._own = {named(info.get("selfUid")), number(info.get("selfUin"))} - {""}
        self._reading = reading
        self._uins: dict[str, str] = {}
        self._ids = Ids()
        self._recent: OrderedDict[tuple[int, str], str | None] = OrderedDict()

    def message(self, row: Mapping[str, Any]) -> Message:
        """A message of a record; Skipped says why there is none."""
        sender, content = row.get("sender") or {}, row.get("content") or {}
        raw = row.get("rawMessage") or {}
        if row.get("recalled") or row.get("isRecalled"):
            raise Skipped(RECALLED)
        uid, uin = _sender(row)
        if _by_the_system(row):
            raise Skipped(SYSTEM)
        if uid and uin:
            self._uins[uid] = uin
        sender_id = uin or self._uins.get(uid, uid)
        time = moment(row.get("timestamp") or row.get("time"), self._reading.told.zone)
        segments, text = self._content(content)
        message_id = named(row.get("id")) or named(row.get("messageId"))
        made = message(
            message_id or self._ids.of(self.scene, time, sender_id, text), self.scene, sender_id,
            self._name(sender, raw), time, text, reply_to=self._quoted(content), mentions=self._mentions(content),
            seq=row.get("seq"), segments=segments, scene_name=self.name if not self.scene.private else "",
        )  # fmt: skip
        self._remember(made)
        if self._own & {uid, uin}:
            self._reading.owners[sender_id] += 1
        return made

    def _name(self, sender: Mapping[str, Any], raw: Mapping[str, Any]) -> str:
        keys = ("groupCard", "nickname", "name") if not self.scene.private else ("nickname", "name")
        given = (named(sender.get(k)) for k in keys)
        return next(filter(None, given), "") or named(raw.get("sendMemberName")) or named(raw.get("sendNickName"))

    # -- what it says -----------------------------------------------------------------------------

    def _content(self, content: Mapping[str, Any]) -> tuple[list[Segment], str]:
        """Segments as OneBot would have them, and canonical text."""
        elements = [e for e in content.get("elements") or () if isinstance(e, Mapping)]
        rendered = str(content.get("text") or "")
        others = [e for e in elements if e.get("type") not in ("reply", "at", "face")]
        if elements and not _repeated(elements, rendered):
            made = [s for e in elements if (s := self._segment(e)) is not None]
        elif others[1:] and all(e.get("type") in _WHOLE for e in others[1:]):
            made = [s for e in others[1:] if (s := self._segment(e)) is not None]
        else:
            text = _plain(content, rendered, elements[1:])
            stickers = [self._segment(e) for e in elements[1:] if _is_sticker(e)]
            # Where somebody typed `[动画表情]`, which of them is which cannot be told.
            return [s for s in stickers if s and text.count(STICKER) == len(stickers)], text
        return made, to_text(made, self._reading.names.get).text

    def _segment(self, element: Mapping[str, Any]) -> Segment | None:
        data = element.get("data") or {}
        match str(element.get("type")):
            case "reply":
                return None
            case "at":
                return {"type": "at", "data": {"qq": self._who(data), "name": named(data.get("name"))}}
            case "face":
                told = {"faceText": named(data.get("name"))}
                return {"type": "face", "data": {"id": named(data.get("id")), "raw": told}}
            case "market_face":
                keys = {"emoji_id": "emojiId", "emoji_package_id": "emojiPackageId", "key": "key"}
                known = {k: data[theirs] for k, theirs in keys.items() if data.get(theirs)}
                return {"type": "mface", "data": {"summary": f"[{named(data.get('name')).strip('[]')}]"} | known}
            case "image":
                # By its MD5 the library knows a sticker; a picture is never looked for.
                file = named(data.get("md5")) or named(data.get("filename"))
                return {"type": "image", "data": {"sub_type": 1, "file": file} if _is_sticker(element) else {}}
            case "audio":
                return {"type": "record", "data": {}}
            case "file":
                return {"type": "file", "data": {"name": named(data.get("filename"))}}
            case "json":
                said = card_of_json(data.get("content"))
                return _text(card(data.get("title") or data.get("description")) if said == "[卡片]" else said)
            case "wallet":
                return _text("[卡片:红包]")
            case "av_record":
                raise Skipped(CALL)
            case "system":
                raise Skipped(SYSTEM)
            case "forward":
                return {"type": "forward", "data": {"id": named(data.get("resId"))}}
            case kind:
                return {"type": kind, "data": data}

    def _who(self, data: Mapping[str, Any]) -> str:
        uid = named(data.get("uid"))
        return (
            "all" if uid == "all" or data.get("type") == "all" else number(data.get("uin")) or self._uins.get(uid, uid)
        )

    def _mentions(self, content: Mapping[str, Any]) -> list[str]:
        ats = [e.get("data") or {} for e in content.get("elements") or () if e.get("type") == "at"]
        return list(dict.fromkeys(self._who(at) for at in ats or content.get("mentions") or ()))

    # -- what it quotes ---------------------------------------------------------------------------

    def _quoted(self, content: Mapping[str, Any]) -> str | None:
        """The quoted message's id: by its time and sender, else as resolved; `messageId` is often off by one."""
        quotes = [e.get("data") or {} for e in content.get("elements") or () if e.get("type") == "reply"]
        quote = quotes[0] if quotes else content.get("reply")
        if not isinstance(quote, Mapping):
            return None
        second, sender = quote.get("timestamp"), named(quote.get("senderUin"))
        found = self._recent.get((int(second), sender)) if isinstance(second, int | float) and second > 0 else None
        return found or named(quote.get("referencedMessageId")) or None

    def _remember(self, made: Message) -> None:
        key = (int(made.time.timestamp()), made.sender_id)
        self._recent[key] = None if key in self._recent else made.id  # Two of one second: not told apart.
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)


def _repeated(elements: list[Mapping[str, Any]], rendered: str) -> bool:
    """Whether the first element is the whole rendered text, as in V4 and V5."""
    first = elements[0]
    return len(elements) > 1 and first.get("type") == "text" and (first.get("data") or {}).get("text") == rendered


def _is_sticker(element: Mapping[str, Any]) -> bool:
    return element.get("type") == "image" and (element.get("data") or {}).get("subType") == "sticker"


def _plain(content: Mapping[str, Any], rendered: str, elements: list[Mapping[str, Any]]) -> str:
    """Canonical text where there is only the rendered one."""
    if content.get("multiForward"):
        return FORWARD
    if isinstance(content.get("card"), Mapping):
        return card(content["card"].get("title"))
    quote = next((e.get("data") or {} for e in elements if e.get("type") == "reply"), content.get("reply"))
    if isinstance(quote, Mapping):
        rendered = rendered.removeprefix(f"[回复 {quote.get('senderName')}: {quote.get('content')}]")
        rendered = _QUOTE.sub("", rendered)
    text = canonical(rendered)
    for element in elements:
        if element.get("type") == "image":
            text = text.replace(PICTURE, STICKER if _is_sticker(element) else "\0", 1)
    text = text.replace("\0", PICTURE)
    if not text:
        kinds = [str(r.get("type")) for r in content.get("resources") or () if isinstance(r, Mapping)]
        text = canonical("".join(f"[{_RESOURCES[k]}]" for k in kinds if k in _RESOURCES))
    if not text:
        raise Skipped(EMPTY)
    return text


_RESOURCES = {"image": "图片", "video": "视频", "audio": "语音"}


def _text(words: str) -> Segment:
    return {"type": "text", "data": {"text": words}}
