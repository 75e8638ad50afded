"""One scene at a time: hear, look, wait, say. What makes the twin take turns like a person.

Live, the twin looks `debounce_s` after each bubble as if the burst had ended, prepares what it would say, and says it
after a delay drawn from the person's own. Another bubble in the meantime is decided anew, with the same random
number, at most `max_redecisions` times, until the first bubble is out.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from loguru import logger

from bot.archive import Archive
from bot.config import Settings
from bot.errors import ArchiveError, EngineError, PersonaError, SendError, SendFailure
from bot.message import Message, Origin, Scene
from bot.pacing import Budget, answer_delay_s, bubble_gap_s
from bot.persona import Pacing, Persona
from bot.reply import Look, Replier
from bot.segments import to_segments

STATE_KIND, PERSONA_KIND = "state", "persona"
"""Scene-log kinds: what the twin does there (on, off, held); which persona answers there."""
_RETRY_S = 2.0


class Transport(Protocol):
    """How bubbles leave: the OneBot client, a terminal, a test."""

    async def send(self, account: str, scene: Scene, segments: list[dict[str, Any]]) -> str:
        """Send one bubble as an account; gives its message id.

        Raises:
            SendError: with how it failed.
        """
        ...


@dataclass(slots=True)
class _Turn:
    """What is going on in a scene."""

    burst: str = ""
    draw: float = 0.0
    redecisions: int = 0
    task: asyncio.Task[None] | None = None
    speaking: bool = False
    spoke_at: datetime | None = None
    again: bool = False
    account: str = ""
    clock: timedelta = timedelta()
    fresh: set[str] = field(default_factory=set)
    """Ids heard that no finished decision has seen."""


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
        tell_owner: Callable[[str], Awaitable[None]],
        rng: random.Random | None = None,
    ) -> None:
        self._chat = settings.chat
        self._superusers = settings.onebot.superusers
        self._archive = archive
        self._replier = replier
        self._persona_of = persona_of
        self._transport = transport
        self._tell_owner = tell_owner
        self._rng = rng or random.Random()
        self._budget = Budget(settings.chat)
        self._turns: dict[Scene, _Turn] = {}
        self._sending: set[asyncio.Task[None]] = set()

    # -- what happens -----------------------------------------------------------------------------

    def heard(self, message: Message, account: str) -> None:
        """Somebody else spoke: look at the scene soon, if it is on.

        Args:
            message: stored already.
            account: the bot's QQ number it was sent to.
        """
        age_s = (datetime.now(UTC) - message.time).total_seconds()
        if age_s > self._chat.stale_after_s or not self.is_on(message.scene):
            return
        turn = self._turns.setdefault(message.scene, _Turn())
        turn.account = account
        turn.clock = message.time - datetime.now(UTC)
        if self._held(message.scene):
            return
        turn.fresh.add(message.id)
        if turn.task is None or turn.task.done():
            turn.redecisions = 0
            self._start(message.scene, turn)
        elif turn.speaking or turn.redecisions >= self._chat.max_redecisions:
            turn.again = True
        else:
            turn.redecisions += 1
            self._start(message.scene, turn)

    def own_words(self, message: Message) -> None:
        """The person spoke themselves on the bot's account: drop what is prepared and keep quiet for `hold_s`."""
        turn = self._turns.setdefault(message.scene, _Turn())
        self._stop(turn)
        turn.again = False
        turn.fresh.clear()
        if self.is_on(message.scene):
            self._archive.note(message.scene, STATE_KIND, "held", datetime.now(UTC))

    def recalled(self, scene: Scene, message_id: str) -> None:
        """A message was taken back: an answer being prepared, perhaps on its ground, is dropped and decided anew.

        Where nothing else is undecided there is nothing to decide: older words were left alone for good.
        """
        turn = self._turns.get(scene)
        if turn is None:
            return
        turn.fresh.discard(message_id)
        if turn.task and not turn.task.done() and not turn.speaking:
            if turn.fresh:
                self._start(scene, turn)
            else:
                self._stop(turn)

    def switch(self, scene: Scene, on: bool, now: datetime) -> None:
        """Turn the twin on or off in a scene."""
        self._archive.note(scene, STATE_KIND, "on" if on else "off", now)
        if not on and (turn := self._turns.get(scene)):
            self._stop(turn)
            turn.again = False
            turn.fresh.clear()

    def is_on(self, scene: Scene) -> bool:
        """Whether the scene is answered; the default of a scene is written down when first asked for."""
        state = self._archive.latest(scene, STATE_KIND)
        if state is not None:
            return state[0] != "off"
        on = (scene.private and scene.id in self._superusers) or str(scene) in self._chat.scenes
        if on:
            self._archive.note(scene, STATE_KIND, "on", datetime.now(UTC))
        return on

    def _held(self, scene: Scene) -> bool:
        """Whether the person spoke there themselves a while ago; the end of the hold is written down when noticed."""
        state = self._archive.latest(scene, STATE_KIND)
        if state is None or state[0] != "held":
            return False
        now = datetime.now(UTC)
        if (now - state[1]).total_seconds() < self._chat.hold_s:
            return True
        self._archive.note(scene, STATE_KIND, "on", now)
        return False

    async def close(self) -> None:
        """Stop everything; a bubble being sent is finished."""
        tasks = [t.task for t in self._turns.values() if t.task]
        for turn in self._turns.values():
            self._stop(turn)
        await asyncio.gather(*tasks, *self._sending, return_exceptions=True)

    # -- one turn ---------------------------------------------------------------------------------

    def _start(self, scene: Scene, turn: _Turn) -> None:
        self._stop(turn)
        turn.speaking = False
        turn.task = asyncio.create_task(self._guarded(scene, turn))

    @staticmethod
    def _stop(turn: _Turn) -> None:
        if turn.task and not turn.task.done():
            turn.task.cancel()

    async def _guarded(self, scene: Scene, turn: _Turn) -> None:
        """The worker's edge: whatever goes wrong here is told, and the scene lives on."""
        try:
            await asyncio.sleep(self._chat.debounce_s)
            while True:
                turn.again = turn.speaking = False
                seen = set(turn.fresh)
                try:
                    await self._turn(scene, turn)
                except (EngineError, PersonaError) as e:
                    logger.error("no answer in {}: {}", scene.kind, e)
                    await self._tell_owner(f"回复生成失败：{e}")
                turn.fresh -= seen
                if not turn.again:
                    return
                turn.redecisions = 0
                await asyncio.sleep(self._chat.debounce_s)
        except Exception as e:  # noqa: BLE001 - the worker loop's edge
            logger.opt(exception=e).error("the turn in a {} scene failed", scene.kind)

    async def _turn(self, scene: Scene, turn: _Turn) -> None:
        started = time.monotonic()
        persona = self._persona_of(scene)
        look = await self._look(scene, persona, turn)
        if look is None:
            return
        if not look.verdict.speaks:
            self._record(look, "silent")
            return
        pacing = persona.version.manifest.pacing if persona.version else Pacing()
        rng = random.Random(look.request.seed)
        speak_at = started + max(0.0, answer_delay_s(pacing, self._chat, scene, rng) - self._chat.debounce_s)
        try:
            await self._speak(look, turn, pacing, speak_at, rng)
        except asyncio.CancelledError:
            self._record(look, "cancelled" if not turn.speaking else "cut short")
            raise
        except EngineError:
            self._record(look, "failed: engine")
            raise

    async def _look(self, scene: Scene, persona: Persona, turn: _Turn) -> Look | None:
        def draw_of(burst: str) -> float:
            if turn.burst != burst:
                turn.burst, turn.draw = burst, self._rng.random()
            return turn.draw

        return await self._replier.look(scene, persona, turn.account, draw_of)

    async def _speak(self, look: Look, turn: _Turn, pacing: Pacing, speak_at: float, rng: random.Random) -> None:
        bubbles = self._replier.bubbles(look)
        sent = 0
        turn.spoke_at = None
        try:
            async for bubble in bubbles:
                segments = to_segments(bubble, look.speakers)
                if not segments:
                    continue
                await asyncio.sleep(max(0.0, speak_at - time.monotonic()))
                if not self._budget.allows(look.scene, time.monotonic()):
                    self._record(look, "budget" if not sent else "cut short")
                    return
                turn.speaking = True
                await self._deliver(look, turn, bubble, segments)
                sent += 1
                speak_at = time.monotonic() + bubble_gap_s(pacing, self._chat, rng)
        except SendError as e:
            logger.warning("not sent in {}: {}", look.scene.kind, e)
            self._record(look, f"failed: {e.failure.value}")
            await self._tell_owner(f"有一条消息没发出去（{e.failure.value}），场景 {look.scene}")
            return
        finally:
            await bubbles.aclose()  # type: ignore[attr-defined]
        self._record(look, "spoke" if sent else "empty")
        logger.info("{}: {} bubbles as {}", look.scene.kind, sent, look.request.voice.name)

    async def _deliver(self, look: Look, turn: _Turn, bubble: str, segments: list[dict[str, Any]]) -> None:
        """Send one bubble; a refusal is tried once more after a pause, nothing else is ever repeated.

        A begun send is finished whatever happens; the pause ends with the turn, as when the person speaks themselves.
        """
        for attempt in (1, 2):
            sending = asyncio.create_task(self._send(look, turn, bubble, segments))
            self._sending.add(sending)
            sending.add_done_callback(self._sending.discard)
            try:
                await asyncio.shield(sending)
                return
            except SendError as e:
                if e.failure is not SendFailure.REFUSED or attempt == 2:
                    raise
                self._budget.refused(look.scene, time.monotonic())
                await asyncio.sleep(_RETRY_S)
                if not self._budget.allows(look.scene, time.monotonic()):
                    raise

    async def _send(self, look: Look, turn: _Turn, bubble: str, segments: list[dict[str, Any]]) -> None:
        account = turn.account
        # Counted before the outcome is known: what timed out may have been delivered.
        self._budget.spend(look.scene, time.monotonic())
        message_id = await self._transport.send(account, look.scene, segments)
        # In whole seconds of QQ's clock, as its own events are, in the place of what is answered and all at the first
        # bubble's time: else words that came in between are stored before this bubble, and never answered. Words that
        # came before the first bubble, after the last look, stand behind the whole answer for the same reason.
        heard = look.exchange.heard[-1]
        now = (datetime.now(UTC) + turn.clock).replace(microsecond=0)
        turn.spoke_at = turn.spoke_at or (heard.time if turn.again else max(now, heard.time))
        when = turn.spoke_at
        name, raw = look.persona.spec.display_name, tuple(segments)
        said = Message(message_id, look.scene, account, name, when, bubble, Origin.TWIN, seq=heard.seq, segments=raw)
        self._archive.append([said])

    def _record(self, look: Look, outcome: str) -> None:
        try:
            self._archive.decide(look.decision(outcome, datetime.now(UTC)))
        except ArchiveError as e:
            logger.warning("a decision was not stored: {}", e)
