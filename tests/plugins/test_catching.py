"""plugins/recorder/catching.py: what was missed is asked for where the twin is on, recorded, and not answered."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from chats import ACCOUNT, FRIEND, GROUP, PRIVATE
from loguru import logger
from plugged import plugged
from stage import Stage

from bot.commands import Call, Commands, Who
from bot.errors import ImportFault
from bot.message import Message, Scene

Answers = dict[str, list[dict[str, Any]]]


def missed(scene: Scene, text: str, ago_s: float) -> dict[str, Any]:
    """A message as a history tells it."""
    where = {"group_id": int(scene.id)} if not scene.private else {}
    number = abs(hash((str(scene), text))) % 10**9
    return {
        "self_id": int(ACCOUNT), "user_id": int(FRIEND), "time": int(datetime.now(UTC).timestamp() - ago_s),
        "message_id": number, "message_type": scene.kind, "sender": {"user_id": int(FRIEND), "nickname": "阿强"},
        "message": [{"type": "text", "data": {"text": text}}], **where,
    }  # fmt: skip


class Clients:
    """What each account's client answers, and what it was asked."""

    def __init__(self, history: Answers, refuses: tuple[Scene, ...] = ()) -> None:
        self.history, self.refuses = history, refuses
        self.asked: list[tuple[str, str]] = []
        self.asked_at: list[float] = []
        """Monotonic seconds of every page that was asked for."""
        self.others: list[str] = []
        """Other actions that were called."""

    def of(self, account: str) -> Callable[[str, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]:
        async def call(action: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
            if not action.endswith("_msg_history"):
                self.others.append(action)
                return {"status": "ok", "retcode": 0, "data": {"app_name": "NapCat.Onebot", "user_id": int(account)}}
            scene = f"group:{params['group_id']}" if "group_id" in params else f"private:{params['user_id']}"
            self.asked.append((account, scene))
            self.asked_at.append(time.monotonic())
            if Scene.parse(scene) in self.refuses:
                raise ImportFault("the client did not answer")
            return {"status": "ok", "retcode": 0, "data": {"messages": self.history.get(scene, [])}}

        return call


def catcher_of(stage: Stage, call_of: Any, pause_s: float = 0.0) -> Any:
    twin = SimpleNamespace(archive=stage.archive, presence=stage.presence, commands=Commands("/", ()))
    twin.commands.add("twin", Who.EVERYONE, lambda _: None)  # type: ignore[arg-type, return-value]
    return plugged("recorder.catching").Catcher(twin, call_of, pause_s)


async def connect(stage: Stage, clients: Clients, *accounts: str, pause_s: float = 0.0) -> Any:
    catcher = catcher_of(stage, clients.of, pause_s)
    for account in accounts:
        catcher.connected(account)
    await asyncio.gather(*catcher._tasks.values())
    return catcher


def known(stage: Stage, scene: Scene, ago_s: float, key: str = "k") -> None:
    at = datetime.now(UTC) - timedelta(seconds=ago_s)
    stage.archive.append([Message(f"{key}-{scene}", scene, FRIEND, "阿强", at, "以前说的")])


async def test_what_was_missed_is_recorded_and_not_answered(stage: Stage) -> None:
    known(stage, GROUP, 600)
    clients = Clients({str(GROUP): [missed(GROUP, "断线时说的", 300), missed(GROUP, "断线时又说的", 100)]})
    await connect(stage, clients, ACCOUNT)
    await stage.quiet()
    assert [m.text for m in stage.archive.window(GROUP, 9)] == ["以前说的", "断线时说的", "断线时又说的"]
    assert (stage.said, stage.outcomes(), stage.engine.asked) == ([], [], [])
    stage.hear("在吗")
    await stage.quiet()
    assert stage.said == ["好呀"]
    heard = "".join(piece.text for piece in stage.engine.asked[0].pieces)
    assert "断线时又说的" in heard, "what was missed is known to who answers next"


async def test_a_command_that_was_missed_is_neither_obeyed_nor_shown_to_the_model(stage: Stage) -> None:
    known(stage, GROUP, 600)
    clients = Clients({str(GROUP): [missed(GROUP, "/twin off", 300), missed(GROUP, "好吧", 100)]})
    await connect(stage, clients, ACCOUNT)
    assert [m.text for m in stage.archive.window(GROUP, 9)] == ["以前说的", "好吧"]
    assert stage.presence.scenes.is_on(GROUP)


async def test_a_wish_that_was_missed_counts_from_when_it_was_said(stage: Stage) -> None:
    known(stage, GROUP, 600)
    told = [missed(GROUP, "说了", 400), missed(GROUP, "/optout", 300), missed(GROUP, "还说", 200)]
    catcher, wishes = catcher_of(stage, Clients({str(GROUP): told}).of), []

    async def opt_out(call: Call) -> str:
        wishes.append((call.sender_id, call.time))
        stage.archive.optouts.note(call.sender_id, "out", "self", call.time)
        return "好"

    catcher._twin.commands.add("optout", Who.EVERYONE, opt_out, always=True)
    catcher.connected(ACCOUNT)
    await asyncio.gather(*catcher._tasks.values())
    assert wishes == [(FRIEND, datetime.fromtimestamp(told[1]["time"], UTC))]
    assert stage.archive.window(GROUP, 9) == []
    assert stage.said == []


async def test_a_wish_that_came_by_itself_is_not_obeyed_again_at_every_connection(stage: Stage) -> None:
    told = [missed(GROUP, "/optout", 300), missed(GROUP, "/optin", 250), missed(GROUP, "在", 50)]
    known(stage, GROUP, 100)
    catcher, wishes = catcher_of(stage, Clients({str(GROUP): told}).of), []

    async def wish(call: Call) -> str:
        wishes.append(call.time)
        return "好"

    for name in ("optout", "optin"):
        catcher._twin.commands.add(name, Who.EVERYONE, wish, always=True)
    for _ in range(2):
        catcher.connected(ACCOUNT)
        await asyncio.gather(*catcher._tasks.values())
    assert wishes == []
    assert [m.text for m in stage.archive.window(GROUP, 9)] == ["以前说的", "在"]


@pytest.mark.parametrize("fault", ["asking", "obeying"])
async def test_a_fault_while_catching_up_is_logged(stage: Stage, fault: str) -> None:
    known(stage, GROUP, 600)
    clients = Clients({str(GROUP): [missed(GROUP, "/optout", 300)]})

    def of(account: str) -> Any:
        if fault == "asking":
            raise RuntimeError("a fault of ours")
        return clients.of(account)

    async def opt_out(call: Call) -> str:
        raise RuntimeError("a fault of ours")

    catcher = catcher_of(stage, of)
    catcher._twin.commands.add("optout", Who.EVERYONE, opt_out, always=True)
    logged: list[str] = []
    sink = logger.add(logged.append, level="ERROR", format="{message}")  # type: ignore[arg-type]
    catcher.connected(ACCOUNT)
    await asyncio.gather(*catcher._tasks.values(), return_exceptions=True)
    logger.remove(sink)
    assert len(logged) == 1
    assert "not all asked for" in logged[0]
    assert "a fault of ours" in logged[0], "with where it happened"


async def test_what_comes_by_itself_at_once_does_not_hide_what_was_missed(stage: Stage) -> None:
    known(stage, GROUP, 600)
    clients = Clients({str(GROUP): [missed(GROUP, "断线时说的", 300)]})
    catcher = catcher_of(stage, clients.of)
    catcher.connected(ACCOUNT)
    stage.archive.append([Message("live", GROUP, FRIEND, "阿强", datetime.now(UTC) + timedelta(seconds=1), "刚说的")])
    await asyncio.gather(*catcher._tasks.values())
    assert [m.text for m in stage.archive.window(GROUP, 9)] == ["以前说的", "断线时说的", "刚说的"]


async def test_only_scenes_that_are_on_and_were_alive_are_asked_for_the_newest_first(stage: Stage) -> None:
    second, old = Scene("group", "20002"), Scene("group", "20003")
    for scene in (second, old):
        stage.presence.switch(scene, True, datetime.now(UTC))
    known(stage, GROUP, 600)
    known(stage, PRIVATE, 60)
    known(stage, second, 60)
    known(stage, old, 8 * 86_400)
    clients = Clients({})
    await connect(stage, clients, ACCOUNT)
    assert clients.asked == [(ACCOUNT, str(second)), (ACCOUNT, str(GROUP))]


async def test_a_scene_the_client_refuses_does_not_keep_the_others_from_being_asked_for(stage: Stage) -> None:
    second = Scene("group", "20002")
    stage.presence.switch(second, True, datetime.now(UTC))
    known(stage, GROUP, 600)
    known(stage, second, 60)
    clients = Clients({str(GROUP): [missed(GROUP, "断线时说的", 300)]}, refuses=(second,))
    await connect(stage, clients, ACCOUNT)
    assert [m.text for m in stage.archive.window(GROUP, 9)] == ["以前说的", "断线时说的"]


async def test_the_client_says_once_what_it_is_and_rests_between_pages_of_scenes_it_refuses_too(stage: Stage) -> None:
    scenes = [Scene("group", str(number)) for number in (20002, 20003, 20004)]
    for ago_s, scene in enumerate(scenes, 60):
        stage.presence.switch(scene, True, datetime.now(UTC))
        known(stage, scene, ago_s)
    clients = Clients({str(scenes[2]): [missed(scenes[2], "断线时说的", 30)]}, refuses=(scenes[0], scenes[1]))
    await connect(stage, clients, ACCOUNT, pause_s=0.1)
    assert [scene for _, scene in clients.asked][:3] == [str(scene) for scene in scenes]
    assert clients.others == ["get_version_info", "get_login_info"]
    assert all(after - before >= 0.1 for before, after in pairwise(clients.asked_at))


async def test_an_account_is_not_asked_for_what_another_one_hears(stage: Stage) -> None:
    stage.hear("在吗", age_s=60)
    await stage.quiet()
    clients = Clients({})
    await connect(stage, clients, ACCOUNT, "40002")
    assert clients.asked == [(ACCOUNT, str(GROUP))]


@pytest.mark.parametrize("ending", ["again", "close"])
async def test_a_connection_that_goes_takes_its_question_with_it(stage: Stage, ending: str) -> None:
    known(stage, GROUP, 600)
    hang, clients = asyncio.Event(), Clients({})

    def of(account: str) -> Any:
        async def call(action: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
            hang.set()
            await asyncio.Event().wait()
            raise AssertionError

        return call

    catcher = catcher_of(stage, of)
    catcher.connected(ACCOUNT)
    await asyncio.wait_for(hang.wait(), 5)
    first = catcher._tasks[ACCOUNT]
    if ending == "again":
        catcher.connected(ACCOUNT)
        await asyncio.wait([first], timeout=5)
    await catcher.close()
    assert first.cancelled()
    assert clients.asked == []
