"""One scene at a time: hear, look, wait, say. What makes the twin take turns like a person.

Live, the twin looks `debounce_s` after each bubble as if the burst had ended, prepares what it would say, and says it
after a delay drawn from the person's own. Another bubble in the meantime is decided anew, with the same random
number, at most `max_redecisions` times, until the first bubble is out.
"""

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from loguru import logger

from bot.archive import Archive, Decision
from bot.budget import Budget
from bot.config import Settings
from bot.errors import ArchiveError, EngineError, PersonaError, SendError, SendFailure
from bot.message import Message, Origin, Scene, as_told
from bot.mutes import Mutes
from bot.pacing import Pace, rhythms_s, situations
from bot.persona import Pacing, Persona
from bot.prompt import Exchange
from bot.reply import Look, Replier
from bot.scenes import EVERYWHERE, Scenes
from bot.stickers import kept

_RETRY_S = 2.0
_NOT_SENT = {
    SendFailure.REFUSED: "QQ 拒绝了", SendFailure.SHADOWED: "QQ 收下了却没有确认", SendFailure.UNKNOWN: "没有回音",
    SendFailure.OFFLINE: "客户端没连上", SendFailure.BUG: "客户端不认这条消息",
}  # fmt: skip
"""What the owner reads of a send that failed."""
GATHER_S = 10.0
"""Seconds for which further bubbles make a turn wait longer; beyond them it looks at what is there."""
RHYTHM_MESSAGES = 60
"""A scene's newest messages in which a speaker's rhythm is looked for."""
RHYTHM_KEPT_S = 120.0
"""A rhythm changes slowly, and reading 60 messages at every message was most of what a message cost."""


class Transport(Protocol):
    """How bubbles leave: the OneBot client, a terminal, a test."""

    async def send(self, account: str, scene: Scene, segments: list[dict[str, Any]]) -> str:
        """Send one bubble as an account; gives its message id.

        Raises:
            SendError: with how it failed.
        """
        ...

    async def seen(self, account: str, scene: Scene, message_id: str) -> None:
        """Show that a scene was read up to a message, where the client can; never raises."""
        ...

    async def typing(self, account: str, scene: Scene) -> None:
        """Show in a private chat that something is being typed, where the client can; never raises."""
        ...


@dataclass(slots=True)
class _Turn:
    """What is going on in a scene."""

    burst: str | None = ""
    """Id of the first message of the burst `draw` is for; None: it was taken back, and the rest goes on."""
    draw: float = 0.0
    redecisions: int = 0
    task: asyncio.Task[None] | None = None
    looking: bool = False
    """What was heard is being decided on, or said; else it waits for more words."""
    speaking: bool = False
    waits_since: float = 0.0
    """Since when it waits for more words (monotonic)."""
    spoke_at: datetime | None = None
    again: bool = False
    account: str = ""
    clock: timedelta = timedelta()
    fresh: set[str] = field(default_factory=set)
    """Ids heard that no finished decision has seen."""
    latest: Message | None = None
    """What was heard last."""
    rhythms: dict[str, float] = field(default_factory=dict)
    """Speaker → their rhythm in seconds."""
    rhythms_at: float = -math.inf
    """When they were looked up (monotonic)."""
    newest: str = ""
    """Id heard last; empty where it was taken back."""
    waited: float = 0.0
    """Seconds it waited for more words before the last look."""
    stopped: str = "cancelled"
    """What stopped the task last."""


class Presence:
    """Answers in scenes.

    Args:
        settings: `[chat]`, superusers.
        archive: decisions and scene states.
        replier: looks and words.
        persona_of: the persona that answers in a scene.
        transport: how bubbles leave.
        tell_owner: sends the owners a line when something needs them.
        rng: random numbers; seeded in tests.
    """

    def __init__(
        self,
        settings: Settings,
        archive: Archive,
        replier: Replier,
        persona_of: Callable[[Scene], Persona],
        transport: Transport,
        tell_owner: Callable[[str], Coroutine[Any, Any, None]],
        rng: random.Random | None = None,
    ) -> None:
        self._chat = settings.chat
        self.scenes = Scenes(settings, archive)
        """What is set for each scene."""
        self._archive = archive
        self._replier = replier
        self._persona_of = persona_of
        self._transport = transport
        self._tell_owner = tell_owner
        self._rng = rng or random.Random()
        self.budget = Budget(settings.chat)
        """What may still be sent; answers to commands count in it too."""
        self.mutes = Mutes(archive, self.budget)
        """Where the accounts may not speak."""
        self._remember_sent()
        self._offline: set[str] = set()
        self._turns: dict[Scene, _Turn] = {}
        self._background: set[asyncio.Task[None]] = set()
        """Sends begun, and lines to the owners: they outlive the turn they come from."""

    def _remember_sent(self) -> None:
        """Count in the budget what was sent before a restart."""
        now, monotonic = datetime.now(UTC), time.monotonic()
        try:
            sent = self._archive.sent_since(now - timedelta(days=1))
        except ArchiveError as e:
            logger.warning("what was sent before is not known, so the budget begins anew: {}", e)
            return
        # QQ's clock may be ahead of ours.
        self.budget.restore((who, scene, monotonic - max(0.0, (now - at).total_seconds())) for who, scene, at in sent)

    # -- what happens -----------------------------------------------------------------------------

    def heard(self, message: Message, account: str) -> None:
        """Somebody else spoke: look at the scene soon, if it is on.

        Args:
            message: stored already.
            account: the bot's QQ number it was sent to.
        """
        if not self.scenes.is_on(message.scene):
            return
        if self.stale(message):
            self._unlooked(message.scene, "stale", message.id)
            return
        turn = self._turns.setdefault(message.scene, _Turn())
        turn.account = account
        turn.clock = message.time - datetime.now(UTC)
        if self.scenes.is_held(message.scene):
            return
        turn.fresh.add(message.id)
        turn.newest, turn.latest = message.id, message
        if turn.task is None or turn.task.done():
            turn.redecisions, turn.waits_since = 0, time.monotonic()
            self._start(message.scene, turn)
        elif not turn.looking:
            # Nothing is decided yet. Whoever writes on is waited for, but chatter has an end; the look reads all of it.
            if time.monotonic() - turn.waits_since < GATHER_S:
                self._start(message.scene, turn)
        elif turn.speaking or turn.redecisions >= self._chat.max_redecisions:
            turn.again = True
        else:
            turn.redecisions, turn.waits_since = turn.redecisions + 1, time.monotonic()
            self._start(message.scene, turn)

    def stale(self, message: Message) -> bool:
        """Whether a message came too late to be acted on (after an outage)."""
        return (datetime.now(UTC) - message.time).total_seconds() > self._chat.stale_after_s

    def own_words(self, message: Message) -> None:
        """The person spoke themselves on the bot's account: drop what is prepared and keep quiet for `hold_s`."""
        turn = self._turns.setdefault(message.scene, _Turn())
        self._stop(turn, "held")
        turn.again = False
        turn.fresh.clear()
        self.scenes.hold(message.scene)

    def recalled(self, scene: Scene, message_id: str, why: str = "recalled") -> None:
        """A message was taken back: an answer being prepared, perhaps on its ground, is dropped and decided anew.

        Where nothing else is undecided there is nothing to decide: older words were left alone for good.

        Args:
            scene: where.
            message_id: of what is no longer there.
            why: how the decision ends that is dropped.
        """
        turn = self._turns.get(scene)
        if turn is None:
            return
        turn.fresh.discard(message_id)
        if turn.newest == message_id:
            turn.newest = ""
        if turn.burst in (message_id, None):
            turn.burst = None if turn.fresh else ""
        if turn.task and not turn.task.done() and not turn.speaking:
            if turn.fresh:
                self._start(scene, turn)
            else:
                self._stop(turn, why)

    def ignore(self, person: str) -> None:
        """Somebody opted out: nothing prepared is said to them any more, and none of their words is kept at hand."""
        for scene, turn in self._turns.items():
            turn.rhythms.pop(person, None)
            theirs = turn.latest is not None and turn.latest.sender_id == person
            if turn.speaking and theirs:
                self.withdrawn(scene)
            for message_id in [i for i in turn.fresh if self._is_by(person, scene, i)]:
                self.recalled(scene, message_id, "optout")
            if theirs:
                turn.latest = None

    def _is_by(self, person: str, scene: Scene, message_id: str) -> bool:
        """Whether they said it; also where it is not known: it is then better not answered."""
        with contextlib.suppress(ArchiveError):
            found = self._archive.get(scene, message_id)
            return found is None or found.sender_id == person
        return True

    def withdrawn(self, scene: Scene) -> None:
        """A bubble of ours was taken back while the answer goes on: say nothing more of it."""
        turn = self._turns.get(scene)
        if turn is not None and turn.speaking:
            self._stop(turn)
            turn.again = False
            turn.fresh.clear()

    def account_of(self, scene: Scene) -> str | None:
        """The account that heard something in a scene last; None if nothing was heard yet."""
        turn = self._turns.get(scene)
        return turn.account or None if turn else None

    def open(
        self, scene: Scene, account: str, prompt: str, kind: str, ended: "asyncio.Future[str] | None" = None
    ) -> str | None:
        """Speak first in a scene; words that come before the first bubble is out are answered instead.

        Args:
            scene: where.
            account: from which of the bot's QQ numbers.
            prompt: what it is about; empty: whatever comes to mind.
            kind: `own` or `schedule`, for `/why`.
            ended: is given the outcome (as in `Decision`) of what is under way.

        Returns:
            What forbids it, written down as a decision unless it is an opt-out; None when it is under way.
        """
        if hindrance := self.forbids(scene, account):
            if hindrance != "optout":  # it would be a row about them
                self._unlooked(scene, hindrance, why={"opening": kind})
            return hindrance
        turn = self._turns.setdefault(scene, _Turn())
        turn.account, turn.clock, turn.redecisions, turn.looking = account, timedelta(), 0, True
        turn.speaking = turn.again = False
        told = ended or asyncio.get_running_loop().create_future()
        turn.task = asyncio.create_task(self._opened(scene, turn, prompt, kind, told))
        # A task cancelled before its first step never runs.
        turn.task.add_done_callback(lambda _: _tell(told, turn.stopped))
        return None

    def forbids(self, scene: Scene, account: str) -> str | None:
        """What forbids an account to speak first in a scene now, or nothing.

        Returns:
            `optout`, `off`, `held`, `busy` (it is answering there), `offline`, `quiet`, `muted`, `paused`, `budget` or
            None.
        """
        if scene.private and self._archive.optouts.is_out(scene.id):
            return "optout"
        if not self.scenes.is_on(scene):
            return "off"
        if self.scenes.is_held(scene):
            return "held"
        turn = self._turns.get(scene)
        if turn is not None and turn.task is not None and not turn.task.done():
            return "busy"
        return self._hindrance(scene, account)

    def forget(self, scene: Scene) -> None:
        """Keep nothing of what was set for a scene, or goes on there."""
        turn = self._turns.pop(scene, None)
        if turn is not None:
            self._stop(turn, "optout")
        self.scenes.forget(scene)

    def online(self, account: str, online: bool) -> None:
        """QQ has an account logged in, or logged it out: then nothing is sent from it until it is back."""
        if online:
            self._offline.discard(account)
        elif account not in self._offline:
            self._offline.add(account)
            logger.error("QQ logged account {} out: log in again in its OneBot client", account)
            self._spawn(self._tell_owner(f"QQ 账号 {account} 掉线了，要在它的 OneBot 客户端里重新登录。"))

    def is_online(self, account: str) -> bool:
        """Whether QQ has an account logged in, as far as is known."""
        return account not in self._offline

    def decide_anew(self, scene: Scene) -> None:
        """Another persona answers in a scene (or `EVERYWHERE`): it decides what is not being said yet.

        What was to be said first there is dropped: nobody waits for it.
        """
        for place, turn in self._turns.items():
            if scene in (place, EVERYWHERE) and turn.task and not turn.task.done() and not turn.speaking:
                if turn.fresh:
                    self._start(place, turn)
                else:
                    self._stop(turn)

    def switch(self, scene: Scene, on: bool, now: datetime) -> None:
        """Turn the twin on or off in a scene."""
        self.scenes.switch(scene, on, now)
        if not on and (turn := self._turns.get(scene)):
            self._stop(turn, "off")
            turn.again = False
            turn.fresh.clear()

    async def close(self) -> None:
        """Stop everything; a bubble being sent is finished."""
        tasks = [t.task for t in self._turns.values() if t.task]
        for turn in self._turns.values():
            self._stop(turn, "stopped")
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*self._background, return_exceptions=True)

    # -- one turn ---------------------------------------------------------------------------------

    def _start(self, scene: Scene, turn: _Turn) -> None:
        self._stop(turn)
        turn.speaking = turn.looking = False
        turn.task = asyncio.create_task(self._guarded(scene, turn))

    @staticmethod
    def _stop(turn: _Turn, why: str = "cancelled") -> None:
        if turn.task and not turn.task.done():
            turn.stopped = why
            turn.task.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run what must end whatever happens to the turn."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.debug("a send or a line to the owner failed: {}", error)

    async def _guarded(self, scene: Scene, turn: _Turn) -> None:
        """The worker's edge: whatever goes wrong here is told, and the scene lives on."""
        try:
            turn.waited = self._patience_s(scene, turn)
            await asyncio.sleep(turn.waited)
            while True:
                turn.again = turn.speaking = False
                turn.looking = True
                seen = set(turn.fresh)
                try:
                    await self._turn(scene, turn)
                except (EngineError, PersonaError) as e:
                    logger.error("no answer in {}: {}", scene.kind, e)
                    self._spawn(self._tell_owner(f"回复生成失败：{e}"))
                turn.fresh -= seen
                if not turn.again:
                    return
                turn.redecisions, turn.waits_since = 0, time.monotonic()
                turn.looking = turn.speaking = False
                turn.waited = self._patience_s(scene, turn)
                await asyncio.sleep(turn.waited)
        except Exception as e:  # noqa: BLE001 - the worker loop's edge
            logger.opt(exception=e).error("the turn in a {} scene failed", scene.kind)

    async def _opened(self, scene: Scene, turn: _Turn, prompt: str, kind: str, ended: "asyncio.Future[str]") -> None:
        """The worker's edge for what is said first; words that came meanwhile are looked at afterwards."""
        try:
            last, moment = self._archive.window(scene, 1), datetime.now(UTC)
            opening = Exchange(opened=moment, gap=moment - last[-1].time if last else None, prompt=prompt)
            try:
                look = await self._look_first(scene, turn, opening, kind)
                await self._say(look, turn, time.monotonic(), ended)
            except (EngineError, PersonaError) as e:
                logger.error("nothing said first in {}: {}", scene.kind, e)
                self._spawn(self._tell_owner(f"回复生成失败：{e}"))
                _tell(ended, _failure(e))
        except Exception as e:  # noqa: BLE001 - the worker's edge
            logger.opt(exception=e).error("an opening in a {} scene failed", scene.kind)
            _tell(ended, _failure(e))
        if turn.again:
            turn.task = asyncio.create_task(self._guarded(scene, turn))

    def _patience_s(self, scene: Scene, turn: _Turn) -> float:
        """How long to wait for more words of whoever spoke last: as they write, and no longer when they address us."""
        last, now = turn.latest, time.monotonic()
        if last is None or last.id != turn.newest or turn.account in last.mentions or last.reply_to is not None:
            return self._chat.debounce_s
        if now - turn.rhythms_at > RHYTHM_KEPT_S:
            with contextlib.suppress(ArchiveError):
                turn.rhythms = rhythms_s(self._archive.window(scene, RHYTHM_MESSAGES))
                turn.rhythms_at = now
        found = turn.rhythms.get(last.sender_id, 0.0)
        return min(max(found, self._chat.debounce_s), self._chat.debounce_max_s)

    async def _turn(self, scene: Scene, turn: _Turn) -> None:
        started = time.monotonic()
        persona: Persona | None = None
        try:
            persona = self._persona_of(scene)
            look = await self._look(scene, persona, turn)
        except Exception as e:
            self._unlooked(scene, _failure(e), turn.newest, persona)
            raise
        if look is None:
            return
        if self._chat.mark_as_read:
            self._spawn(self._transport.seen(look.account, scene, as_told(look.exchange.heard[-1].id)))
        if not look.verdict.speaks:
            self._record(look, "silent")
            return
        if hindrance := self._hindrance(scene, look.account):
            self._record(look, hindrance)
            return
        await self._say(look, turn, started - turn.waited)

    async def _say(self, look: Look, turn: _Turn, since: float, ended: "asyncio.Future[str] | None" = None) -> None:
        """Say what was decided, write down how that ended, and tell it."""
        outcome = "failed: fault"
        try:
            outcome = await self._speak(look, turn, self._pace(look), since)
        except asyncio.CancelledError:
            outcome = turn.stopped if not turn.speaking else "cut short"
            raise
        except EngineError as e:
            outcome = "cut short" if turn.speaking else _failure(e)
            raise
        finally:
            self._record(look, outcome)
            if ended is not None:
                _tell(ended, outcome)

    def _hindrance(self, scene: Scene, account: str) -> str | None:
        """What forbids a bubble to a scene now: a login lost, quiet hours, or what the budget says; or nothing."""
        if account in self._offline:
            return "offline"
        if self.scenes.is_quiet(scene, datetime.now(UTC)):
            return "quiet"
        return self.budget.hindrance(account, scene, time.monotonic())

    async def _look(self, scene: Scene, persona: Persona, turn: _Turn) -> Look | None:
        def draw_of(burst: str) -> float:
            if turn.burst not in (burst, None):
                turn.draw = self._rng.random()
            turn.burst = burst
            return turn.draw

        return await self._replier.look(scene, persona, turn.account, draw_of, self.scenes.bias(scene), turn.fresh)

    async def _look_first(self, scene: Scene, turn: _Turn, opening: Exchange, kind: str) -> Look:
        persona: Persona | None = None
        try:
            persona = self._persona_of(scene)
            return await self._replier.opening(scene, persona, turn.account, self._rng.random(), opening, kind)
        except Exception as e:
            self._unlooked(scene, _failure(e), persona=persona, why={"opening": kind})
            raise

    def _pace(self, look: Look) -> Pace:
        version, heard = look.persona.version, look.exchange.heard
        of = situations(
            private=look.scene.private, cold=look.exchange.opened is not None,
            hour=look.moment.hour,
        )  # fmt: skip
        pacing = version.manifest.pacing if version else Pacing()
        return Pace(pacing, self._chat, random.Random(look.request.seed), of, heard[-1].text if heard else "")

    async def _speak(self, look: Look, turn: _Turn, pace: Pace, since: float) -> str:
        """Say it; gives how that ended.

        Args:
            look: what was decided.
            turn: the scene's.
            pace: how fast.
            since: when the last words came (monotonic seconds).
        """
        bubbles = self._replier.bubbles(look)
        sent = 0
        turn.spoke_at = None
        try:
            async for bubble in bubbles:
                segments = look.segments(bubble)
                if not segments:
                    continue
                answers = not sent and look.exchange.heard
                speak_at = since + (pace.first_s(bubble) if answers else pace.next_s(bubble))
                await self._until(speak_at, look, pace.typing_s(bubble))
                await asyncio.sleep(self.budget.wait_s(look.account, time.monotonic()))
                if hindrance := self._forbidden(look):
                    return hindrance if not sent else "cut short"
                quote = look.quotes(turn.newest) if not sent else None
                await self._deliver(look, turn, bubble, [*_reply_to(quote), *segments], first=not sent)
                sent += 1
                since = time.monotonic()
        except SendError as e:
            logger.warning("not sent in {}: {}", look.scene.kind, e)
            pause = f"；疑似风控，{self._chat.shadowed_pause_s / 60:.0f} 分钟内都不再发言"
            more = pause if e.failure is SendFailure.SHADOWED else ""
            how = _NOT_SENT[e.failure]
            self._spawn(self._tell_owner(f"有一条消息没发出去（{how}），场景 {look.scene}{more}"))
            return "cut short" if sent else f"failed: {e.failure.value}"
        finally:
            await bubbles.aclose()
        return "spoke" if sent else "empty"

    def _forbidden(self, look: Look) -> str | None:
        """What forbids the next bubble: whom it is said to opted out meanwhile, or what forbids any there; or nothing.

        `ignore` drops what answers their words; nobody has said a word yet where the twin speaks first, nor has another
        process that writes a wish down (`twin forget`) a presence to tell.
        """
        whom = look.to.sender_id if look.to else look.scene.id if look.scene.private else ""
        if whom and self._archive.optouts.is_out(whom):
            return "optout"
        return self._hindrance(look.scene, look.account)

    async def _until(self, speak_at: float, look: Look, typing_s: float) -> None:
        """Wait for a bubble's moment (monotonic seconds), typing it towards the end where that is shown."""
        if look.scene.private and self._chat.show_typing:
            await asyncio.sleep(max(0.0, speak_at - typing_s - time.monotonic()))
            if speak_at > time.monotonic():
                self._spawn(self._transport.typing(look.account, look.scene))
        await asyncio.sleep(max(0.0, speak_at - time.monotonic()))

    async def _deliver(
        self, look: Look, turn: _Turn, bubble: str, segments: list[dict[str, Any]], *, first: bool
    ) -> None:
        """Send one bubble; a refusal is tried once more after a pause, nothing else is ever repeated.

        A begun send is finished whatever happens; the pause ends with the turn, as when the person speaks themselves,
        and before the first bubble is out newer words and recalls still change the answer.
        """
        for attempt in (1, 2):
            turn.speaking = True
            try:
                await asyncio.shield(self._spawn(self._send(look, turn, bubble, segments)))
                return
            except SendError as e:
                if e.failure is not SendFailure.REFUSED or attempt == 2:
                    raise
                turn.speaking = not first
                await asyncio.sleep(_RETRY_S)
                if self._forbidden(look):
                    raise

    async def _send(self, look: Look, turn: _Turn, bubble: str, segments: list[dict[str, Any]]) -> None:
        account = look.account
        # Counted before the outcome is known: what timed out may have been delivered.
        self.budget.spend(account, look.scene, time.monotonic())
        try:
            message_id = await self._transport.send(account, look.scene, segments)
        except SendError as e:
            self.budget.failed(account, look.scene, time.monotonic(), e.failure)
            raise
        # In whole seconds of QQ's clock, as its own events are, in the place of what is answered and all at the first
        # bubble's time: else words that came in between are stored before this bubble, and never answered. Words that
        # came before the first bubble, after the last look, stand behind the whole answer for the same reason.
        now = (datetime.now(UTC) + turn.clock).replace(microsecond=0)
        heard = look.exchange.heard[-1] if look.exchange.heard else None
        ground = heard.time if heard else now
        turn.spoke_at = turn.spoke_at or (ground if turn.again else max(now, ground))
        when = turn.spoke_at
        name, raw = look.persona.spec.display_name, tuple(kept(s) for s in segments)
        quoted = look.to.id if look.to is not None and segments[0]["type"] == "reply" else None
        said = Message(
            message_id, look.scene, account, name, when, bubble, Origin.TWIN, reply_to=quoted,
            seq=heard.seq if heard else None, segments=raw,
        )  # fmt: skip
        self._archive.append([said])

    # -- what was decided -------------------------------------------------------------------------

    def _record(self, look: Look, outcome: str) -> None:
        self._store(look.decision(outcome, datetime.now(UTC)))

    def _unlooked(
        self,
        scene: Scene,
        outcome: str,
        of: str = "",
        persona: Persona | None = None,
        why: dict[str, Any] | None = None,
    ) -> None:
        """Write down what was decided without a look: what forbade or prevented it."""
        try:
            name = persona.name if persona else self.scenes.persona(scene)
        except ArchiveError:
            name = self._chat.persona
        version = persona.version.name if persona and persona.version else None
        self._store(Decision(scene, of, datetime.now(UTC), name, version, outcome, why or {}))

    def _store(self, decision: Decision) -> None:
        """One row and one line for every decision, without a word of what was said."""
        why, version = decision.why, decision.version or "-"
        took = sum(why.get("took_ms", {}).values())
        logger.info(
            "{}: {} as {}/{}, P(silent) {}, P(speak) {}, draw {}, {} tokens, {} ms",
            decision.scene.kind, decision.outcome, decision.persona, version,
            *(_short(why.get(name)) for name in ("p_silent", "p_speak", "draw")), why.get("tokens", 0), took,
        )  # fmt: skip
        try:
            self._archive.decide(decision)
        except ArchiveError as e:
            logger.warning("a decision was not stored: {}", e)


def _short(number: float | None) -> str:
    return "-" if number is None else f"{number:.3f}"


def _failure(error: Exception) -> str:
    """Outcome of a decision that ended in an error."""
    return "failed: engine" if isinstance(error, EngineError | PersonaError) else "failed: fault"


def _tell(ended: "asyncio.Future[str]", outcome: str) -> None:
    """Tell an outcome, unless it was told before or nobody waits any more."""
    if not ended.done():
        ended.set_result(outcome)


def _reply_to(message_id: str | None) -> list[dict[str, Any]]:
    """The segment that quotes a message: clients want it first."""
    return [] if message_id is None else [{"type": "reply", "data": {"id": message_id}}]
