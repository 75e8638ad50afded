"""OneBot v11 over NoneBot: the adapter with its holes mended, and the transport that sends bubbles.

nonebot-adapter-onebot 2.4.6 is finished upstream; what it leaves open is mended here by subclassing, each mend with a
test that fails without it: no HTTP routes (anyone could post a forged event), constant-time token check, a second
answer to one call, calls in flight when the socket goes, a peer that half-closed and comes back, frames that are
not JSON, frames of more than 1 MiB where we connect, quoting messages that wait for `get_msg` and are overtaken,
clients whose heartbeat stops, models for `message_sent` and new notices.
"""

import asyncio
import contextlib
import hmac
import json
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import nonebot
from loguru import logger
from nonebot.adapters.onebot.collator import Collator
from nonebot.adapters.onebot.store import ResultStore
from nonebot.adapters.onebot.v11 import Adapter, Bot
from nonebot.adapters.onebot.v11.event import Event, HeartbeatMetaEvent, NoticeEvent
from nonebot.adapters.onebot.v11.exception import ActionFailed, ApiNotAvailable, NetworkError
from nonebot.adapters.onebot.v11.message import Message as OneBotMessage
from nonebot.adapters.onebot.v11.message import MessageSegment
from nonebot.adapters.onebot.v11.utils import handle_api_result
from nonebot.drivers import URL, Request, Response, WebSocket, WebSocketServerSetup
from nonebot.drivers.websockets import WebSocket as ClientWebSocket
from nonebot.exception import WebSocketClosed
from nonebot.message import handle_event
from nonebot.utils import DataclassEncoder
from websockets.asyncio.client import connect

from bot.errors import SendError, SendFailure
from bot.events import POKE_ID
from bot.message import Message, Origin, Scene, Segment
from bot.segments import to_text

_OPEN_S, _RECONNECT_S = 30.0, 3.0
_FRAME_BYTES = 16 * 1024 * 1024
"""Of a frame at most, as uvicorn takes where a client connects: at a larger one the connection ends."""
_HEARTBEATS_MISSED = 3
_SHOWN_WITHIN_S, _HEARD_WITHIN_S, _NO_SUCH_ACTION = 5.0, 10.0, 1404
_LOST_S = 120.0
"""A send without an answer may still be delivered, and its echo come, for so long."""
_RAW = "twin_raw"
_BUG_SIGNS = ("消息体无法解析", "未知的消息类型", "请指定正确的")


# A field that is no Literal would register a model as the one of every event without its own.
class MessageSentEvent(Event):
    """A message sent by the account itself: the person's own words, or the echo of one of our sends."""

    post_type: Literal["message_sent"]


class InputStatusEvent(NoticeEvent):
    """The peer is typing (NapCat)."""

    notice_type: Literal["notify"]
    sub_type: Literal["input_status"]


class BotOfflineEvent(NoticeEvent):
    """QQ logged the account out (NapCat)."""

    notice_type: Literal["bot_offline"]


class LooseMessageEvent(Event):
    """A message that lacks what the adapter's models ask for; what we need of it is read from the frame."""

    def get_message(self) -> OneBotMessage:
        """Nothing, so that NoneBot's own command parser finds nothing in it."""
        return OneBotMessage(MessageSegment.text(""))


class Calls(ResultStore):
    """Answers to calls: registered before sending, taken once, failed at once when their connection goes."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[str, tuple[str, asyncio.Future[dict[str, Any]]]] = {}

    def open(self, account: str) -> tuple[str, "asyncio.Future[dict[str, Any]]"]:
        """A new echo and the future of its answer."""
        echo = str(self.get_seq())
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[echo] = (account, future)
        return echo, future

    def close(self, echo: str) -> None:
        """Forget a call; a later answer to it is ignored."""
        _, future = self._waiting.pop(echo, ("", None))
        if future is not None and not future.cancel() and not future.cancelled():
            future.exception()  # looked at: asyncio would log it as never retrieved

    def add_result(self, result: dict[str, Any]) -> None:
        """Take an answer; a second one to the same echo (NapCat's stream actions) is ignored."""
        found = self._waiting.get(str(result.get("echo")))
        if found and not found[1].done():
            found[1].set_result(result)

    def drop(self, account: str) -> None:
        """Fail every call in flight of a connection that went."""
        for owner, future in list(self._waiting.values()):
            if owner == account and not future.done():
                future.set_exception(NetworkError("the connection went while the call was in flight"))


class TwinBot(Bot):
    """A connected account. Events go on as they are: the adapter's own checks would ask `get_msg` and change them."""

    def __init__(self, adapter: Adapter, self_id: str) -> None:
        super().__init__(adapter, self_id)
        self.numbers = {self_id}
        """Numbers it goes by: some clients (onebots) name another one in frames than in the handshake."""

    async def handle_event(self, event: Event) -> None:
        """Hand an event to NoneBot at once, in the order of arrival."""
        self.numbers.add(str(event.self_id))
        await handle_event(self, event)


class TwinAdapter(Adapter):
    """OneBot v11 with the holes mended."""

    heartbeat_least_s = 60.0
    """A client is not given up sooner, however short its heartbeat's interval: some may say it in seconds."""
    # Its own: `add_custom_model` would change the published adapter's, too.
    event_models = Collator(
        "OneBot V11",
        [*Adapter.event_models.models, MessageSentEvent, InputStatusEvent, BotOfflineEvent],
        Adapter.event_models.keys,
    )
    _result_store: Calls = Calls()

    def _setup(self) -> None:
        for path in ("/onebot/v11/", "/onebot/v11/ws", "/onebot/v11/ws/"):
            self.setup_websocket_server(WebSocketServerSetup(URL(path), f"OneBot {path}", self._handle_ws))
        if self.onebot_config.onebot_ws_urls:
            self.on_ready(self._start_forward)
        self.driver.on_shutdown(self._stop)

    @classmethod
    def json_to_event(cls, json_data: Any) -> Event | None:
        """The event of a frame with the frame itself kept beside it; answers to calls are taken out here.

        Not the adapter's own: that one logs the whole frame, words included, when it understands none of it.
        """
        if not isinstance(json_data, dict):
            return None
        if "post_type" not in json_data:
            cls._result_store.add_result(json_data)
            return None
        for model in cls._models(json_data):
            with contextlib.suppress(Exception):
                event = model.model_validate(dict(json_data))  # the adapter's validators write into it
                event.__dict__[_RAW] = json_data
                return event
        logger.warning("a {} event is malformed and left out", str(json_data["post_type"])[:32])
        return None

    @classmethod
    def _models(cls, frame: dict[str, Any]) -> list[type[Event]]:
        """What a frame may be, the closest first."""
        loose = LooseMessageEvent if frame["post_type"] == "message" else Event
        if loose is LooseMessageEvent and not _whole(frame.get("message")):
            return [loose]
        try:
            return [*(m for m in cls.get_event_model(frame) if m is not Event), loose]
        except (TypeError, ValueError):
            return [loose]

    def _check_access_token(self, request: Request) -> Response | None:
        expected = self.onebot_config.onebot_access_token or ""
        scheme, _, given = str(request.headers.get("authorization", "")).partition(" ")
        if scheme.lower() not in ("bearer", "token"):
            given = str(request.url.query.get("access_token", ""))
        if not expected or hmac.compare_digest(given.strip().encode(), expected.encode()):
            return None
        logger.warning("a OneBot client was refused: its token is {}", "wrong" if given else "missing")
        return Response(403, content="access token is wrong or missing")

    async def _handle_ws(self, websocket: WebSocket) -> None:
        account = websocket.request.headers.get("x-self-id")
        if not account:
            await websocket.close(1008, "Missing X-Self-ID Header")
            return
        if (refused := self._check_access_token(websocket.request)) is not None:
            await websocket.close(1008, str(refused.content))
            return
        await websocket.accept()
        bot = self._connect(account, websocket)
        try:
            await self._hear(bot, websocket)
        except WebSocketClosed:
            logger.warning("the OneBot client of {} has gone", account)
        finally:
            with contextlib.suppress(Exception):
                await websocket.close()
            self._disconnect(bot, websocket)

    async def _hear(self, bot: TwinBot, websocket: WebSocket) -> None:
        """Take frames until the connection goes, or none comes though the client said that its heart beats."""
        limit_s = None
        while True:
            try:
                async with asyncio.timeout(limit_s):
                    frame = await websocket.receive()
            except TimeoutError:
                logger.warning("nothing came from the client of {} for {:.0f} s: it is given up", bot.self_id, limit_s)
                return
            event = self._dispatch(bot, frame)
            if isinstance(event, HeartbeatMetaEvent):
                limit_s = max(_HEARTBEATS_MISSED * event.interval / 1000, self.heartbeat_least_s)

    def _connect(self, account: str, websocket: WebSocket) -> TwinBot:
        """A new connection; an older one of the account gives way: it is half-open, or its client was restarted."""
        older = self.connections.get(account)
        if older is not None:
            logger.warning("account {} connects again; its older connection is closed", account)
            self._disconnect(cast(TwinBot, self.bots[account]), older)
            self._spawn(self._close(older))
        bot = TwinBot(self, account)
        self.connections[account] = websocket
        self.bot_connect(bot)
        logger.info("account {} is connected", account)
        return bot

    @staticmethod
    async def _close(websocket: WebSocket) -> None:
        with contextlib.suppress(Exception):
            await websocket.close(1012, "taken over by a newer connection")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _disconnect(self, bot: TwinBot, websocket: WebSocket) -> None:
        if self.connections.get(bot.self_id) is not websocket:
            return
        del self.connections[bot.self_id]
        self._result_store.drop(bot.self_id)
        self.bot_disconnect(bot)

    def _dispatch(self, bot: TwinBot, frame: str | bytes) -> Event | None:
        event = self._read(frame)
        if event is not None:
            self._spawn(bot.handle_event(event))
        return event

    def _read(self, frame: str | bytes) -> Event | None:
        try:
            return self.json_to_event(json.loads(frame))
        except (ValueError, RecursionError) as e:
            logger.warning("a frame of {} bytes was not understood: {}", len(frame), type(e).__name__)
            return None

    async def _forward_ws(self, url: URL) -> None:
        token = self.onebot_config.onebot_access_token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = Request("GET", url, headers=headers)
        while True:
            try:
                async with connect(
                    str(url), additional_headers=headers, open_timeout=_OPEN_S, max_size=_FRAME_BYTES
                ) as socket:
                    await self._listen(ClientWebSocket(request=request, websocket=socket))
            except Exception as e:  # noqa: BLE001 - a worker's edge: it goes on trying
                logger.warning("no connection to the OneBot server at {}: {}", url.host, type(e).__name__)
            await asyncio.sleep(_RECONNECT_S)

    async def _listen(self, websocket: WebSocket) -> None:
        """Hear a server. Every event says whose it is: one that never says `lifecycle` is heard from its first."""
        bot: TwinBot | None = None
        try:
            while bot is None:
                frame = await websocket.receive()
                event = self._read(frame)
                if event is not None and event.self_id:
                    bot = self._connect(str(event.self_id), websocket)
                    self._dispatch(bot, frame)
            await self._hear(bot, websocket)
        except WebSocketClosed:
            logger.warning("the OneBot server has gone")
        finally:
            if bot is not None:
                self._disconnect(bot, websocket)

    async def _call_api(self, bot: Any, api: str, **data: Any) -> Any:
        websocket = self.connections.get(bot.self_id)
        if websocket is None:
            raise ApiNotAvailable
        timeout = data.pop("_timeout", self.config.api_timeout)
        echo, answer = self._result_store.open(bot.self_id)
        try:
            frame = json.dumps({"action": api, "params": data, "echo": echo}, cls=DataclassEncoder)
            try:
                await websocket.send(frame)
            except Exception as e:
                raise ApiNotAvailable from e
            try:
                return handle_api_result(await asyncio.wait_for(answer, timeout))
            except TimeoutError:
                raise NetworkError(f"no answer to {api} within {timeout} s") from None
        finally:
            self._result_store.close(echo)


def _whole(message: Any) -> bool:
    """Whether NoneBot can do with a message what it does before any handler sees it: log it, look at its beginning."""
    if not isinstance(message, list):
        return isinstance(message, str) and bool(message)
    return bool(message) and all(isinstance(s, dict) and isinstance(s.get("data"), dict) for s in message)


def raw_event(event: Event) -> Mapping[str, Any]:
    """The frame an event was made of, untouched."""
    raw = event.__dict__.get(_RAW)
    return raw if isinstance(raw, dict) else event.model_dump()


def failure_of(error: Exception) -> SendFailure:
    """How a send failed, from what the client (NapCat's wording) or the adapter said."""
    if isinstance(error, ApiNotAvailable):
        return SendFailure.OFFLINE
    if not isinstance(error, ActionFailed):
        return SendFailure.UNKNOWN
    words = str(error.info.get("message") or error.info.get("wording") or "")
    if error.info.get("retcode") in (1400, 1404) or any(sign in words for sign in _BUG_SIGNS):
        return SendFailure.BUG
    if words.startswith("Timeout"):
        return SendFailure.SHADOWED
    return SendFailure.REFUSED


@dataclass(frozen=True, slots=True, eq=False)
class Flight:
    """A send under way, or one that was never answered: where, what in canonical text, whose words, which account."""

    scene: Scene
    text: str
    origin: Origin
    account: str = ""


@dataclass(frozen=True, slots=True)
class Echo:
    """An echo of our own send: whose words it was, and whether the client answered the call (then it is stored)."""

    origin: Origin
    answered: bool


class Outbox:
    """What we sent, to tell the echo of our own bubbles from the person's words on the same account."""

    def __init__(self, keep: int = 2000) -> None:
        self._keep = keep
        self._ids: OrderedDict[tuple[Scene, str], Origin] = OrderedDict()
        self._flying: list[Flight] = []
        self._lost: list[tuple[Flight, float]] = []
        self._said: deque[tuple[Flight, float]] = deque(maxlen=200)
        self._pokes: deque[tuple[Scene, Origin, float]] = deque(maxlen=50)
        self._landed = asyncio.Condition()

    def poked(self, scene: Scene, origin: Origin) -> None:
        """A poke is sent into a scene; its notice, which has no id we know, is ours."""
        self._pokes.append((scene, origin, time.monotonic()))

    def begin(self, scene: Scene, segments: Iterable[Segment], origin: Origin, account: str = "") -> Flight:
        """A send into a scene starts."""
        flight = Flight(scene, plain(segments), origin, account)
        self._flying.append(flight)
        return flight

    async def end(self, flight: Flight, message_id: str | None, *, lost: bool = False) -> None:
        """A send ended: with an id, refused, or `lost` without an answer (it may be delivered all the same)."""
        async with self._landed:
            self._flying.remove(flight)
            now = time.monotonic()
            self._lost = [(f, t) for f, t in self._lost if now - t < _LOST_S]
            if message_id is not None or lost:
                self._said.append((flight, now))
            if message_id is not None:
                self._ids[(flight.scene, message_id)] = flight.origin
                while len(self._ids) > self._keep:
                    self._ids.popitem(last=False)
            elif lost:
                self._lost.append((flight, now))
            self._landed.notify_all()

    async def echo_of(self, scene: Scene, message_id: str, segments: Iterable[Segment]) -> "Echo | None":
        """Which of our sends a `message_sent` echoes; None if the person said it, elsewhere.

        The echo can come before the send's answer: it waits for what is under way in the scene to land, then the id
        decides. A send that was never answered is known by its words.
        """
        if message_id.startswith(POKE_ID):
            poke = next((p for p in self._pokes if p[0] == scene and time.monotonic() - p[2] < _LOST_S), None)
            if poke is None:
                return None
            self._pokes.remove(poke)
            return Echo(poke[1], answered=True)
        async with self._landed:
            here = [f for f in self._flying if f.scene == scene]
            await self._landed.wait_for(
                lambda: (scene, message_id) in self._ids or not any(f in self._flying for f in here)
            )
        if (scene, message_id) in self._ids:
            return Echo(self._ids[(scene, message_id)], answered=True)
        text = plain(segments)
        for lost in self._lost:
            flight, since = lost
            if flight.scene == scene and flight.text == text and time.monotonic() - since < _LOST_S:
                self._lost.remove(lost)
                return Echo(flight.origin, answered=False)
        return None

    async def heard(self, message: Message) -> "Echo | None":
        """Which of our sends another of our accounts heard; None if the person said it.

        It waits for what is under way in the scene, like `echo_of`. The id is not the one we were answered with, so the
        words of the last minutes tell.

        Args:
            message: of the account that may have sent it, as another one heard it.
        """
        now = time.monotonic()
        if message.id.startswith(POKE_ID):
            poke = next((p for p in self._pokes if p[0] == message.scene and now - p[2] < _LOST_S), None)
            return None if poke is None else Echo(poke[1], answered=True)
        async with self._landed:
            here = [f for f in self._flying if f.scene == message.scene]
            await self._landed.wait_for(lambda: not any(f in self._flying for f in here))
        said = (message.scene, message.sender_id, plain(message.segments))
        same = (f for f, since in self._said if (f.scene, f.account, f.text) == said and now - since < _LOST_S)
        flight = next(same, None)
        return None if flight is None else Echo(flight.origin, answered=True)


def plain(segments: Iterable[Segment]) -> str:
    """Canonical text for comparing a message with its echo: names as numbers, spaces alike."""
    return " ".join(to_text(segments, lambda _: None).text.split())


class OneBotTransport:
    """Sends bubbles through the connected OneBot client (a `bot.presence.Transport`).

    Args:
        outbox: where sends are noted.
        timeout_s: wait for the client's answer.
        bots: the connected bots by account.
    """

    def __init__(
        self, outbox: Outbox, timeout_s: float, bots: Callable[[], Mapping[str, Any]] = nonebot.get_bots
    ) -> None:
        self._outbox = outbox
        self._timeout_s = timeout_s
        self._bots = bots
        self._missing: set[tuple[str, str]] = set()
        """(account, action) that its client does not know."""

    async def send(
        self, account: str, scene: Scene, segments: list[dict[str, Any]], origin: Origin = Origin.TWIN
    ) -> str:
        """Send one bubble; gives its message id.

        Args:
            account: from which account; never from another one.
            scene: where to.
            segments: what, as `bot.segments.to_segments` makes them.
            origin: whose words: the twin's, or SYSTEM for answers to commands and reports.

        Raises:
            SendError: with how it failed.
        """
        bot = next((b for b in self._bots().values() if account in b.numbers), None)
        if bot is None:
            raise SendError(SendFailure.OFFLINE, "no OneBot client of this account is connected")
        # Model output goes out as segments, never as a string: strings are parsed as CQ code.
        if poke := next((s for s in segments if s["type"] == "poke"), None):
            segments = [s for s in segments if s["type"] != "poke"]
            if all(s["type"] == "reply" for s in segments):  # nothing is said beside it
                return await self._poke(bot, scene, str(poke["data"]["id"]), origin)
        message = OneBotMessage([MessageSegment(s["type"], dict(s["data"])) for s in segments])
        target = {"group_id": int(scene.id)} if not scene.private else {"user_id": int(scene.id)}
        action = "send_private_msg" if scene.private else "send_group_msg"
        message_id, failure = None, SendFailure.UNKNOWN
        flight = self._outbox.begin(scene, segments, origin, account)
        try:
            answer = await bot.call_api(action, **target, message=message, _timeout=self._timeout_s)
            message_id = str(answer["message_id"])
        except (ActionFailed, ApiNotAvailable, NetworkError) as e:
            failure = failure_of(e)
            raise SendError(failure, _words(e)) from e
        except (KeyError, TypeError) as e:
            raise SendError(failure, "the client's answer has no message_id") from e
        finally:
            maybe = failure in (SendFailure.UNKNOWN, SendFailure.SHADOWED)
            await self._outbox.end(flight, message_id, lost=maybe)
        if poke:  # behind the words: those may be refused, and are then tried again
            with contextlib.suppress(SendError):
                await self._poke(bot, scene, str(poke["data"]["id"]), origin)
        return message_id

    async def _poke(self, bot: Any, scene: Scene, whom: str, origin: Origin) -> str:
        """Poke somebody; gives an id for it, since a poke has none. Raises SendError."""
        target = {"user_id": int(whom)} | ({} if scene.private else {"group_id": int(scene.id)})
        self._outbox.poked(scene, origin)
        try:
            action = "friend_poke" if scene.private else "group_poke"
            await bot.call_api(action, **target, _timeout=self._timeout_s)
        except (ActionFailed, ApiNotAvailable, NetworkError) as e:
            raise SendError(failure_of(e), _words(e)) from e
        return f"{POKE_ID}{time.time_ns()}-{bot.self_id}-{whom}"

    async def seen(self, account: str, scene: Scene, message_id: str) -> None:
        """Show that a scene was read up to a message; NapCat, LLBot and Lagrange know `mark_msg_as_read`."""
        await self._show(account, "mark_msg_as_read", message_id=_numeric(message_id))

    async def typing(self, account: str, scene: Scene) -> None:
        """Show in a private chat that something is being typed; NapCat and LLBot know `set_input_status`."""
        await self._show(account, "set_input_status", user_id=scene.id, event_type=1)

    async def transcribed(self, account: str, message_id: str) -> str | None:
        """The words of a voice message, by QQ's own speech-to-text; None where the client has none, or it fails.

        NapCat calls it `fetch_ptt_text`, LLBot `voice_msg_to_text`; Lagrange has neither.
        """
        bot = next((b for b in self._bots().values() if account in b.numbers), None)
        number = _numeric(message_id)
        if bot is None or number is None:
            return None
        for action in ("fetch_ptt_text", "voice_msg_to_text"):
            if (account, action) in self._missing:
                continue
            try:
                answer = await bot.call_api(action, message_id=number, _timeout=_HEARD_WITHIN_S)
            except ActionFailed as e:
                if e.info.get("retcode") != _NO_SUCH_ACTION:
                    return None
                self._missing.add((account, action))
                continue
            except (ApiNotAvailable, NetworkError):
                return None
            text = answer.get("text") if isinstance(answer, Mapping) else None
            return text.strip() or None if isinstance(text, str) else None
        return None

    async def _show(self, account: str, action: str, **params: Any) -> None:
        """Do what only shows something: where the client fails or does not know it, nothing happens."""
        bot = next((b for b in self._bots().values() if account in b.numbers), None)
        if bot is None or None in params.values() or (account, action) in self._missing:
            return
        try:
            await bot.call_api(action, **params, _timeout=_SHOWN_WITHIN_S)
        except ActionFailed as e:
            if e.info.get("retcode") == _NO_SUCH_ACTION:
                self._missing.add((account, action))
                logger.info("the OneBot client has no {}: not shown", action)
        except (ApiNotAvailable, NetworkError):
            logger.debug("{} was not answered", action)


def _numeric(message_id: str) -> int | None:
    """A message id as clients take it, negative ones with their sign; None for one of ours, such as a poke's."""
    return int(message_id) if message_id.removeprefix("-").isdecimal() else None


def _words(error: Exception) -> str:
    if isinstance(error, ActionFailed):
        return f"retcode {error.info.get('retcode')}: {str(error.info.get('message') or '')[:120]}"
    return type(error).__name__
