"""The history a OneBot client can still tell → the archive, page by page towards the past, resumed where it stopped.

`get_group_msg_history` and `get_friend_msg_history` answer a page of messages before an anchor. The clients differ in
it: NapCat takes the oldest message's id as `message_seq`, its page has that message again, an empty page is an error,
the first one of a scene without messages too, and in which direction `reverseOrder` looks is not settled [inferred]: it
is found out. LLBot takes a running number, the last one of the page, and older ones of it refuse an empty page, too;
Lagrange takes a `message_id`. So ids decide: a page without a new, older one is the end.
"""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from bot.archive import Archive
from bot.errors import ArchiveBusy, ImportFault
from bot.events import MalformedEvent, message
from bot.intake import Intake
from bot.message import Message, Origin, Scene
from bot.optouts import Why
from bot.scenes import STATE_KIND

KIND = "backfill"
"""Of the scene's log: how far back the client's history was read."""
COUNT = 50
"""Messages asked for at once; NapCat's default is 20."""
PAUSE_S = 1.0
"""Between two pages, of one scene or of two: QQ's servers answer them, and the account is a person's."""
PLACES_KEPT = 3
"""Places named for each reason why something was left out."""
SOURCE = "backfill"
EMPTY, REFUSED = "an empty message", "refused by the archive"
"""Why something was left out, beside what cannot be read and what somebody wished."""
_NOTED_PAGES = 20
CATCH_UP_PAGES = 10
"""Pages of a scene that are asked for after an outage; what was missed beyond is left to a backfill."""
_ANSWERING = ("on", "default")
_ID = re.compile(r"-?[0-9]{1,20}")
_END_SIGNS = ("不存在", "未找到消息", "not found", "not exist")
_NOBODY_SIGN = "记录"
"""`记录…不存在` is NapCat's word for a number that it does not know, and no end."""
Call = Callable[[str, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
"""Calls an action and gives the whole answer (`status`, `retcode`, `data`, `wording`); ImportFault if none comes."""


class Client(StrEnum):
    """Whose way of paging."""

    NAPCAT = "napcat"
    LLBOT = "llbot"
    LAGRANGE = "lagrange"

    @classmethod
    def named(cls, app_name: str) -> "Client":
        """By `get_version_info.app_name`; NapCat's way for an unknown one."""
        name = app_name.lower()
        if "lagrange" in name:
            return cls.LAGRANGE
        return cls.LLBOT if name.startswith(("llonebot", "llbot", "lucky")) else cls.NAPCAT


@dataclass(frozen=True, slots=True)
class Login:
    """Who answers.

    Args:
        client: whose way of paging it is.
        title: the program and its version.
        account: its QQ number.
        name: the account's.
    """

    client: Client
    title: str
    account: str
    name: str


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a backfill came.

    Args:
        id: of the oldest message read.
        seq: its running number.
        time: its unix seconds.
        since: unix seconds of the newest message read; between the two nothing is missing.
        done: whether nothing older is to be had.
    """

    id: str
    seq: int | None
    time: float
    since: float
    done: bool = False


@dataclass(slots=True)
class Filled:
    """What a backfill did in a scene.

    Args:
        pages: that had something new.
        messages: read.
        added: of them, new in the archive.
        skipped: left out, by reason.
        places: first places of every reason.
        oldest: when the oldest message read was said.
        done: whether nothing older is to be had.
    """

    pages: int = 0
    messages: int = 0
    added: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)
    oldest: datetime | None = None
    done: bool = False

    def skip(self, reason: str, place: str) -> None:
        """Count something left out."""
        self.skipped[reason] += 1
        kept = self.places.setdefault(reason, [])
        if len(kept) < PLACES_KEPT:
            kept.append(place)


class Backfill:
    """Fills scenes from one client.

    Args:
        call: calls the client.
        archive: the message store.
        pause_s: seconds before every page but the first that is asked for, whatever the scene.
    """

    def __init__(self, call: Call, archive: Archive, pause_s: float = PAUSE_S) -> None:
        self._call = call
        self._archive = archive
        self._pause_s = pause_s
        self._asked = False
        self._login: Login | None = None

    async def login(self) -> Login:
        """Which client it is, and the account; asked once.

        Raises:
            ImportFault: the client does not answer.
        """
        if self._login is None:
            program, who = await self._told("get_version_info"), await self._told("get_login_info")
            name = str(program.get("app_name") or "")
            self._login = Login(
                Client.named(name), f"{name} {program.get('app_version') or ''}".strip(), str(who.get("user_id") or ""),
                str(who.get("nickname") or ""),
            )  # fmt: skip
        return self._login

    async def scenes(self) -> dict[Scene, str]:
        """Every group and friend of the account, with what it is called there.

        Raises:
            ImportFault: the client does not answer, or refuses.
        """
        groups, friends = await self._listed("get_group_list"), await self._listed("get_friend_list")
        found = {Scene("group", str(g["group_id"])): g.get("group_name") for g in groups if g.get("group_id")}
        for friend in friends:
            if friend.get("user_id"):
                found[Scene("private", str(friend["user_id"]))] = friend.get("remark") or friend.get("nickname")
        return {scene: str(name or "") for scene, name in found.items()}

    async def fill(self, scene: Scene, told: Callable[[Filled], None] = lambda _: None) -> Filled:
        """Read a scene towards the past until nothing older comes; a later call goes on where this one stopped.

        Args:
            scene: a group or a friend.
            told: called after each page.

        Raises:
            ImportFault: the client is gone, refuses, or the archive takes nothing. What was read is kept.
        """
        if scene.private and self._archive.optouts.why(scene.id) is Why.FORGOTTEN:
            return Filled(done=True)  # not even where its history ends is noted
        await self.login()
        walk = _Walk(self._mark(scene))
        filled, intake = Filled(), Intake(self._archive, SOURCE)
        try:
            while (page := await self._page(scene, walk, filled)) is not None:
                filled.pages += 1
                filled.messages += len(page)
                self._store(intake, page, filled)
                walk.past(page)
                filled.oldest = datetime.fromtimestamp(walk.anchor.time, UTC) if walk.anchor else None
                told(filled)
                if walk.done:
                    break
                if filled.pages % _NOTED_PAGES == 0:
                    self._note(scene, walk)
            walk.done = filled.done = True
        finally:
            self._note(scene, walk)
        return filled

    async def catch_up(
        self, scene: Scene, since: datetime, until: datetime, is_command: Callable[[Message], bool] = lambda _: False
    ) -> Filled:
        """Read what was said in a scene between two moments, the newest first; bounded, and without a mark.

        Args:
            scene: a group or a friend.
            since: when the last stored message was said.
            until: when the client connected: what came later comes by itself, and must not be there before it.
            is_command: whether the model must not see a message.

        Raises:
            ImportFault: the client is gone, refuses, or the archive takes nothing. What was read is kept.
        """
        walk, filled, intake = _Walk(None), Filled(), Intake(self._archive, SOURCE)
        while (page := await self._page(scene, walk, filled)) is not None:
            filled.pages += 1
            missed = [replace(m, origin=Origin.SYSTEM) if is_command(m) else m for m in page if m.time < until]
            filled.messages += len(missed)
            self._store(intake, missed, filled)
            walk.past(page)
            filled.done = min(m.time for m in page) < since  # of the last second itself some may be missing
            if filled.done or filled.pages == CATCH_UP_PAGES:
                return filled
        filled.done = True
        return filled

    async def _page(self, scene: Scene, walk: "_Walk", filled: Filled) -> list[Message] | None:
        """The next page's messages that are new and older; None at the end."""
        login = await self.login()
        while True:
            answer = await self._politely(*_request(scene, login.client, walk.anchor, walk.reverse))
            found = _messages(answer)
            if found is None and walk.back():
                continue  # The client has forgotten where the last backfill stopped: through what is known, then.
            if found is None and not _at_end(answer):
                kept = f"{filled.added} new messages are stored, and the next backfill goes on from there"
                raise ImportFault(
                    f"the client refuses the history of {scene}: {_words(answer)!r} (retcode {answer.get('retcode')}); "
                    f"{kept if filled.pages else 'try again later'}"
                )
            fresh = walk.fresh(self._read(found or (), scene, login.account, walk, filled))
            if fresh:
                return fresh
            if login.client is not Client.NAPCAT or walk.anchor is None or walk.turned:
                return None
            walk.reverse, walk.turned = not walk.reverse, True

    async def _politely(self, action: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """A history action's answer, a pause after the last one."""
        if self._asked:
            await asyncio.sleep(self._pause_s)
        self._asked = True
        return await self._call(action, params)

    def _read(self, events: Sequence[Any], scene: Scene, account: str, walk: "_Walk", filled: Filled) -> list[Message]:
        """What a page tells; what is broken is counted with its reason and place, once."""
        read = []
        for number, event in enumerate(events, 1):
            try:
                read.append(self._message(event, scene, account))
            except MalformedEvent as e:
                place = _place(event) or f"page {filled.pages + 1}, number {number}"
                if place not in walk.broken:  # pages overlap
                    walk.broken.add(place)
                    filled.skip(str(e), place)
        return read

    def _message(self, event: Any, scene: Scene, account: str) -> Message:
        """The message a page tells of.

        Raises:
            MalformedEvent: it cannot be read; says why.
        """
        if not isinstance(event, Mapping):
            raise MalformedEvent("not an event")
        try:
            made = message(event, lambda number: self._archive.name_of(number, scene))
        except (AttributeError, RecursionError) as e:
            raise MalformedEvent("nested too deeply" if isinstance(e, RecursionError) else "not an event") from e
        # Own words of a private chat name the account alone; what the account said while the twin was on may be the
        # twin's, which must never be learned.
        twins = made.sender_id == account and any(
            since <= made.time and state in _ANSWERING for since, state in self._archive.timeline(scene, STATE_KIND)
        )
        return replace(made, scene=scene, origin=Origin.TWIN if twins else Origin.HUMAN)

    def _store(self, intake: Intake, page: Sequence[Message], filled: Filled) -> None:
        """Store a page; what the archive does not take is counted with its reason and place."""
        try:
            taken = intake.take([m for m in page if m.text])
        except ArchiveBusy as e:
            raise ImportFault(
                "the archive cannot be written; free disk space or stop what holds it, then backfill again"
            ) from e
        self._archive.lost += len(taken.refused)
        filled.added += taken.added
        left = [(m, EMPTY) for m in page if not m.text] + [(m, REFUSED) for m in taken.refused]
        left += [(m, str(why)) for m, why in taken.withheld]
        for one, reason in left:
            filled.skip(reason, f"message {one.id}")

    async def _told(self, action: str) -> Mapping[str, Any]:
        data = (await self._call(action, {})).get("data")
        return data if isinstance(data, Mapping) else {}

    async def _listed(self, action: str) -> list[Mapping[str, Any]]:
        answer = await self._call(action, {})
        if _refused(answer):
            raise ImportFault(f"the client refuses {action}: {_words(answer)!r} (retcode {answer.get('retcode')})")
        data = answer.get("data")
        return [one for one in data if isinstance(one, Mapping)] if isinstance(data, list) else []

    # -- how far it came --------------------------------------------------------------------------

    def _mark(self, scene: Scene) -> Mark | None:
        latest = self._archive.latest(scene, KIND)
        try:
            return Mark(**json.loads(latest[0])) if latest else None
        except (ValueError, TypeError):
            return None

    def _note(self, scene: Scene, walk: "_Walk") -> None:
        mark = walk.mark()
        if mark is not None:
            told = {"id": mark.id, "seq": mark.seq, "time": mark.time, "since": mark.since, "done": mark.done}
            self._archive.note(scene, KIND, json.dumps(told), datetime.now(UTC))


class _Walk:
    """Where a backfill is: from the newest message down to what an earlier one read, then on from its end."""

    def __init__(self, earlier: Mark | None) -> None:
        self.anchor: Mark | None = None
        """The oldest message read; its page is followed by the one before it."""
        self.reverse = self.turned = self.done = False
        self.broken: set[str] = set()
        """Places of what could not be read."""
        self._earlier = earlier
        self._since = 0.0
        self._seen: set[str] = set()
        self._before_jump: Mark | None = None

    def fresh(self, page: list[Message]) -> list[Message]:
        """What is neither read already nor newer than the anchor."""
        limit = self.anchor.time if self.anchor else float("inf")
        return [m for m in page if m.id not in self._seen and m.time.timestamp() <= limit]

    def past(self, page: list[Message]) -> None:
        """A page was stored: the next anchor is its oldest message, or where the earlier backfill stopped."""
        self.turned, self._before_jump = False, None
        self._seen |= {m.id for m in page}
        oldest = min(page, key=lambda m: (m.time, m.seq or 0))
        self._since = self._since or max(m.time for m in page).timestamp()
        self.anchor = Mark(oldest.id, oldest.seq, oldest.time.timestamp(), self._since)
        if self._earlier is not None and self.anchor.time <= self._earlier.since:
            earlier, self._earlier = self._earlier, None
            if earlier.time < self.anchor.time:
                self._before_jump = self.anchor
                self.anchor = replace(earlier, since=self._since)
            self.done = earlier.done

    def back(self) -> bool:
        """Undo the jump to where the earlier backfill stopped; False when there was none."""
        if self._before_jump is None:
            return False
        self.anchor, self._before_jump = self._before_jump, None
        return True

    def mark(self) -> Mark | None:
        """What to remember: nothing while the earlier backfill's end is not reached, for that one still holds."""
        if self.anchor is None or self._earlier is not None:
            return None
        return replace(self.anchor, done=self.done)


def _request(scene: Scene, client: Client, anchor: Mark | None, reverse: bool) -> tuple[str, dict[str, Any]]:
    """Action and parameters of the page before the anchor."""
    action = "get_friend_msg_history" if scene.private else "get_group_msg_history"
    params: dict[str, Any] = {"user_id" if scene.private else "group_id": _number(scene.id), "count": COUNT}
    if anchor is None:
        return action, params
    match client:
        case Client.NAPCAT:
            params |= {"message_seq": _number(anchor.id), "reverseOrder": reverse}
        case Client.LLBOT:
            params["message_seq"] = anchor.seq - 1 if anchor.seq is not None else _number(anchor.id)
        case Client.LAGRANGE:
            params["message_id"] = _number(anchor.id)
    return action, params


def _number(value: str) -> int | str:
    """An id as all clients take it."""
    return int(value) if value.isascii() and value.isdigit() else value


def _messages(answer: Mapping[str, Any]) -> list[Any] | None:
    """The page's messages; None when the call was refused."""
    if _refused(answer):
        return None
    data = answer.get("data")
    found = data.get("messages") if isinstance(data, Mapping) else data
    return found if isinstance(found, list) else []


def _refused(answer: Mapping[str, Any]) -> bool:
    return answer.get("status") == "failed" or answer.get("retcode", 0) != 0


def _words(answer: Mapping[str, Any]) -> str:
    return str(answer.get("wording") or answer.get("message") or "")[:120]


def _at_end(answer: Mapping[str, Any]) -> bool:
    """Whether a refusal is a client's way of telling an empty page."""
    words = _words(answer).lower()
    return not words.startswith(_NOBODY_SIGN) and any(sign in words for sign in _END_SIGNS)


def _place(event: Any) -> str:
    """What names a message that cannot be read; nothing where it has no id."""
    number = event.get("message_id") if isinstance(event, Mapping) else None
    return f"message {number}" if _ID.fullmatch(str(number)) else ""
