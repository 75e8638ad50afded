"""Messages for tests: `say(12, FRIEND, "在吗")` was said twelve seconds after `START`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from bot.message import Message, Origin, Scene

GROUP, PRIVATE = Scene("group", "20001"), Scene("private", "10001")
FRIEND, OTHER, ME, ACCOUNT = "10001", "10002", "30001", "40001"
NAMES = {FRIEND: "阿强", OTHER: "小红", ME: "小满", ACCOUNT: "小满"}
START = datetime(2026, 11, 20, 15, 10, tzinfo=UTC)
"""A Friday, 23:10 in Shanghai."""


def at(seconds: float) -> datetime:
    """The moment `seconds` after `START`."""
    return START + timedelta(seconds=seconds)


def say(seconds: float, sender: str, text: str, scene: Scene = GROUP, **more: Any) -> Message:
    """One bubble; its id tells when and by whom unless given."""
    origin = Origin.TWIN if sender == ACCOUNT else Origin.HUMAN
    values: dict[str, Any] = {
        "id": f"{sender}-{seconds:g}", "scene": scene, "sender_id": sender, "sender_name": NAMES.get(sender, sender),
        "time": at(seconds), "text": text, "origin": origin, "scene_name": "" if scene.private else "测试群",
    }  # fmt: skip
    return Message(**values | more)
