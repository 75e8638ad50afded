"""The values every stage shares: a scene, a message, and where a message came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Self, TypeAlias

Segment: TypeAlias = Mapping[str, Any]
"""One OneBot segment: `{"type": str, "data": {...}}`."""


class Origin(StrEnum):
    """Who made a message. Only `HUMAN` messages are ever training labels."""

    HUMAN = "human"
    TWIN = "twin"
    SYSTEM = "system"
    """Commands, their answers, reports, gray tips: kept, never shown to the model."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A group or a private chat.

    Args:
        kind: `"group"` or `"private"`.
        id: the group's number, or the peer's QQ number.
    """

    kind: str
    id: str

    def __post_init__(self) -> None:
        if self.kind not in ("group", "private") or not self.id:
            raise ValueError(f"scene must be group:ID or private:ID, not {self.kind!r}:{self.id!r}")

    def __str__(self) -> str:
        return f"{self.kind}:{self.id}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The scene written as `group:ID` or `private:ID`; ValueError otherwise."""
        kind, _, scene_id = text.partition(":")
        return cls(kind, scene_id)

    @property
    def private(self) -> bool:
        """Whether this is a chat between two."""
        return self.kind == "private"


@dataclass(frozen=True, slots=True)
class Message:
    """One sent bubble.

    Args:
        id: the client's `message_id`; unique within the scene only.
        scene: where it was said.
        sender_id: QQ number.
        sender_name: group card, else nickname, as it was at the time.
        time: aware UTC; OneBot gives whole seconds.
        text: canonical text (bot/segments.py); line breaks are `↵`.
        origin: who made it.
        reply_to: the quoted message's id in the same scene.
        mentions: QQ numbers mentioned; `"all"` for @全体成员.
        recalled: whether it was taken back.
        seq: the client's running number in the scene, where it has one; orders messages of one second.
        segments: the raw segments, for what canonical text cannot hold.
        scene_name: the group's name where the event carried it.
    """

    id: str
    scene: Scene
    sender_id: str
    sender_name: str
    time: datetime
    text: str
    origin: Origin = Origin.HUMAN
    reply_to: str | None = None
    mentions: tuple[str, ...] = ()
    recalled: bool = False
    seq: int | None = None
    segments: tuple[Segment, ...] = field(default=(), hash=False)
    scene_name: str = ""

    def __post_init__(self) -> None:
        if self.time.tzinfo is None:
            raise ValueError(f"message {self.id!r} has a time without time zone")


def as_told(message_id: str) -> str:
    """The id that the client knows: what is stored under an id that was met before bears its second behind it."""
    return message_id.partition("@")[0]
