"""plugins/chat/listening.py: which commands are answered, and what of a message the twin is told."""

import math
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from chats import ACCOUNT, FRIEND, GROUP, ME
from plugged import plugged
from stage import Stage

from bot.commands import Call, Commands, Who
from bot.errors import PersonaError
from bot.events import BanKind, Mute
from bot.message import Message, Origin, Scene


class Client:
    """Keeps the answers of commands."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    async def send(self, account: str, scene: Scene, segments: list[dict[str, Any]], origin: Origin) -> str:
        self.sent.append(segments[0]["data"]["text"])
        return str(len(self.sent))


class Hall:
    """A listener over a presence, with the commands `/ping` and `/about`."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.client = stage, Client()
        commands = Commands("/", (ME,))
        commands.add("ping", Who.EVERYONE, self._ping)
        commands.add("about", Who.EVERYONE, self._about)
        twin = SimpleNamespace(
            settings=stage.settings, archive=stage.archive, presence=stage.presence, commands=commands,
            record_own=lambda *_: None,
        )  # fmt: skip
        self.listener: Any = plugged("chat.listening").Listener(twin, self.client)
        self._id = 0

    async def _ping(self, _: Call) -> str:
        return "pong"

    async def _about(self, _: Call) -> str:
        raise PersonaError("no version of 'xiaoman' verifies")

    async def hear(self, text: str, sender: str, role: str = "member", later_s: int = 0) -> None:
        self._id += 1
        at = int(datetime.now(UTC).timestamp()) + later_s
        when, origin = datetime.fromtimestamp(at, UTC), Origin.SYSTEM if text.startswith("/") else Origin.HUMAN
        self.stage.archive.append([Message(str(self._id), GROUP, sender, "", when, text, origin)])
        await self.listener.hear(
            {
                "post_type": "message", "message_type": "group", "self_id": int(ACCOUNT), "group_id": int(GROUP.id),
                "user_id": int(sender), "message_id": self._id, "time": at, "sender": {"role": role},
                "message": [{"type": "text", "data": {"text": text}}],
            }
        )  # fmt: skip


@pytest.fixture
def hall(stage: Stage) -> Hall:
    return Hall(stage)


async def test_where_the_account_is_muted_not_even_the_owner_is_answered(hall: Hall) -> None:
    hall.stage.presence.mutes.told(Mute(ACCOUNT, GROUP, 600))
    await hall.hear("/ping", ME)
    assert hall.client.sent == []
    hall.stage.presence.mutes.told(Mute(ACCOUNT, GROUP, 0))
    await hall.hear("/ping", ME)
    assert hall.client.sent == ["pong"]


async def test_from_an_account_that_is_logged_out_nobody_is_answered(hall: Hall) -> None:
    hall.stage.presence.online(ACCOUNT, online=False)
    await hall.hear("/ping", ME)
    assert hall.client.sent == []


async def test_beyond_the_budget_the_owner_alone_is_answered(hall: Hall) -> None:
    for _ in range(hall.stage.settings.chat.scene_per_minute):
        await hall.hear("/ping", ME)
    hall.client.sent.clear()
    await hall.hear("/ping", FRIEND)
    await hall.hear("/ping", ME)
    assert hall.client.sent == ["pong"]


async def test_where_no_persona_loads_the_owner_is_told_why_and_nobody_else(hall: Hall) -> None:
    await hall.hear("/about", FRIEND)
    assert hall.client.sent == []
    await hall.hear("/about", ME)
    assert hall.client.sent == ["no version of 'xiaoman' verifies"]


@pytest.mark.parametrize(("role", "lifted"), [("member", True), ("admin", False)])
async def test_a_plain_member_who_speaks_shows_that_not_all_are_muted(hall: Hall, role: str, lifted: bool) -> None:
    hall.stage.presence.mutes.told(Mute(ACCOUNT, GROUP, math.inf, BanKind.ALL))
    await hall.hear("能说话了", FRIEND, role, later_s=2)
    await hall.hear("/ping", ME, "owner")
    assert hall.client.sent == (["pong"] if lifted else [])
