"""A websockets client that plays NapCat to the real adapter: it connects, says things, answers calls, checks frames.

Every frame it sends or receives is validated: events and calls against the schemas of tests/data/onebot-schema, and
what those leave out (more calls, all answers) against ours in tests/data/onebot-calls.json. A call that neither knows
is a fault, and so is a parameter: clients ignore it or refuse the call. Faults found in the background are raised by
the next `expect`, `quiet` or `close`.
"""

import asyncio
import contextlib
import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self

import jsonschema
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

ACCOUNT = "3889000770"
_DATA = Path(__file__).resolve().parents[1] / "data"
_SCHEMAS = _DATA / "onebot-schema"
_TIMEOUT = "Timeout: NTEvent serviceAndMethod:NodeIKernelMsgService/sendMsg ListenerName:NodeIKernelMsgListener"
SHADOWED = (1200, _TIMEOUT + '/onMsgInfoListUpdate EventRet:\n{\n    "result": 0,\n    "errMsg": ""\n}\n')
"""What NapCat says of a message QQ took and never confirmed."""
REFUSED = (
    1200,
    'EventChecker Failed: NTEvent serviceAndMethod:NodeIKernelMsgService/sendMsg EventRet:\n{"result": 120}',
)
"""What it says when muted."""


@cache
def _schema(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((_SCHEMAS / f"{name}.schema.json").read_text("utf-8"))
    return loaded


@cache
def _event_validator() -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(_schema("Event"))


@cache
def _ours() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((_DATA / "onebot-calls.json").read_text("utf-8"))
    return loaded


@cache
def _call_validator(action: str, client: str) -> jsonschema.Draft7Validator:
    """Of an action's parameters, as a client takes them (`NapCat`, `LLOneBot`, `Lagrange`)."""
    upstream = _schema("Calls")["definitions"]
    schemas = {**upstream["Calls"]["properties"], **_ours()["calls"], **_ours()["calls_of"].get(client, {})}
    assert action in schemas, f"a call of {action!r}, which no schema knows"
    return jsonschema.Draft7Validator({"definitions": upstream, **_closed(schemas[action])})


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Without parameters it does not name."""
    if "anyOf" in schema:
        return {**schema, "anyOf": [_closed(one) for one in schema["anyOf"]]}
    return {**schema, "additionalProperties": False}


@cache
def _answer_validator(action: str, done: bool) -> jsonschema.Draft7Validator:
    """Of the answer to a call, one that was done or one that failed."""
    answers = _ours()["answers"]
    if not done:
        return jsonschema.Draft7Validator(answers["failed"])
    data = answers["data"].get(action, {"type": "null"})
    return jsonschema.Draft7Validator({"allOf": [answers["ok"], {"properties": {"data": data}}]})


@dataclass(frozen=True, slots=True)
class Bubble:
    """A message the bot sent.

    Args:
        scene: `group:ID` or `private:ID`.
        segments: as they were on the wire.
        id: what was answered, None for a failure.
        at: monotonic seconds when the call came.
    """

    scene: str
    segments: list[dict[str, Any]]
    id: int | None
    at: float

    @property
    def text(self) -> str:
        """Its text segments joined."""
        return "".join(s["data"]["text"] for s in self.segments if s["type"] == "text")


@dataclass
class NapCat:
    """One account's client.

    Args:
        url: the reverse WebSocket.
        token: None sends no Authorization header.
        account: QQ number.
        authorization: how the token is sent, `Bearer`, `Token`, or `query`.
        reports_own: whether `message_sent` follows our own sends: "before" or "after" the API answer, or never.
    """

    url: str
    token: str | None = None
    account: str = ACCOUNT
    authorization: str = "Bearer"
    reports_own: str | None = None
    delays: dict[str, float] = field(default_factory=dict)
    """Seconds before an action is answered."""
    failures: dict[str, deque[tuple[int, str]]] = field(default_factory=dict)
    """(retcode, wording) of the next calls of an action."""
    deaf: set[str] = field(default_factory=set)
    """Actions that are never answered."""
    passed_over: frozenset[str] = frozenset()
    """Parameters that another program than ours gives with every call, and clients pass over."""
    answers_per_call: int = 1
    connected: int = 0
    """Connections taken while `serving`."""
    calls: list[dict[str, Any]] = field(default_factory=list)
    bubbles: list[Bubble] = field(default_factory=list)
    events: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Message events by message_id, for get_msg."""
    app_name: str = "NapCat.Onebot"
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """What the history actions tell, by `group:ID` or `private:ID`, oldest first."""
    refused: dict[str, str] = field(default_factory=dict)
    """Words with which they refuse a scene."""
    older_by_default: bool = True
    """Whether a page after an anchor is older without `reverseOrder`."""
    spoken: dict[int, str] = field(default_factory=dict)
    """Words of voice messages by message_id, for the client's speech-to-text."""
    images: dict[str, str] = field(default_factory=dict)
    """Path of the file of an image, by its name, for get_image."""
    online: bool = True
    """Whether QQ has the account logged in, as heartbeats say."""
    beats_every_s: float | None = 30.0
    """Seconds between heartbeats, None for a client that says one and no more."""

    def __post_init__(self) -> None:
        self._socket: ClientConnection | ServerConnection | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._faults: list[Exception] = []
        self._seen = 0
        self._numbers: Counter[str] = Counter()

    # -- the connection ---------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect, and say so as NapCat does: lifecycle, then heartbeats."""
        headers = {"X-Self-ID": self.account, "x-client-role": "Universal"}
        url = self.url
        if self.token is not None and self.authorization == "query":
            url += f"?access_token={self.token}"
        elif self.token is not None:
            headers["Authorization"] = f"{self.authorization} {self.token}"
        self._socket = await connect(
            url,
            additional_headers=headers,
            user_agent_header="OneBot/11",
            proxy=None,
            ping_interval=None,
            max_size=None,
        )
        self._spawn(self._listen(self._socket))
        await self.emit(post_type="meta_event", meta_event_type="lifecycle", sub_type="connect")
        await self.heartbeat()
        if self.beats_every_s is not None:
            self._spawn(self._beat(self.beats_every_s))

    @contextlib.asynccontextmanager
    async def serving(self, port: int, *, greets: bool = True) -> AsyncIterator[None]:
        """Listen instead, as NapCat's WebSocket server does: the bot connects, with the token or not at all.

        Without `greets` it never says `lifecycle`.
        """

        async def accept(socket: ServerConnection) -> None:
            assert socket.request is not None
            if socket.request.headers.get("Authorization") != f"Bearer {self.token}":
                await socket.close(1008, "token验证失败")
                return
            self._socket = socket
            if greets:
                await self.emit(post_type="meta_event", meta_event_type="lifecycle", sub_type="connect")
            self.connected += 1
            await self._listen(socket)

        async with serve(accept, "127.0.0.1", port, ping_interval=None):
            yield
        self._raise_faults()

    async def heartbeat(self, interval_ms: int = 30000) -> None:
        """Say that all is well, and when it will be said again."""
        status = {"online": self.online, "good": True}
        await self.emit(post_type="meta_event", meta_event_type="heartbeat", status=status, interval=interval_ms)

    async def close(self) -> None:
        """Disconnect politely; raises what was wrong with frames meanwhile."""
        if self._socket is not None:
            await self._socket.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._raise_faults()

    async def vanish(self) -> None:
        """Stop reading and answering without closing: what a cut cable looks like from the other side."""
        assert self._socket is not None
        self._socket.transport.pause_reading()

    async def drop(self) -> None:
        """Cut the connection without a goodbye; what was being answered is not answered any more."""
        assert self._socket is not None
        for task in self._tasks:
            task.cancel()
        self._socket.transport.resume_reading()
        self._socket.transport.abort()
        await self._socket.wait_closed()

    async def closed(self, within_s: float) -> bool:
        """Whether the other side closes the connection in time."""
        assert self._socket is not None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._socket.wait_closed(), within_s)
            return True
        return False

    # -- what happens in QQ -----------------------------------------------------------------------

    async def say(
        self, words: str | Sequence[Mapping[str, Any]], *, user: int = 10001, name: str = "阿泽",
        group: int | None = None, quotes: int | None = None, role: str = "member", deliver: bool = True, **changed: Any,
    ) -> int:  # fmt: skip
        """Somebody says something, in a group or in private; gives the message id.

        Args:
            words: text, or segments.
            quotes: message id quoted.
            deliver: False only prepares the event, for `deliver`.
            changed: fields of the event to put otherwise, `time=…`.
        """
        return await self._message(words, user, name, group, quotes, role, deliver, {"post_type": "message"} | changed)

    async def say_myself(
        self, words: str | Sequence[Mapping[str, Any]], *, group: int | None = None, to: int = 10001, **changed: Any
    ) -> int:
        """The account's owner says something from another device: a `message_sent` event."""
        sent = {"post_type": "message_sent", "message_sent_type": "self", "target_id": group or to}
        return await self._message(words, int(self.account), "本人", group, None, "member", True, sent | changed)

    async def deliver(self, message_id: int) -> None:
        """Send a message event that was prepared, or send one again."""
        await self._send_event(self.events[message_id])

    async def recall(self, message_id: int) -> None:
        """Take a message back."""
        event = self.events[message_id]
        user = event["user_id"]
        if "group_id" in event:
            await self.emit(
                post_type="notice", notice_type="group_recall", group_id=event["group_id"], user_id=user,
                operator_id=user, message_id=message_id,
            )  # fmt: skip
        else:
            await self.emit(post_type="notice", notice_type="friend_recall", user_id=user, message_id=message_id)

    async def emit(self, *, valid: bool = True, **frame: Any) -> None:
        """Send an event; `valid=False` for what no NapCat would send."""
        event = {"time": int(time.time()), "self_id": int(self.account), **frame}
        await self._send_event(event, valid)

    async def raw(self, frame: str | bytes) -> None:
        """Send a frame as it is."""
        assert self._socket is not None
        await self._socket.send(frame)

    # -- what the bot said ------------------------------------------------------------------------

    async def expect(self, n: int = 1, within_s: float = 10.0) -> list[Bubble]:
        """The next `n` bubbles the bot sent; AssertionError if they do not come in time."""
        deadline = time.monotonic() + within_s
        while len(self.bubbles) - self._seen < n and time.monotonic() < deadline:
            self._raise_faults()
            await asyncio.sleep(0.01)
        found = self.bubbles[self._seen : self._seen + n]
        assert len(found) == n, f"{len(found)} of {n} bubbles came within {within_s} s"
        self._seen += n
        self._raise_faults()
        return found

    async def quiet(self, for_s: float) -> None:
        """AssertionError if the bot says anything in this time."""
        deadline = time.monotonic() + for_s
        while time.monotonic() < deadline:
            found = self.bubbles[self._seen :]
            assert not found, f"the bot said {[b.text for b in found]}"
            await asyncio.sleep(0.01)
        self._raise_faults()

    async def ask(self, words: str, within_s: float = 10.0, **where: Any) -> str:
        """Say something and give the text of the next bubble."""
        await self.say(words, **where)
        return (await self.expect(1, within_s))[0].text

    # -- below ------------------------------------------------------------------------------------

    def _raise_faults(self) -> None:
        if self._faults:
            raise self._faults.pop(0)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        # A connection that ends takes answers and heartbeats under way with it, as in QQ: no fault of either side.
        if isinstance(error, Exception) and not isinstance(error, ConnectionClosed):
            self._faults.append(error)

    async def _message(
        self, words: Any, user: int, name: str, group: int | None, quotes: int | None, role: str, deliver: bool,
        changed: dict[str, Any],
    ) -> int:  # fmt: skip
        place = f"group:{group}" if group else f"private:{changed.get('target_id', user)}"
        message_id, seq = self._next(place)
        segments = [text(words)] if isinstance(words, str) else [dict(s) for s in words]
        if quotes is not None:
            segments.insert(0, reply(quotes))
        event: dict[str, Any] = {
            "self_id": int(self.account), "user_id": user, "time": int(time.time()), "message_id": message_id,
            "message_seq": message_id, "real_id": message_id, "real_seq": str(seq),
            "message_type": "group" if group else "private", "raw_message": "", "font": 14, "message": segments,
            "sub_type": "normal" if group else "friend", "message_format": "array",
            "sender": {"user_id": user, "nickname": name, "card": ""} | ({"role": role} if group else {}),
            **({"group_id": group, "group_name": "测试群"} if group else {"target_id": user}), **changed,
        }  # fmt: skip
        self.events[message_id] = event
        if deliver:
            await self._send_event(event)
        return message_id

    async def _beat(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            await self.heartbeat(round(every_s * 1000))

    def _next(self, place: str) -> tuple[int, int]:
        """A new id, as NapCat makes them (31 bits of an md5), and the scene's next running number."""
        self._numbers[place] += 1
        seq = time.time_ns() // 1_000_000 % 1_000_000_000 + self._numbers[place]
        digest = hashlib.md5(f"{place}|{time.time_ns()}|{seq}".encode(), usedforsecurity=False).digest()
        return int.from_bytes(digest[:4], "big") >> 1 or 1, seq

    async def _send_event(self, event: Mapping[str, Any], valid: bool = True) -> None:
        if valid:
            _event_validator().validate(event)
        await self.raw(json.dumps(event, ensure_ascii=False))

    async def _listen(self, socket: ClientConnection | ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for frame in socket:
                call = json.loads(frame)
                assert set(call) == {"action", "params", "echo"}, f"a call has the fields {sorted(call)}"
                self.calls.append(call)
                params = {name: value for name, value in call["params"].items() if name not in self.passed_over}
                _call_validator(call["action"], self.app_name.partition(".")[0]).validate(params)
                self._spawn(self._answer(call))

    async def _answer(self, call: dict[str, Any]) -> None:
        action, params = call["action"], call["params"]
        at = time.monotonic()
        await asyncio.sleep(self.delays.get(action, 0.0))
        if action in self.deaf:
            if action.startswith("send_"):
                self._sent(params, at, None)
            return
        if self.failures.get(action):
            retcode, words = self.failures[action].popleft()
            answer = _failed(retcode, words)
            if action.startswith("send_"):
                self._sent(params, at, None)
        else:
            answer = await self._do(action, params, at)
        answer |= {"echo": call["echo"], "stream": "normal-action"}
        _answer_validator(action, answer["status"] == "ok").validate(answer)
        for _ in range(self.answers_per_call):
            await self.raw(json.dumps(answer, ensure_ascii=False))
        if self.reports_own == "after" and action.startswith("send_") and answer["retcode"] == 0:
            await self._report_own(params, answer["data"]["message_id"])

    async def _do(self, action: str, params: dict[str, Any], at: float) -> dict[str, Any]:
        match action:
            case "send_group_msg" | "send_private_msg":
                message_id, _ = self._next("sent")
                if self.reports_own == "before":
                    await self._report_own(params, message_id)
                    await asyncio.sleep(0.05)
                self._sent(params, at, message_id)
                return _ok({"message_id": message_id})
            case "get_msg" if params["message_id"] in self.events:
                return _ok(self.events[params["message_id"]])
            case "get_msg":
                return _failed(1200, "消息不存在")
            case "fetch_ptt_text" if self.app_name.startswith("NapCat"):
                return self._heard(params)
            case "voice_msg_to_text" if self.app_name.startswith("LLOneBot"):
                return self._heard(params)
            case "get_image" if params["file"] in self.images:
                return _ok({"file": self.images[params["file"]], "url": "", "file_size": "9"})
            case "friend_poke" | "group_poke":
                return _ok(None)
            case "get_group_msg_history" | "get_friend_msg_history":
                return self._page(params)
            case "get_version_info":
                return _ok({"app_name": self.app_name, "app_version": "1", "protocol_version": "v11"})
            case "get_group_list":
                groups = (p for p in self.history if p.startswith("group:"))
                return _ok([{"group_id": int(p[6:]), "group_name": "测试群"} for p in groups])
            case "get_friend_list":
                friends = (p for p in self.history if p.startswith("private:"))
                return _ok([{"user_id": int(p[8:]), "nickname": "阿泽"} for p in friends])
            case "get_login_info":
                return _ok({"user_id": int(self.account), "nickname": "本人"})
            case _:
                return _failed(1404, f"不支持的Api {action}")

    def _heard(self, params: dict[str, Any]) -> dict[str, Any]:
        words = self.spoken.get(params["message_id"])
        return _failed(1200, "无法转换语音消息为文本") if words is None else _ok({"text": words})

    def _page(self, params: dict[str, Any]) -> dict[str, Any]:
        """A page of history, by each client's own anchor."""
        place = f"group:{params['group_id']}" if "group_id" in params else f"private:{params['user_id']}"
        told, count = self.history.get(place, []), params["count"]
        if self.app_name.startswith("LLOneBot"):
            last = params.get("message_seq")
            return _ok({"messages": [m for m in told if last is None or m["message_seq"] <= last][-count:]})
        key = "message_id" if self.app_name.startswith("Lagrange") else "message_seq"
        anchor = str(params.get(key, ""))
        if place in self.refused:
            return _failed(1200, self.refused[place])
        if not told and self.app_name.startswith("NapCat"):
            return _failed(1200, f"消息{anchor or 'undefined'}不存在")
        if not anchor:
            return _ok({"messages": told[-count:]})
        ids = [str(m["message_id"]) for m in told]
        if anchor not in ids:
            return _failed(1200, f"消息{anchor}不存在")
        at = ids.index(anchor)
        older = params.get("reverseOrder", False) != self.older_by_default
        return _ok({"messages": told[max(0, at + 1 - count) : at + 1] if older else told[at : at + count]})

    def _sent(self, params: dict[str, Any], at: float, message_id: int | None) -> None:
        scene = f"group:{params['group_id']}" if "group_id" in params else f"private:{params['user_id']}"
        self.bubbles.append(Bubble(scene, params["message"], message_id, at))

    async def _report_own(self, params: dict[str, Any], message_id: int) -> None:
        group, peer = params.get("group_id"), params.get("user_id", 0)
        await self.say_myself(params["message"], group=group, to=peer, message_id=message_id)


def text(words: str) -> dict[str, Any]:
    """A text segment."""
    return {"type": "text", "data": {"text": words}}


def at(user: int | str) -> dict[str, Any]:
    """A mention."""
    return {"type": "at", "data": {"qq": str(user)}}


def face(face_id: int) -> dict[str, Any]:
    """A system face."""
    return {"type": "face", "data": {"id": str(face_id), "raw": {"faceIndex": face_id, "faceType": 1}}}


def image(summary: str = "", sub_type: int = 0) -> dict[str, Any]:
    """A picture."""
    data = {"summary": summary, "file": "A.jpg", "sub_type": sub_type, "url": "http://127.0.0.1/A", "file_size": "9"}
    return {"type": "image", "data": data}


def reply(message_id: int) -> dict[str, Any]:
    """A quote."""
    return {"type": "reply", "data": {"id": str(message_id)}}


def _ok(data: Any) -> dict[str, Any]:
    return {"status": "ok", "retcode": 0, "data": data, "message": "", "wording": ""}


def _failed(retcode: int, words: str) -> dict[str, Any]:
    return {"status": "failed", "retcode": retcode, "data": None, "message": words, "wording": words}
