"""OneBot v11 event (a dict, as it came over the socket or lies in a JSONL file) → Message or recall.

Pure: nothing of NoneBot is needed, so that importing history and the live daemon share this one reading.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from bot import cq
from bot.message import Message, Origin, Scene
from bot.segments import POKE, to_text, whole

MESSAGE_TYPES = ("message", "message_sent")
POKE_ID = "poke-"
"""How the id of a poke begins: it has none of its own."""
_DIGITS_MAX = 18
"""Digits of a sequence number at most: more do not fit the archive's 64-bit column."""


@dataclass(frozen=True, slots=True)
class Recall:
    """A message that was taken back: where, which, by whom (empty: not known), when (aware UTC).

    Args:
        seq: the message's running number in its group, where a history tells it.
    """

    scene: Scene
    message_id: str
    operator_id: str
    time: datetime
    seq: int | None = None


class BanKind(StrEnum):
    """Why an account may not speak in a group: a ban of its own, of the whole group, or it is in it no more."""

    OWN = "own"
    ALL = "all"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Mute:
    """An account may not speak in a group, or may again; lifting one kind of ban leaves the others.

    Args:
        account: whose ban it is.
        scene: the group.
        seconds: how long; inf until lifted, 0 lifts it.
        kind: why.
        since: when it began, or was lifted (aware UTC).
    """

    account: str
    scene: Scene
    seconds: float
    kind: BanKind = BanKind.OWN
    since: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True, slots=True)
class Online:
    """Whether QQ has the account logged in: what a client's heartbeat says, or that it was logged out."""

    account: str
    online: bool


class MalformedEvent(ValueError):
    """An event that lacks what makes it a message; says which field."""


def read(
    event: Mapping[str, Any], name_of: Callable[[str], str | None] = lambda _: None
) -> Message | Recall | Mute | Online | None:
    """The message or poke, recall, mute of the account or state of it an event tells of; None for every other kind.

    To be thrown out of a group is a mute without end, to be in it again lifts that one.

    Args:
        event: OneBot v11 event.
        name_of: newest nickname of a QQ number, for `@昵称` where the event carries only the number.

    Raises:
        MalformedEvent: a message or recall without its ids or time.
    """
    kind = event.get("post_type")
    if kind in MESSAGE_TYPES:
        return message(event, name_of)
    if kind == "notice" and event.get("notice_type") in ("group_recall", "friend_recall"):
        return _recall(event)
    if kind == "notice" and (event.get("notice_type"), event.get("sub_type")) == ("notify", "poke"):
        return _poke(event, name_of)
    if kind == "notice":
        return _of_account(event)
    status = event.get("status")
    if event.get("meta_event_type") == "heartbeat" and isinstance(status, Mapping) and "online" in status:
        return Online(str(event.get("self_id", "")), status["online"] is not False)
    return None


def _of_account(event: Mapping[str, Any]) -> Mute | Online | None:
    """What a notice says of where the account may speak."""
    own = str(event.get("self_id", ""))
    match event.get("notice_type"), event.get("sub_type"):
        case "group_ban", _:
            return _mute(event)
        case "bot_offline", _:
            return Online(own, online=False)
        case "group_decrease", "kick_me" | "disband":
            return _gone(event, own, math.inf)
        case "group_decrease" | "group_increase" as change, _ if str(event.get("user_id")) == own:
            return _gone(event, own, math.inf if change == "group_decrease" else 0.0)
        case _:
            return None


def message(event: Mapping[str, Any], name_of: Callable[[str], str | None] = lambda _: None) -> Message:
    """The message of a `message` or `message_sent` event, or of a history action's answer.

    Raises:
        MalformedEvent: ids or time are missing.
    """
    sender = event.get("sender") if isinstance(event.get("sender"), Mapping) else {}
    assert isinstance(sender, Mapping)
    sender_id = _number(event, "user_id")
    segments = event.get("message")
    if isinstance(segments, str):
        # The base standard: a string is CQ code, unless the event says that it is not.
        plain = event.get("message_format") == "array"
        segments = [{"type": "text", "data": {"text": segments}}] if plain else cq.segments(segments)
    if not isinstance(segments, list | tuple):
        raise MalformedEvent("field 'message' is neither a list of segments nor text")
    told = to_text(segments, name_of)
    return Message(
        id=_number(event, "message_id"),
        scene=_scene(event, sender_id),
        sender_id=sender_id,
        sender_name=whole(str(sender.get("card") or sender.get("nickname") or "")),
        time=_time(event),
        text=told.text,
        origin=Origin.HUMAN,
        reply_to=told.reply_to,
        mentions=told.mentions,
        recalled=bool(event.get("recalled", False)),
        seq=_sequence(event),
        segments=tuple(s for s in segments if isinstance(s, Mapping)),
        scene_name=whole(str(event.get("group_name") or "")),
    )


def _scene(event: Mapping[str, Any], sender_id: str) -> Scene:
    kind = event.get("message_type")
    # A private message through a group carries that group's number too.
    if kind == "group" or (kind != "private" and event.get("group_id")):
        return Scene("group", _number(event, "group_id"))
    own = sender_id == str(event.get("self_id", ""))
    if own and event.get("target_id"):
        return Scene("private", _number(event, "target_id"))
    return Scene("private", sender_id)


def _recall(event: Mapping[str, Any]) -> Recall:
    message_id, time = _number(event, "message_id"), _time(event)
    if event["notice_type"] == "group_recall":
        return Recall(Scene("group", _number(event, "group_id")), message_id, _number(event, "operator_id"), time)
    peer = _number(event, "user_id")
    return Recall(Scene("private", peer), message_id, peer, time)


def _poke(event: Mapping[str, Any], name_of: Callable[[str], str | None]) -> Message:
    """A poke as what is seen of it: `[戳一戳]`, with `@昵称` where somebody else than the account was poked.

    Who poked: NapCat says `sender_id` in private, where `user_id` is the peer; LLBot and groups say `user_id`.
    """
    own, when = str(event.get("self_id", "")), _time(event)
    target = _number(event, "target_id")
    sender_id = _number(event, "sender_id") if event.get("sender_id") else _number(event, "user_id")
    if event.get("group_id"):
        scene = Scene("group", _number(event, "group_id"))
    else:
        scene = Scene("private", target if sender_id == own else sender_id)
    whom = "" if target == own or scene.private else f"@{name_of(target) or target}"
    return Message(
        id=f"{POKE_ID}{int(when.timestamp())}-{sender_id}-{target}", scene=scene, sender_id=sender_id,
        sender_name=name_of(sender_id) or "", time=when, text=f"{POKE}{whom}", mentions=(target,),
    )  # fmt: skip


def _mute(event: Mapping[str, Any]) -> Mute | None:
    """A ban of the account, or of the whole group (user 0); of somebody else: None."""
    own = str(event.get("self_id", ""))
    if str(event.get("user_id")) not in ("0", own):
        return None
    scene = Scene("group", _number(event, "group_id"))
    kind = BanKind.ALL if str(event.get("user_id")) == "0" else BanKind.OWN
    if event.get("sub_type") == "lift_ban":
        return Mute(own, scene, 0.0, kind, _since(event))
    try:
        seconds = float(event.get("duration") or 0)
    except (TypeError, ValueError) as e:
        raise MalformedEvent("field 'duration' is not seconds") from e
    endless = seconds < 0 or kind is BanKind.ALL
    return Mute(own, scene, math.inf if endless else seconds, kind, _since(event))


def _gone(event: Mapping[str, Any], own: str, seconds: float) -> Mute:
    """The account is in a group no more, or (0 seconds) again."""
    return Mute(own, Scene("group", _number(event, "group_id")), seconds, BanKind.GONE, _since(event))


def _since(event: Mapping[str, Any]) -> datetime:
    """When it happened; now, where the event does not tell: a ban counts all the same."""
    try:
        return _time(event)
    except MalformedEvent:
        return datetime.now(UTC)


def _number(event: Mapping[str, Any], key: str) -> str:
    value = event.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str) or str(value).strip() in ("", "0"):
        raise MalformedEvent(f"field {key!r} is missing or empty")
    return str(value)


def _time(event: Mapping[str, Any]) -> datetime:
    value = event.get("time")
    try:
        return datetime.fromtimestamp(float(value), UTC)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, OSError) as e:
        raise MalformedEvent("field 'time' is not unix seconds") from e


def _sequence(event: Mapping[str, Any]) -> int | None:
    """The chat's own running number: NapCat's `real_seq`; LLBot's `message_seq`, unless it only repeats the id."""
    for key in ("real_seq", "message_seq"):
        value = event.get(key)
        digits = str(value)
        if digits.isdecimal() and len(digits) <= _DIGITS_MAX and digits != str(event.get("message_id")):
            return int(digits)
    return None
