"""bot/backfill.py and training/importers/onebotlive.py against a websocket server that plays each client."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from daemon import free_port
from napcat import ACCOUNT, NapCat

from bot import forgetting
from bot.archive import Archive
from bot.backfill import CATCH_UP_PAGES, COUNT, Backfill, Filled
from bot.errors import ImportFault
from bot.events import message
from bot.intake import Intake
from bot.message import Message, Origin, Scene
from bot.optouts import Why
from bot.scenes import STATE_KIND
from training.importers import onebotlive, onebotlook

GROUP, FRIEND = Scene("group", "20001"), Scene("private", "10001")
BASE_S = 1_700_000_000
CLIENTS = ("NapCat.Onebot", "LLOneBot", "Lagrange.OneBot")


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    store = Archive(f"sqlite:///{tmp_path / 'archive.db'}")
    yield store
    store.close()


def told(number: int, scene: Scene = GROUP, user: int = 10002) -> dict[str, Any]:
    """A message as a history action tells it; three share a second."""
    where = {"message_type": "group", "group_id": int(scene.id)} if not scene.private else {"message_type": "private"}
    return {
        "self_id": int(ACCOUNT), "user_id": user, "time": BASE_S + number // 3, "message_id": 700_000_000 - number * 7,
        "message_seq": 1000 + number, "real_seq": str(1000 + number), "sender": {"user_id": user, "nickname": "阿泽"},
        "message": [{"type": "text", "data": {"text": f"第{number}句"}}], **where,
    }  # fmt: skip


@dataclass
class Phone(NapCat):
    """A client with a history, and the import from it."""

    asked_at: list[float] = field(default_factory=list)
    """Monotonic seconds of every page that was asked for."""

    async def fill(self, archive: Archive, path: str = "/group/20001", token: str = "t") -> dict[str, Any]:
        summary, fault = await self.filled(archive, path, token)
        if fault is not None:
            raise fault
        return summary

    async def filled(
        self, archive: Archive, path: str = "", token: str = "t", pause_s: float = 0.0
    ) -> tuple[dict[str, Any], ImportFault | None]:
        port = free_port()
        self.token = "t"
        async with self.serving(port):
            url = f"onebot://127.0.0.1:{port}{path}"
            return await onebotlive.fill(url, token, archive, lambda _done, _size: None, pause_s)

    async def _answer(self, call: dict[str, Any]) -> None:
        if call["action"].endswith("_msg_history"):
            self.asked_at.append(time.monotonic())
        await super()._answer(call)

    @property
    def pages(self) -> int:
        return sum(c["action"].endswith("_msg_history") for c in self.calls)


def phone(count: int, **more: Any) -> Phone:
    return Phone("", history={"group:20001": [told(n) for n in range(count)]}, **more)


def texts(archive: Archive, scene: Scene = GROUP) -> list[str]:
    return [m.text for m in archive.history(scene)]


@pytest.mark.parametrize("app_name", CLIENTS)
@pytest.mark.parametrize("count", [1, COUNT, 3 * COUNT + 7])
async def test_all_of_a_history_comes_in_and_a_second_time_one_page_is_asked(
    archive: Archive, app_name: str, count: int
) -> None:
    client = phone(count, app_name=app_name)
    first = await client.fill(archive)
    assert first == {
        "group:20001": {
            "messages": count, "added": count, "skipped": {}, "oldest": "2023-11-14T22:13:20+00:00", "complete": True,
        }
    }  # fmt: skip
    assert sorted(texts(archive)) == sorted(f"第{n}句" for n in range(count))
    client.calls.clear()
    again = (await client.fill(archive))["group:20001"]
    assert (again["added"], again["complete"], client.pages) == (0, True, 1)


@pytest.mark.parametrize("older_by_default", [True, False])
async def test_the_direction_of_reverse_order_is_found_out(archive: Archive, older_by_default: bool) -> None:
    client = phone(3 * COUNT, older_by_default=older_by_default)
    assert (await client.fill(archive))["group:20001"]["added"] == 3 * COUNT


async def test_a_backfill_that_was_cut_off_goes_on_where_it_stopped(archive: Archive) -> None:
    client = phone(5 * COUNT)
    whole, client.history["group:20001"] = client.history["group:20001"], client.history["group:20001"][-3 * COUNT :]
    await client.fill(archive)
    mark = archive.latest(GROUP, "backfill")
    assert mark is not None
    archive.note(GROUP, "backfill", mark[0].replace('"done": true', '"done": false'), datetime.now(UTC))
    later = [told(n) for n in range(5 * COUNT, 5 * COUNT + 3)]
    client.history["group:20001"] = whole + later
    client.calls.clear()
    result = (await client.fill(archive))["group:20001"]
    assert (result["added"], result["complete"]) == (2 * COUNT + 3, True)
    assert len(texts(archive)) == 5 * COUNT + 3
    assert client.pages <= 6


async def test_where_the_client_has_forgotten_the_place_it_walks_through_what_is_known(archive: Archive) -> None:
    client = phone(4 * COUNT)
    await client.fill(archive)
    archive.note(
        GROUP, "backfill", f'{{"id": "1", "seq": 1, "time": {BASE_S - 5}, "since": {BASE_S + 999}, "done": false}}',
        datetime.now(UTC),
    )  # fmt: skip
    result = (await client.fill(archive))["group:20001"]
    assert (result["messages"], result["added"], result["complete"]) == (4 * COUNT, 0, True)


async def test_a_client_that_goes_in_the_middle_is_a_fault_and_what_came_is_kept(archive: Archive) -> None:
    client = phone(4 * COUNT)
    asked = 0
    page = client._page

    def third_time_lost(params: dict[str, Any]) -> dict[str, Any]:
        nonlocal asked
        asked += 1
        if asked == 3:
            assert client._socket is not None
            client._socket.transport.abort()
        return page(params)

    client._page = third_time_lost  # type: ignore[method-assign]
    with pytest.raises(ImportFault, match="went; what came is kept, import again to go on"):
        await client.fill(archive)
    assert len(texts(archive)) == 2 * COUNT - 1


@pytest.mark.parametrize("words", ["频率过快", "internal error"])
async def test_a_refusal_that_is_not_the_end_is_a_fault(archive: Archive, words: str) -> None:
    client = phone(4 * COUNT)
    client.refused["group:20001"] = words
    with pytest.raises(ImportFault, match=f"refuses the history of group:20001: '{words}'"):
        await client.fill(archive)


async def test_own_words_of_a_private_chat_stand_in_that_chat(archive: Archive) -> None:
    client = Phone("", history={"private:10001": [told(1, FRIEND, 10001), told(2, FRIEND, int(ACCOUNT))]})
    await client.fill(archive, "")
    assert [(m.sender_id, m.text) for m in archive.history(FRIEND)] == [("10001", "第1句"), (ACCOUNT, "第2句")]


async def test_what_the_account_said_while_the_twin_was_on_is_never_the_persons(archive: Archive) -> None:
    client = Phone("", history={"group:20001": [told(n, GROUP, int(ACCOUNT)) for n in (3, 30)]})
    archive.note(GROUP, STATE_KIND, "on", datetime.fromtimestamp(BASE_S + 5, UTC))
    known = told(30)["message_id"]
    await client.fill(archive)
    found = {m.text: m.origin for m in archive.history(GROUP)}
    assert found == {"第3句": Origin.HUMAN, "第30句": Origin.TWIN}
    assert archive.get(GROUP, str(known)) is not None


async def test_what_a_file_told_of_under_other_ids_is_not_added(archive: Archive) -> None:
    earlier = [replace(message(told(n)), id=f"nt{n}") for n in range(60)]
    assert Intake(archive, "import:ntqq:nt_msg.db").take(earlier).added == 60
    assert (await phone(70).fill(archive))["group:20001"]["added"] == 10
    assert len(texts(archive)) == 70
    assert (await phone(70).fill(archive))["group:20001"]["added"] == 0


async def test_what_the_daemon_recorded_already_is_not_added(archive: Archive) -> None:
    event = told(1)
    stamp = datetime.fromtimestamp(event["time"], UTC)
    archive.append([Message(str(event["message_id"]), GROUP, "10002", "阿泽", stamp, "第1句")])
    client = phone(3)
    assert (await client.fill(archive))["group:20001"]["added"] == 2


async def test_a_wrong_token_and_nobody_there_are_told_apart(archive: Archive) -> None:
    with pytest.raises(ImportFault, match="no OneBot client listens on"):
        await onebotlive.fill(f"onebot://127.0.0.1:{free_port()}/group/1", "", archive, lambda *_: None)
    with pytest.raises(ImportFault, match="went; what came is kept"):
        await phone(1).fill(archive, token="wrong")


@pytest.mark.parametrize(
    "url", ["onebot://127.0.0.1", "onebot://127.0.0.1:99999", "onebot://:3001/group/1", "onebot://h:3001/group/x"]
)
async def test_a_wrong_address_is_refused_with_the_form_it_has(archive: Archive, url: str) -> None:
    with pytest.raises(ImportFault, match="is no address of a OneBot client: onebot://HOST:PORT"):
        await asyncio.wait_for(onebotlive.fill(url, "", archive, lambda *_: None), 5)


def test_an_address_survives_being_a_path() -> None:
    assert onebotlive.url_of(Path("onebot://127.0.0.1:3001/group/1")) == "onebot://127.0.0.1:3001/group/1"
    assert onebotlive.url_of(Path("onebot.jsonl")) is None


async def test_the_history_of_a_private_chat_with_somebody_forgotten_is_not_even_asked_for(archive: Archive) -> None:
    forgetting.from_archive(archive, FRIEND.id, datetime.now(UTC))
    client = Phone("", history={str(FRIEND): [told(n, FRIEND, 10001) for n in range(9)]})
    assert (await client.fill(archive, "/private/10001"))[str(FRIEND)]["messages"] == 0
    assert client.pages == 0
    assert archive.latest(FRIEND, "backfill") is None


# -- several scenes -------------------------------------------------------------------------------


def friends(count: int, each: int = 2, **more: Any) -> Phone:
    """A client with friends 100, 101, …"""
    scenes = [Scene("private", str(100 + n)) for n in range(count)]
    histories = {str(s): [told(10 * int(s.id) + n, s, int(s.id)) for n in range(each)] for s in scenes}
    return Phone("", history=histories, **more)


async def test_a_friend_without_messages_keeps_no_other_from_being_read(archive: Archive) -> None:
    client = friends(4)
    client.history["private:101"] = []
    for added in (2, 0):
        summary, fault = await client.filled(archive)
        assert fault is None
        assert [shown["added"] for shown in summary.values()] == [added, 0, added, added]
        assert all(shown["complete"] for shown in summary.values())


@pytest.mark.parametrize("words", ["消息undefined不存在", "未找到消息"])
async def test_a_first_page_refused_as_empty_is_an_empty_scene(archive: Archive, words: str) -> None:
    client = phone(3)
    client.refused["group:20001"] = words
    summary, fault = await client.filled(archive, "/group/20001")
    assert fault is None
    assert (summary["group:20001"]["messages"], summary["group:20001"]["complete"]) == (0, True)
    assert archive.latest(GROUP, "backfill") is None


async def test_somebody_whom_the_client_does_not_know_is_no_empty_scene(archive: Archive) -> None:
    client = friends(1)
    client.refused["private:100"] = "记录100不存在"
    with pytest.raises(ImportFault, match="refuses the history of private:100: '记录100不存在'"):
        await client.fill(archive, "/private/100")


async def test_a_scene_that_is_refused_is_told_with_what_to_do_and_the_others_are_read(archive: Archive) -> None:
    client = friends(4)
    client.refused["private:101"] = "频率过快"
    summary, fault = await client.filled(archive)
    assert [shown["added"] for shown in summary.values()] == [2, 0, 2, 2]
    assert [scene for scene, shown in summary.items() if not shown["complete"]] == ["private:101"]
    assert "refuses the history of private:101: '频率过快'" in summary["private:101"]["fault"]
    assert str(fault).startswith("1 of 4 scenes were not read to their end")
    assert "import again" in str(fault)


async def test_once_the_client_is_gone_no_other_scene_is_asked_for(archive: Archive) -> None:
    client = friends(4)
    page = client._page

    def lost(params: dict[str, Any]) -> dict[str, Any]:
        if params["user_id"] == 101:
            assert client._socket is not None
            client._socket.transport.abort()
        return page(params)

    client._page = lost  # type: ignore[method-assign]
    summary, fault = await client.filled(archive)
    assert list(summary) == ["private:100", "private:101"]
    assert summary["private:101"]["fault"] == str(fault)
    assert "went; what came is kept, import again to go on" in str(fault)


async def test_a_client_that_answers_nothing_any_more_counts_as_gone(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onebotlive, "ANSWER_S", 0.05)
    client = friends(9, deaf={"get_friend_msg_history"})
    summary, fault = await client.filled(archive)
    assert len(summary) == onebotlive.UNANSWERED
    assert "did not answer get_friend_msg_history" in str(fault)


async def test_lists_that_are_refused_are_not_taken_for_empty(archive: Archive) -> None:
    client = friends(2, failures={"get_friend_list": deque([(1200, "未登录")])})
    with pytest.raises(ImportFault, match="the client refuses get_friend_list: '未登录'"):
        await client.filled(archive)


async def test_every_page_but_the_first_of_a_run_waits_whatever_its_scene(archive: Archive) -> None:
    client, pause_s = friends(6), 0.05
    await client.filled(archive)
    client.calls.clear()
    client.asked_at.clear()
    await client.filled(archive, pause_s=pause_s)
    assert client.pages == len(client.asked_at) == 6, "one page of each, which says that nothing is new"
    assert min(later - earlier for earlier, later in pairwise(client.asked_at)) >= 0.9 * pause_s


async def test_the_first_page_of_a_run_waits_for_nothing(archive: Archive) -> None:
    client = friends(1)
    await client.filled(archive)
    summary, _ = await asyncio.wait_for(client.filled(archive, pause_s=600.0), 10)
    assert summary["private:100"]["complete"]


async def test_a_page_asked_for_in_the_other_direction_waits_too(archive: Archive) -> None:
    client, pause_s = phone(COUNT + 9, older_by_default=False), 0.05
    await client.filled(archive, pause_s=pause_s)
    assert client.pages > 3
    assert min(later - earlier for earlier, later in pairwise(client.asked_at)) >= 0.9 * pause_s


async def test_who_the_client_is_and_whose_is_asked_once_a_run(archive: Archive) -> None:
    client = friends(5)
    await client.filled(archive)
    asked = Counter(c["action"] for c in client.calls)
    assert (asked["get_version_info"], asked["get_login_info"]) == (1, 1)


# -- what is left out -----------------------------------------------------------------------------


async def test_what_is_left_out_is_told_by_reason_with_its_first_places_once(archive: Archive) -> None:
    client = phone(2 * COUNT)
    events = client.history["group:20001"]
    for n in (0, 1, 40, 60, 61):
        events[n] |= {"time": "明天"}
    events[70] |= {"message": 7}
    events[80] |= {"message": []}
    events[90] |= {"sender": {"user_id": 10009}, "user_id": 10009}
    forgetting.from_archive(archive, "10009", datetime.now(UTC))
    summary, fault = await client.filled(archive, "/group/20001")
    assert fault is None
    skipped = summary["group:20001"]["skipped"]
    assert skipped == {
        "field 'time' is not unix seconds": {
            "count": 5, "places": [f"message {events[n]['message_id']}" for n in (60, 61, 1)],
        },
        "field 'message' is neither a list of segments nor text": {
            "count": 1, "places": [f"message {events[70]['message_id']}"],
        },
        "an empty message": {"count": 1, "places": [f"message {events[80]['message_id']}"]},
        Why.FORGOTTEN: {"count": 1, "places": [f"message {events[90]['message_id']}"]},
    }  # fmt: skip
    assert onebotlive.in_words(summary).splitlines()[1] == (
        "  left out 5: field 'time' is not unix seconds ("
        + ", ".join(skipped["field 'time' is not unix seconds"]["places"])
        + ")"
    )


# -- a dry run -------------------------------------------------------------------------------------


async def test_a_dry_run_asks_for_one_page_of_so_many_chats_politely() -> None:
    client, port, pause_s = friends(onebotlook.LOOKED_INTO + 3, each=2 * COUNT, token="t"), free_port(), 0.02
    async with client.serving(port):
        url = f"onebot://127.0.0.1:{port}"
        shown = await onebotlook.look(url, "t", lambda _done, _size: None, UTC, pause_s)
    assert client.pages == len(shown["scenes"]) == onebotlook.LOOKED_INTO
    assert min(later - earlier for earlier, later in pairwise(client.asked_at)) >= 0.9 * pause_s
    assert {one["messages"] for one in shown["scenes"].values()} == {COUNT}
    assert "  and 3 more chats, not looked into" in onebotlook.in_words(shown, url)


async def test_a_dry_run_of_a_client_that_goes_is_a_fault() -> None:
    client, port = friends(3, token="t"), free_port()
    async with client.serving(port):
        page = client._page

        def lost(params: dict[str, Any]) -> dict[str, Any]:
            assert client._socket is not None
            client._socket.transport.abort()
            return page(params)

        client._page = lost  # type: ignore[method-assign]
        with pytest.raises(ImportFault, match="went"):
            await onebotlook.look(f"onebot://127.0.0.1:{port}/private/100", "t", lambda *_: None, UTC)


# -- after an outage ------------------------------------------------------------------------------


async def caught_up(archive: Archive, client: Phone, until: datetime, scene: Scene = GROUP) -> Filled:
    async def call(action: str, params: Any) -> Any:
        client.calls.append({"action": action, "params": params})
        return await client._do(action, dict(params), 0.0)

    since = max(m.time for m in archive.history(scene))
    return await Backfill(call, archive, pause_s=0.0).catch_up(scene, since, until)


@pytest.mark.parametrize("app_name", CLIENTS)
async def test_what_was_missed_is_asked_for_down_to_what_is_known_and_no_further(
    archive: Archive, app_name: str
) -> None:
    client = phone(7 * COUNT, app_name=app_name)
    archive.append([message(told(n)) for n in range(5 * COUNT)])
    filled = await caught_up(archive, client, datetime.now(UTC))
    assert (filled.added, filled.done) == (2 * COUNT, True)
    assert client.pages <= 4
    assert sorted(texts(archive)) == sorted(f"第{n}句" for n in range(7 * COUNT))
    assert archive.latest(GROUP, "backfill") is None, "how far a backfill came is not what this tells"


async def test_what_is_said_after_the_client_connected_comes_by_itself(archive: Archive) -> None:
    client = phone(30)
    archive.append([message(told(n)) for n in range(9)])
    connected = datetime.fromtimestamp(BASE_S + 5, UTC)
    filled = await caught_up(archive, client, connected)
    assert (filled.added, filled.done) == (6, True)
    assert max(m.time for m in archive.history(GROUP)) < connected, "else it would be a replay, and never answered"


async def test_a_long_outage_is_caught_up_with_in_part(archive: Archive) -> None:
    client = phone((CATCH_UP_PAGES + 3) * COUNT)
    archive.append([message(told(0))])
    filled = await caught_up(archive, client, datetime.now(UTC))
    assert (filled.pages, filled.done) == (CATCH_UP_PAGES, False)
    assert client.pages == CATCH_UP_PAGES


async def test_a_history_that_ends_before_the_outage_began_is_all_there_is(archive: Archive) -> None:
    client = phone(3 * COUNT)
    old = message(told(0) | {"time": BASE_S - 1000, "message_id": 1, "real_seq": "1", "message_seq": 1})
    archive.append([old])
    filled = await caught_up(archive, client, datetime.now(UTC))
    assert (filled.added, filled.done) == (3 * COUNT, True)
