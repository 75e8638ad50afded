"""The adapter's mends, each over a real socket against a child process.

`QQTWIN_TEST_ADAPTER=upstream` runs them against nonebot-adapter-onebot as published: then every test of a mend fails.
"""

import asyncio
import hmac
import json
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import napcat
import pytest
from jsonschema import ValidationError
from napcat import ACCOUNT, NapCat
from nonebot.adapters.onebot.v11.exception import ActionFailed, ApiNotAvailable, NetworkError
from websockets.exceptions import InvalidStatus

from bot.errors import SendError, SendFailure
from bot.message import Message, Origin, Scene
from bot.onebot import Echo, LooseMessageEvent, OneBotTransport, Outbox, TwinAdapter, failure_of, raw_event

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "s3cret-4711"
HELLO = Scene("private", "10001"), [napcat.text("你好")]


class Probe:
    """The child: its address, and the lines it printed."""

    def __init__(self, folder: Path, adapter: str) -> None:
        self.port = free_port()
        self.url = f"ws://127.0.0.1:{self.port}/onebot/v11/ws"
        self.out = folder / "out.jsonl"
        self.log = folder / "log"
        with self.out.open("wb") as out, self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "tests/lib/probe.py"), str(self.port), TOKEN, adapter],
                stdout=out, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        self.read = 0

    def wait_until_listening(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text("utf-8")
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise AssertionError("the probe does not listen")

    def lines(self) -> list[dict[str, Any]]:
        """What was printed since `forget`."""
        whole = self.out.read_bytes()[self.read :]
        return [json.loads(line) for line in whole[: whole.rfind(b"\n") + 1].splitlines()]

    def forget(self) -> None:
        self.read = self.out.stat().st_size

    async def line(self, wanted: Callable[[dict[str, Any]], bool], within_s: float = 5.0) -> dict[str, Any]:
        """The first line that is wanted."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if found := [line for line in self.lines() if wanted(line)]:
                return found[0]
            await asyncio.sleep(0.01)
        raise AssertionError(f"no such line within {within_s} s; there are: {self.lines()}")

    async def done(self, words: str, within_s: float = 5.0) -> dict[str, Any]:
        """How what was asked for ended."""
        return await self.line(lambda x: x.get("done") == words, within_s)

    async def heard(self, text: str, within_s: float = 5.0) -> dict[str, Any]:
        """The event with this text."""
        return await self.line(lambda x: x.get("text") == text, within_s)


def free_port() -> int:
    """A loopback port nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    probe = Probe(tmp_path_factory.mktemp("probe"), os.environ.get("QQTWIN_TEST_ADAPTER", "twin"))
    probe.wait_until_listening()
    yield probe
    probe.process.terminate()
    probe.process.wait(10)


@pytest.fixture
def probe(server: Probe) -> Probe:
    server.forget()
    return server


@pytest.fixture
async def client(probe: Probe) -> AsyncIterator[NapCat]:
    async with NapCat(probe.url, TOKEN) as connected:
        await probe.line(lambda x: x.get("connected") == ACCOUNT)
        yield connected
    await probe.line(lambda x: x.get("disconnected") == ACCOUNT)


# -- who may speak --------------------------------------------------------------------------------


def signatures(body: bytes) -> list[dict[str, str]]:
    """Headers of a post: as a forger may have them, who knows no secret, or holds the token for it."""
    by = [hmac.new(key, body, "sha1").hexdigest() for key in (b"", TOKEN.encode())]
    token = {"Authorization": f"Bearer {TOKEN}"}
    signed = [{}, {"X-Signature": ""}, {"X-Signature": "sha1="}, *({"X-Signature": f"sha1={sig}"} for sig in by)]
    return [{"X-Self-ID": "1", **headers, **more} for headers in signed for more in ({}, token)]


@pytest.mark.parametrize("path", ["/onebot/v11/", "/onebot/v11/http", "/onebot/v11/http/"])
async def test_no_event_is_taken_over_http_however_it_is_signed(probe: Probe, path: str) -> None:
    event = {"post_type": "meta_event", "meta_event_type": "heartbeat", "time": 1, "self_id": 1, "interval": 1,
             "status": {"online": True, "good": True}}  # fmt: skip
    body = json.dumps(event).encode()
    async with httpx.AsyncClient(trust_env=False) as http:
        url = f"http://127.0.0.1:{probe.port}{path}"
        codes = [(await http.post(url, content=body, headers=headers)).status_code for headers in signatures(body)]
    assert len(codes) == 10
    assert {*codes} <= {404, 405}
    assert probe.lines() == []


@pytest.mark.parametrize(
    ("token", "authorization"),
    [(None, "Bearer"), ("", "Bearer"), ("s3cret", "Bearer"), (TOKEN + "x", "Bearer"), ("wrong", "Token"),
     ("wrong", "query"), ("%C3%A4", "query"), (TOKEN, "Basic")],
)  # fmt: skip
async def test_a_client_without_the_token_is_refused(probe: Probe, token: str | None, authorization: str) -> None:
    with pytest.raises(InvalidStatus, match="403"):
        await NapCat(probe.url, token, authorization=authorization).open()
    assert probe.lines() == []


@pytest.mark.parametrize("authorization", ["Bearer", "bearer", "Token", "query"])
async def test_the_token_is_taken_from_header_and_query(probe: Probe, authorization: str) -> None:
    async with NapCat(probe.url, TOKEN, authorization=authorization):
        await probe.line(lambda x: x.get("connected") == ACCOUNT)
    await probe.line(lambda x: x.get("disconnected") == ACCOUNT)


# -- frames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", ["{not json", b"\xff\xfe", "[" * 200_000, '"text"', "[1, 2]", "null", "{}"])
async def test_a_frame_that_is_no_event_does_not_close_the_socket(
    probe: Probe, client: NapCat, frame: str | bytes
) -> None:
    await client.raw(frame)
    await client.say("还在吗")
    assert (await probe.heard("还在吗"))["account"] == ACCOUNT


MALFORMED: list[dict[str, Any]] = [
    {"post_type": "message"},
    {"post_type": ["message"], "time": 1, "self_id": 1},
    {"post_type": "message", "message_type": "group", "notice_type": "poke", "self_id": "x", "raw_message": "秘密"},
    {"post_type": None, "raw_message": "秘密"},
    {"post_type": "message", "time": "秘密", "self_id": 1, "message": [{"type": "text", "data": {"text": "秘密"}}]},
]


async def test_a_malformed_event_is_left_out_and_logged_without_its_words(probe: Probe, client: NapCat) -> None:
    for frame in MALFORMED:
        await client.raw(json.dumps(frame))
    await client.say("还在吗")
    await probe.heard("还在吗")
    log = probe.log.read_text("utf-8")
    assert log.count("is malformed and left out") == len(MALFORMED)
    assert "秘密" not in log


async def test_a_message_without_the_optional_fields_is_heard(probe: Probe, client: NapCat) -> None:
    words = [napcat.text("没有字体")]
    await client.emit(valid=False, post_type="message", message_type="private", user_id=1, message_id=2, message=words)
    assert (await probe.heard("没有字体"))["event"] == "LooseMessageEvent"
    assert "Error while parsing command" not in probe.log.read_text("utf-8")


MODELS = [
    ({"post_type": "message_sent", "message_type": "group", "sub_type": "normal"}, "MessageSentEvent"),
    ({"post_type": "notice", "notice_type": "notify", "sub_type": "input_status"}, "InputStatusEvent"),
    ({"post_type": "notice", "notice_type": "bot_offline"}, "BotOfflineEvent"),
    ({"post_type": "notice", "notice_type": "unheard_of"}, "NoticeEvent"),
    ({"post_type": "unheard_of"}, "Event"),
]


@pytest.mark.parametrize(("frame", "model"), MODELS)
async def test_every_kind_of_event_has_its_own_model(
    probe: Probe, client: NapCat, frame: dict[str, Any], model: str
) -> None:
    await client.emit(valid=False, message=[napcat.text(model)], **frame)
    assert (await probe.heard(model))["event"] == model


async def test_the_accounts_own_message_is_an_event_of_its_own(probe: Probe, client: NapCat) -> None:
    await client.say_myself("我自己说的", group=20001)
    heard = await probe.heard("我自己说的")
    assert (heard["event"], heard["post_type"]) == ("MessageSentEvent", "message_sent")


@pytest.mark.parametrize(
    ("message", "loose"),
    [
        ([], True), ([1], True), (["x"], True), ([{"type": "text"}], True), ([{"type": "at", "data": [1]}], True),
        ("", True), (None, True), ({"type": "text"}, True), ([napcat.text("好")], False), ("好", False),
    ],
)  # fmt: skip
def test_a_message_that_nonebot_would_stumble_over_is_a_loose_one(message: Any, loose: bool) -> None:
    frame = {
        "post_type": "message", "message_type": "private", "sub_type": "friend", "self_id": int(ACCOUNT), "time": 1,
        "user_id": 10001, "message_id": 5, "raw_message": "", "font": 14, "message": message,
        "sender": {"user_id": 10001, "nickname": "阿强"},
    }  # fmt: skip
    event = TwinAdapter.json_to_event(dict(frame))
    assert event is not None
    assert isinstance(event, LooseMessageEvent) is loose
    assert raw_event(event) == frame
    assert bool(event.get_message()), "NoneBot looks at its first segment"


def test_the_frame_of_an_event_is_kept_as_it_came() -> None:
    checked = 0
    for line in (ROOT / "tests/data/napcat_frames.jsonl").read_text("utf-8").splitlines():
        frame = json.loads(line)["frame"] if '"frame"' in line else {}
        event = TwinAdapter.json_to_event(json.loads(json.dumps(frame))) if "post_type" in frame else None
        if event is not None:
            checked += 1
            assert raw_event(event) == frame
    assert checked == 18


# -- order and connections ------------------------------------------------------------------------


async def test_a_quoting_message_is_not_overtaken_while_its_quote_is_looked_up(probe: Probe, client: NapCat) -> None:
    client.delays["get_msg"] = 3.0
    await client.say("看这条", group=20001, quotes=4711)
    await client.say("第二句", group=20001)
    await probe.heard("第二句")
    assert [x["text"] for x in probe.lines() if x.get("text")] == ["看这条", "第二句"]
    assert client.calls == []


async def test_a_half_open_peer_is_taken_over_at_once(probe: Probe) -> None:
    gone = NapCat(probe.url, TOKEN)
    await gone.open()
    await gone.vanish()
    started = time.monotonic()
    async with NapCat(probe.url, TOKEN) as back:
        assert time.monotonic() - started < 1.0
        await back.say("回来了")
        await probe.heard("回来了")
        states = [next(iter(x)) for x in probe.lines() if "connected" in x or "disconnected" in x]
        assert sorted(states) == ["connected", "connected", "disconnected"]
        await back.say("call get_login_info")
        assert (await probe.done("call get_login_info"))["result"]["user_id"] == int(ACCOUNT)
    await gone.drop()
    await gone.close()


async def test_the_older_connection_ends_without_ending_the_newer(probe: Probe) -> None:
    first = NapCat(probe.url, TOKEN)
    await first.open()
    async with NapCat(probe.url, TOKEN) as second:
        assert await first.closed(2.0)
        await asyncio.sleep(0.2)
        await second.say("call get_login_info")
        assert "result" in await probe.done("call get_login_info")
    await first.close()


async def test_a_client_whose_heart_stops_is_given_up_and_may_come_back(probe: Probe) -> None:
    quiet = NapCat(probe.url, TOKEN, beats_every_s=None)
    well = NapCat(probe.url, TOKEN, account="3889000772")
    await quiet.open()
    await well.open()
    await quiet.heartbeat(200)
    assert await quiet.closed(5.0), "pings are answered all the same: only its heart has stopped"
    assert (await probe.line(lambda x: "disconnected" in x))["disconnected"] == ACCOUNT
    await well.say("call get_login_info")
    assert "result" in await probe.done("call get_login_info")
    await quiet.close()
    async with NapCat(probe.url, TOKEN) as back:
        for _ in range(6):
            await back.heartbeat(200)
            await asyncio.sleep(0.4)
        await back.say("回来了")
        assert (await probe.heard("回来了"))["account"] == ACCOUNT
    await well.close()


async def test_two_accounts_are_served_side_by_side(probe: Probe, client: NapCat) -> None:
    async with NapCat(probe.url, TOKEN, account="3889000771") as other:
        await other.say("call get_login_info")
        assert (await probe.done("call get_login_info"))["result"]["user_id"] == 3889000771
        await client.say("我也在")
        assert (await probe.heard("我也在"))["account"] == ACCOUNT


# -- calls ----------------------------------------------------------------------------------------


async def test_a_second_answer_to_a_call_is_ignored(probe: Probe, client: NapCat) -> None:
    client.answers_per_call = 3
    await client.say("call get_login_info")
    assert (await probe.done("call get_login_info"))["result"]["nickname"] == "本人"
    await client.say("还在吗")
    await probe.heard("还在吗")


async def test_calls_in_flight_fail_at_once_when_the_socket_goes(probe: Probe) -> None:
    client = NapCat(probe.url, TOKEN, deaf={"get_status"})
    await client.open()
    await client.say("call get_status")
    await probe.heard("call get_status")
    await asyncio.sleep(0.2)
    await client.drop()
    ended = await probe.done("call get_status", within_s=3.0)
    assert ended["error"] == "NetworkError"
    assert ended["after_s"] < 1.0
    await client.close()


async def test_cq_code_in_what_is_sent_stays_text(probe: Probe, client: NapCat) -> None:
    evil = "[CQ:at,qq=all][CQ:image,file=file:///etc/hostname]&#91;"
    await client.say(f"send {evil}")
    (bubble,) = await client.expect(1)
    assert bubble.segments == [napcat.text(evil)]


async def test_how_a_send_failed_is_told_apart(probe: Probe, client: NapCat) -> None:
    said = [napcat.SHADOWED, napcat.REFUSED, (1200, "消息体无法解析"), (1400, "Schema"), (1404, "不支持的Api")]
    client.failures["send_private_msg"] = deque(said)
    ends = []
    for number in range(len(said)):
        await client.say(f"send {number}")
        ends.append((await probe.done(f"send {number}"))["failure"])
    assert ends == ["shadowed", "refused", "bug", "bug", "bug"]


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ApiNotAvailable(), SendFailure.OFFLINE),
        (NetworkError("no answer"), SendFailure.UNKNOWN),
        (ActionFailed(retcode=1200, message="EventChecker Failed: …"), SendFailure.REFUSED),
        (ActionFailed(retcode=1200, wording="Timeout: NTEvent …"), SendFailure.SHADOWED),
    ],
)
def test_failures_of_the_adapter_have_a_meaning(error: Exception, failure: SendFailure) -> None:
    assert failure_of(error) is failure


async def called(client: NapCat) -> None:
    async with asyncio.timeout(10):
        while not client.calls:  # noqa: ASYNC110 - what is awaited is another process
            await asyncio.sleep(0.01)


BAD_CALLS = [
    ("get_nothing", {}, "no schema knows"),
    ("get_version_info", {"nocache": True}, "nocache"),
    ("mark_msg_as_read", {"message_id": "7"}, "'7' is not of type"),
    ("mark_msg_as_read", {}, "message_id"),
    ("get_friend_msg_history", {"user_id": 1, "message_id": 5}, "message_id"),
    ("get_group_msg_history", {"group_id": 1, "cuont": 5}, "cuont"),
    ("send_private_msg", {"user_id": 1, "message": [], "timeuot": 5}, "timeuot"),
    ("get_image", {"file": ""}, "''"),
    ("get_group_list", {"count": 1}, "count"),
    ("get_friend_list", {"count": 1}, "count"),
    ("fetch_ptt_text", {"id": 1}, "id"),
    ("voice_msg_to_text", {"message_id": "1"}, "'1' is not of type"),
]


@pytest.mark.parametrize(("action", "params", "why"), BAD_CALLS)
async def test_the_played_client_takes_no_call_that_clients_would_not(
    probe: Probe, action: str, params: dict[str, Any], why: str
) -> None:
    client = NapCat(probe.url, TOKEN)
    await client.open()
    await client.say(f"call {action} {json.dumps(params)}")
    await called(client)
    with pytest.raises((AssertionError, ValidationError), match=why):
        await client.close()
    await probe.line(lambda x: x.get("disconnected") == ACCOUNT)


@pytest.mark.parametrize(("client", "key"), [("NapCat.Onebot", "message_seq"), ("Lagrange.OneBot", "message_id")])
async def test_the_played_client_takes_the_anchor_that_each_client_takes(probe: Probe, client: str, key: str) -> None:
    async with NapCat(probe.url, TOKEN, app_name=client, history={"group:1": [{"message_id": 5}]}) as played:
        page = f"call get_group_msg_history {json.dumps({'group_id': 1, key: 5, 'count': 3})}"
        await played.say(page)
        assert (await probe.done(page))["result"] == {"messages": [{"message_id": 5}]}
    await probe.line(lambda x: x.get("disconnected") == ACCOUNT)


async def test_the_played_client_gives_no_answer_that_clients_would_not(probe: Probe) -> None:
    client = NapCat(probe.url, TOKEN, images={"a.jpg": 7})  # type: ignore[dict-item]
    await client.open()
    await client.say('call get_image {"file": "a.jpg"}')
    await called(client)
    with pytest.raises(ValidationError, match="7 is not of type 'string'"):
        await client.close()
    await probe.line(lambda x: x.get("disconnected") == ACCOUNT)


# -- our own echo ---------------------------------------------------------------------------------


async def test_an_echo_with_the_answered_id_is_ours() -> None:
    outbox, (scene, words) = Outbox(), HELLO
    await outbox.end(outbox.begin(scene, words, Origin.SYSTEM), "7")
    assert await outbox.echo_of(scene, "7", []) == Echo(Origin.SYSTEM, answered=True)
    assert await outbox.echo_of(scene, "8", words) is None
    assert await outbox.echo_of(Scene("group", "10001"), "7", words) is None


async def test_the_notice_of_our_own_poke_is_ours_once() -> None:
    outbox, (scene, _) = Outbox(), HELLO
    outbox.poked(scene, Origin.TWIN)
    assert await outbox.echo_of(Scene("group", "10001"), "poke-1-2-3", []) is None
    assert await outbox.echo_of(scene, "poke-1-2-3", []) == Echo(Origin.TWIN, answered=True)
    assert await outbox.echo_of(scene, "poke-2-2-3", []) is None, "the person poked, too"


async def test_a_poke_goes_out_as_a_poke_and_words_beside_it_as_words(probe: Probe, client: NapCat) -> None:
    await client.say("send [戳一戳]在吗", user=10001)
    await probe.done("send [戳一戳]在吗")
    await client.say("send [戳一戳]", user=10001)
    done = await probe.done("send [戳一戳]")
    calls = [(c["action"], c["params"].get("user_id")) for c in client.calls if c["action"] != "get_login_info"]
    assert calls == [("send_private_msg", 10001), ("friend_poke", 10001), ("friend_poke", 10001)]
    assert done["result"].startswith("poke-")


@dataclass
class Client:
    """A bot as the transport uses one: what it was called with, and what it fails with."""

    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    failures: dict[str, deque[Exception]] = field(default_factory=dict)
    numbers = frozenset({ACCOUNT})
    self_id = ACCOUNT

    async def call_api(self, action: str, **params: Any) -> Any:
        self.calls.append((action, params))
        if self.failures.get(action):
            raise self.failures[action].popleft()
        return {"message_id": 7, "text": "听到的"}


def transport_of(client: Client) -> OneBotTransport:
    return OneBotTransport(Outbox(), 1.0, lambda: {ACCOUNT: client})


POKED: dict[str, Any] = {"type": "poke", "data": {"id": "10001"}}


async def test_a_poke_with_a_quote_alone_is_a_poke_and_no_empty_message() -> None:
    client = Client()
    made = await transport_of(client).send(ACCOUNT, HELLO[0], [napcat.reply(5), POKED])
    assert [action for action, _ in client.calls] == ["friend_poke"]
    assert made.startswith("poke-")


async def test_words_that_are_refused_and_said_again_poke_once() -> None:
    client = Client(failures={"send_private_msg": deque([ActionFailed(retcode=1200, message="EventChecker Failed")])})
    transport, bubble = transport_of(client), [POKED, *HELLO[1]]
    with pytest.raises(SendError):
        await transport.send(ACCOUNT, HELLO[0], bubble)
    assert await transport.send(ACCOUNT, HELLO[0], bubble) == "7"
    assert [action for action, _ in client.calls] == ["send_private_msg", "send_private_msg", "friend_poke"]


async def test_words_that_were_said_are_not_said_again_for_a_poke_that_fails() -> None:
    client = Client(failures={"friend_poke": deque([ActionFailed(retcode=1200, message="EventChecker Failed")])})
    assert await transport_of(client).send(ACCOUNT, HELLO[0], [POKED, *HELLO[1]]) == "7"


@pytest.mark.parametrize(
    ("message_id", "number"), [("7", 7), ("-2147483648", -2147483648), ("poke-1-2-3", None), ("--7", None)]
)
async def test_ids_of_either_sign_are_shown_as_read_and_listened_to(message_id: str, number: int | None) -> None:
    client = Client()
    transport = transport_of(client)
    await transport.seen(ACCOUNT, HELLO[0], message_id)
    heard = await transport.transcribed(ACCOUNT, message_id)
    assert [params["message_id"] for _, params in client.calls] == ([] if number is None else [number] * 2)
    assert (heard is None) is (number is None)


async def test_an_echo_before_the_answer_waits_for_it() -> None:
    outbox, (scene, words) = Outbox(), HELLO
    flight = outbox.begin(scene, words, Origin.TWIN)
    echo = asyncio.create_task(outbox.echo_of(scene, "7", words))
    typed = asyncio.create_task(outbox.echo_of(scene, "9", words))
    elsewhere = await outbox.echo_of(Scene("group", "10001"), "5", words)
    await asyncio.sleep(0.05)
    assert not echo.done()
    later = outbox.begin(scene, words, Origin.TWIN)
    await outbox.end(flight, "7")
    assert await echo == Echo(Origin.TWIN, answered=True)
    assert await typed is None, "the same words typed by the person: the id tells"
    assert elsewhere is None
    await outbox.end(later, "8")


async def test_a_send_without_an_answer_is_known_by_its_words_when_it_arrives_after_all() -> None:
    outbox, (scene, words) = Outbox(), HELLO
    await outbox.end(outbox.begin(scene, words, Origin.TWIN), None, lost=True)
    assert await outbox.echo_of(scene, "7", [napcat.text(" 你好 ")]) == Echo(Origin.TWIN, answered=False)
    assert await outbox.echo_of(scene, "8", words) is None


async def test_what_one_of_our_accounts_sent_is_known_where_another_hears_it() -> None:
    outbox, scene = Outbox(), Scene("group", "10001")
    words = [napcat.text("你好")]

    def heard_from(account: str, said: str = "你好", where: Scene = scene) -> Message:
        return Message("31", where, account, "", datetime.now(UTC), said, segments=(napcat.text(said),))

    flight = outbox.begin(scene, words, Origin.SYSTEM, "40001")
    early = asyncio.create_task(outbox.heard(heard_from("40001")))
    await asyncio.sleep(0.02)
    assert not early.done(), "it may come before the send is answered"
    await outbox.end(flight, "7")
    assert await early == Echo(Origin.SYSTEM, answered=True)
    assert await outbox.heard(heard_from("40001")) is not None, "a third account hears it, too"
    assert await outbox.heard(heard_from("40002")) is None, "the same words of somebody else's"
    assert await outbox.heard(heard_from("40001", "您好")) is None
    assert await outbox.heard(heard_from("40001", where=Scene("group", "10002"))) is None


async def test_a_refused_send_claims_nothing_the_person_says() -> None:
    outbox, (scene, words) = Outbox(), HELLO
    await outbox.end(outbox.begin(scene, words, Origin.TWIN), None)
    assert await outbox.echo_of(scene, "7", words) is None
