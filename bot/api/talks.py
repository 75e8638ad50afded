"""A program's list of messages → the prompt a persona answers, and whether it would answer at all.

What comes in is rendered as a QQ chat is (a group, where several names speak), by the same renderer. Nothing of it is
stored or learned, and nothing but a conversation's first moment is remembered: its header line says the time, and would
otherwise make every prompt a new one.
"""

import hashlib
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from bot.api.wire import ChatRequest, Turn
from bot.decision import decide, moment_of
from bot.engine import Request
from bot.errors import PersonaError, TooLong
from bot.memory import beginning_most, prompt_budget, require_room, shortened
from bot.message import Message, Origin, Scene
from bot.persona import Persona
from bot.prompt import Exchange, Piece, Renderer, render, system_of
from bot.reply import repeats
from bot.shown import as_shown
from bot.twin import Twin, now

_OPENINGS_MAX = 1024
_AGAIN_S = 120
"""The same first words within so many seconds are a retry, or another answer wanted; later they begin a new talk."""
_STEP = 8
"""Exchanges that leave a full window at a time: the prompt of the next request then still begins like this one."""


@dataclass(frozen=True, slots=True)
class Talk:
    """A request, understood.

    Args:
        request: for the engine.
        speaks: whether the person would say something.
        prompt_tokens: of the prompt.
        stops: texts that end the answer before them.
        repeats: whether a bubble may be said twice.
    """

    request: Request
    speaks: bool
    prompt_tokens: int
    stops: tuple[str, ...]
    repeats: bool


@dataclass(slots=True)
class Talks:
    """Understands requests.

    Args:
        twin: personas, engine, settings.
        clock: the time, aware.
    """

    twin: Twin
    clock: Callable[[], datetime] = now
    _openings: OrderedDict[str, tuple[datetime, datetime]] = field(default_factory=OrderedDict)
    """By key: when a talk began, and when it was last heard of."""

    async def understood(self, asked: ChatRequest) -> Talk:
        """What to answer, and whether.

        Raises:
            PersonaError: no such persona, or no version of it verifies.
            TooLong: the program's system prompt leaves no room for what was said.
            EngineError: the model cannot be evaluated.
        """
        persona = self.twin.load(asked.model)
        if persona.version is None and persona.refused is not None:
            raise PersonaError(persona.refused)
        sampling = persona.spec.sampling.model_copy(update=asked.sampling)
        persona = replace(persona, spec=persona.spec.model_copy(update={"sampling": sampling}))
        voice = self.twin.replier.voice(persona)
        measure = await self.twin.engine.measure(voice)
        key = _key(persona.name, asked.messages)
        names = list(dict.fromkeys(turn.name for turn in asked.messages if turn.role == "user" and turn.name))
        scene = Scene("group" if len(names) > 1 else "private", key)
        at = self.clock()
        opened = self._opening(key, at, answered=_answered(asked.messages))
        heard = self._exchanges(asked.messages, scene, opened, at)
        told = [turn.text for turn in asked.messages if turn.role in ("system", "developer") and turn.text]
        here = system_of(persona.system_prompt, scene, "" if len(names) > 1 else "".join(names))
        system = "\n".join([here, *told])
        renderer = Renderer(voice.format, system, self.twin.settings.zone, not scene.private)
        own = Renderer(voice.format, here, self.twin.settings.zone, not scene.private)
        fixed, ours = (measure.count(each.opening()) + 2 for each in (renderer, own))
        _require_room(persona, measure.n_ctx, ours, fixed)
        kept = _fitting(heard, renderer, measure.count, prompt_budget(persona, measure.n_ctx))
        pieces = render(renderer, kept, _no_quote)
        rng = random.Random(asked.seed)
        request = Request(f"api|{persona.name}|{key}", voice, pieces, sampling, rng.getrandbits(32))
        speaks = not self.twin.settings.api.silences or await self._speaks(request, persona, kept, rng.random())
        return Talk(request, speaks, measure.count(pieces), asked.stops, repeats(persona))

    async def _speaks(self, request: Request, persona: Persona, history: Sequence[Exchange], draw: float) -> bool:
        settings, version = self.twin.settings, persona.version
        p_silent = await self.twin.engine.p_silent(request) if version else None
        last_spoke = history[-1].decided_at if any(e.said for e in history) else None
        moment = moment_of(
            history[-1], last_spoke=last_spoke, ids=(), names=persona.spec.names, quoted=_no_quote,
            ours=lambda message: message.origin is Origin.TWIN, zone=settings.zone, p_silent=p_silent,
        )  # fmt: skip
        return decide(
            moment, version.calibration if version else None, self.twin.replier.shifts(moment, persona), draw
        ).speaks

    def _opening(self, key: str, at: datetime, *, answered: bool) -> datetime:
        """When a talk began, as far as it goes on: with an answer in it, and no more than a conversation's gap idle.

        A request without one begins it, unless it comes again at once.
        """
        opened, seen = self._openings.pop(key, (at, at))
        idle = (at - seen).total_seconds() > self.twin.settings.conversation.conversation_gap_s
        if idle or (not answered and (at - opened).total_seconds() > _AGAIN_S):
            opened = at
        self._openings[key] = opened, at
        if len(self._openings) > _OPENINGS_MAX:
            self._openings.popitem(last=False)
        return opened

    def _exchanges(self, turns: Sequence[Turn], scene: Scene, opened: datetime, at: datetime) -> list[Exchange]:
        """Exchanges as the model sees them; an empty answer between two messages is a silence."""
        found = [Exchange(opened=opened)]
        answered = False
        for number, turn in enumerate(turns):
            if turn.role in ("system", "developer"):
                continue
            ours = turn.role == "assistant"
            texts = turn.text.splitlines() if ours else ["↵".join(turn.text.splitlines())]
            sender, origin = ("twin", Origin.TWIN) if ours else (f"user:{turn.name or ''}", Origin.HUMAN)
            if answered and not ours:
                found.append(Exchange())
            for i, text in enumerate(filter(str.strip, texts)):
                said = Message(f"{number}.{i}", scene, sender, turn.name or "", at, text, origin)
                (found[-1].said if ours else found[-1].heard).append(as_shown(said, self.twin.settings.corpus))
            answered = ours
        return found


def _key(persona: str, turns: Sequence[Turn]) -> str:
    """Names a conversation: whose it is, what it was told, and its first words."""
    told = [turn.text for turn in turns if turn.role in ("system", "developer")]
    first = next(turn.text for turn in turns if turn.role == "user")
    return hashlib.sha256("\0".join([persona, *told, first]).encode()).hexdigest()[:16]


def _answered(turns: Sequence[Turn]) -> bool:
    """Whether an answer stands behind the first words; one before them is a greeting."""
    spoken = [turn.role for turn in turns if turn.role in ("user", "assistant")]
    return "assistant" in spoken[spoken.index("user") :]


def _require_room(persona: Persona, n_ctx: int, ours: int, fixed: int) -> None:
    """That both system prompts leave room for what was said: the persona's own (`ours` tokens), and with the program's.

    Raises:
        EngineError: the persona's own leaves none.
        TooLong: the program's leaves none.
    """
    require_room(persona, n_ctx, ours)
    if fixed > (most := beginning_most(persona, n_ctx)):
        budget = prompt_budget(persona, n_ctx)
        raise TooLong(
            f"the system messages take {fixed - ours} tokens where {most - ours} fit: of its window of {n_ctx} tokens "
            f"{persona.name!r} has {budget} for a prompt, of which its own beginning takes {ours} and what was said "
            f"must have {budget - most}; shorten the system prompt"
        )


def _fitting(
    history: list[Exchange], renderer: Renderer, count: Callable[[Sequence[Piece]], int], budget: int
) -> list[Exchange]:
    """The newest exchanges whose prompt is within `budget` tokens; the last one is cut where it alone is too long."""
    room = budget - count(renderer.opening()) - 2

    def cost(exchange: Exchange) -> int:
        return count([*renderer.heard(exchange, _no_quote, first=False), *renderer.said(exchange, trained=False)])

    costs = [cost(exchange) for exchange in history]
    start = 0
    while sum(costs[start:]) > room and start < len(history) - 1:
        start = min(start + _STEP, len(history) - 1)
    kept = history[start:]
    return kept if sum(costs[start:]) <= room else [shortened(kept[-1], cost, room)]


def _no_quote(_: Message) -> None:
    """Programs quote nothing."""
