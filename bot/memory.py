"""What the twin remembers of a scene: the newest exchanges that fit the window, read from the archive.

When the window overflows, the oldest half goes at once, so that the cost of re-reading is amortized. Where each window
begins is noted in the archive when it moves: a restart forgets nothing, `/memory clear` sets a mark.
"""

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from bot.archive import Archive
from bot.config import Settings
from bot.engine import Measure
from bot.errors import ArchiveError, EngineError
from bot.message import Message, Origin, Scene
from bot.persona import Persona
from bot.prompt import ChatFormat, Exchange, Piece, Renderer, exchanges, render, spoken_by, system_of
from bot.segments import STICKER, Sticker, market_face
from bot.shown import shown
from bot.stickers import Stickers, folder

MEMORY_KIND = "memory"
"""Scene-log kind of a `/memory clear` mark."""
WINDOW_KIND = "window"
"""Scene-log kind of where a persona's window begins, `window:<persona>`: the first message's id."""
_LEAST_HEARD = 32
"""Tokens that must be left for what was said (an eighth of a narrow window): beside less, a word or two is answered."""
_MESSAGES_PER_TURN = 6
_STEP_MESSAGES = 180
"""Messages that are redacted in one go: about a millisecond."""
_STICKERS_SEEN = 20
"""Messages looked through for a market face: its name may have been typed, too."""


@dataclass(frozen=True, slots=True)
class Window:
    """What one look at a scene sees.

    Args:
        exchanges: oldest first; the last one is to be decided if nothing was said in it.
        before: the same and what no longer fits, as far as it was read.
        pieces: the prompt up to the open assistant header.
        tokens: of the prompt.
        quoted: finds a quoted message.
        last_spoke: when the person or twin last spoke there, or None.
        ours: whether a message stands on the assistant's side.
        speakers: names of the scene's recent messages and the ids bearing each.
        sticker: finds the stickers and market faces the person used.
    """

    exchanges: Sequence[Exchange]
    before: Sequence[Exchange]
    pieces: Sequence[Piece]
    tokens: int
    quoted: Callable[[Message], Message | None]
    last_spoke: datetime | None
    ours: Callable[[Message], bool]
    speakers: dict[str, set[str]]
    sticker: Sticker


class Memory:
    """Windows over the archive.

    Args:
        archive: the message store.
        settings: gaps, caps and the time zone.
        stickers: the library; None: as it lies there now.
    """

    def __init__(self, archive: Archive, settings: Settings, stickers: Stickers | None = None) -> None:
        self._archive = archive
        self._settings = settings
        self._stickers = stickers or Stickers(folder(settings), settings.stickers)
        self._starts: dict[tuple[Scene, str], str] = {}

    def window(
        self, scene: Scene, persona: Persona, format: ChatFormat, measure: Measure,  # noqa: A002
        opening: Exchange | None = None,
    ) -> Window:  # fmt: skip
        """The window of a scene for a persona, as it stands now: `steps`, all at once."""
        steps = self.steps(scene, persona, format, measure, opening)
        while True:
            try:
                next(steps)
            except StopIteration as made:
                window: Window = made.value
                return window

    def steps(
        self, scene: Scene, persona: Persona, format: ChatFormat, measure: Measure,  # noqa: A002
        opening: Exchange | None = None,
    ) -> Generator[None, None, Window]:  # fmt: skip
        """The window of a scene for a persona, as it stood at the first of a few steps of a millisecond or two each.

        Args:
            scene: where.
            persona: whose side is the assistant's.
            format: chat format of its version.
            measure: of the model it answers with.
            opening: what the persona is to answer by speaking first, in place of what was said last.
        """
        rules = self._settings.conversation
        cleared = self._archive.latest(scene, MEMORY_KIND)
        limit = rules.max_turns * _MESSAGES_PER_TURN
        of = STICKER if self._stickers.names else None
        stored = self._archive.window(scene, limit, cleared[1] if cleared else None, segments_of=of)
        messages: list[Message] = []
        for begin in range(0, len(stored), _STEP_MESSAGES):
            yield
            messages += self._shown(stored[begin : begin + _STEP_MESSAGES])
        yield
        people = frozenset(persona.spec.people)
        found = exchanges(messages, people, rules)
        if len(stored) == limit:
            del found[:1]  # cut in the middle: it would read differently at the next look
        renderer = Renderer(format, self._system(scene, persona, messages), self._settings.zone, not scene.private)
        quoted = self._quotes(scene, messages)
        yield
        kept = self._fit(scene, persona, renderer, found, quoted, measure) if found else []
        yield
        if opening is not None:
            kept = [*kept, opening]
        spoken = [m.time for m in messages if spoken_by(m, people)]
        speakers: dict[str, set[str]] = {}
        for m in messages:
            # In a private chat QQ drops an at, and with it the words.
            if not scene.private and not spoken_by(m, people) and m.sender_name:
                speakers.setdefault(m.sender_name, set()).add(m.sender_id)
        pieces = render(renderer, kept, quoted)
        return Window(
            kept, found, pieces, measure.count(pieces), quoted, spoken[-1] if spoken else None,
            lambda m: spoken_by(m, people), speakers, lambda name: self._sticker(name, people),
        )  # fmt: skip

    def _shown(self, stored: Sequence[Message]) -> list[Message]:
        return list(shown(stored, self._settings.corpus, self._stickers.names))

    def clear(self, scene: Scene, now: datetime) -> None:
        """Forget what was said in a scene until now (the archive keeps it)."""
        self._archive.note(scene, MEMORY_KIND, "clear", now)

    def forget(self, scene: Scene) -> None:
        """Keep nothing of a scene in memory; what the archive still has is read anew."""
        for place in [place for place in self._starts if place[0] == scene]:
            del self._starts[place]

    def _sticker(self, name: str, people: frozenset[str]) -> dict[str, Any] | None:
        """The sticker of that name, else the market face as the person sent it last; None if they did not."""
        if (kept := self._stickers.segment(name, people)) is not None:
            return kept
        with contextlib.suppress(ArchiveError):
            for message in self._archive.containing(name, people, _STICKERS_SEEN):
                if found := market_face(message.segments, name):
                    return found
        return None

    def _system(self, scene: Scene, persona: Persona, messages: Sequence[Message]) -> str:
        if scene.private:
            theirs = [m.sender_name for m in messages if m.sender_id == scene.id and m.sender_name]
        else:
            theirs = [m.scene_name for m in messages if m.scene_name]
        return system_of(persona.system_prompt, scene, theirs[-1] if theirs else "")

    def _quotes(self, scene: Scene, messages: Sequence[Message]) -> Callable[[Message], Message | None]:
        by_id = {m.id: m for m in messages}

        def quoted(message: Message) -> Message | None:
            if message.reply_to is None:
                return None
            if message.reply_to not in by_id and (stored := self._archive.get(scene, message.reply_to)):
                visible = not stored.recalled and stored.origin is not Origin.SYSTEM
                by_id.update({m.id: m for m in self._shown([stored] if visible else [])})
            return by_id.get(message.reply_to)

        return quoted

    def _fit(
        self,
        scene: Scene,
        persona: Persona,
        renderer: Renderer,
        found: list[Exchange],
        quoted: Callable[[Message], Message | None],
        measure: Measure,
    ) -> list[Exchange]:
        """The exchanges that fit, from the scene's remembered start; moves the start when they no longer do."""
        start_id = self._start_of(scene, persona.name)
        start = next((i for i, e in enumerate(found) if e.first.id == start_id), 0)
        kept = found[start:]
        budget = prompt_budget(persona, measure.n_ctx)

        def cost(e: Exchange) -> int:
            return measure.count([*renderer.heard(e, quoted, first=False), *renderer.said(e, trained=False)])

        costs = [cost(e) for e in kept]
        fixed = measure.count(renderer.opening()) + 2
        require_room(persona, measure.n_ctx, fixed)
        if fixed + sum(costs) > budget or len(kept) > self._settings.conversation.max_turns:
            room, turns = (budget - fixed) // 2, max(1, self._settings.conversation.max_turns // 2)
            n = _newest(costs, room, turns)
            kept = kept[len(kept) - n :]
            self._begin_at(scene, persona.name, kept[0].first)
            if costs[-1] > budget - fixed:
                kept = [shortened(kept[-1], cost, budget - fixed)]
        return kept

    def _begin_at(self, scene: Scene, persona: str, message: Message) -> None:
        if self._starts.get((scene, persona)) == message.id:
            return
        self._starts[(scene, persona)] = message.id
        with contextlib.suppress(ArchiveError):  # only a restart would miss it
            self._archive.note(scene, f"{WINDOW_KIND}:{persona}", message.id, datetime.now(UTC))

    def _start_of(self, scene: Scene, persona: str) -> str:
        """Id of the message a persona's window begins with; empty where it never overflowed."""
        if (scene, persona) not in self._starts:
            noted = self._archive.latest(scene, f"{WINDOW_KIND}:{persona}")
            self._starts[(scene, persona)] = noted[0] if noted else ""
        return self._starts[(scene, persona)]


def prompt_budget(persona: Persona, n_ctx: int) -> int:
    """Tokens of a prompt at most: what the context holds beside the reply, and no more than was trained."""
    budget = n_ctx - min(persona.spec.sampling.max_tokens, n_ctx // 4)
    trained = persona.version.window_tokens if persona.version else None
    return min(budget, trained or budget)


def beginning_most(persona: Persona, n_ctx: int) -> int:
    """Tokens of a prompt's beginning at most: the system prompt, with what surrounds it; the rest is to be heard."""
    budget = prompt_budget(persona, n_ctx)
    return budget - min(_LEAST_HEARD, budget // 8)


def require_room(persona: Persona, n_ctx: int, fixed: int) -> None:
    """That a prompt's beginning leaves something to be heard.

    Args:
        persona: whose prompt.
        n_ctx: tokens of the context.
        fixed: tokens of the beginning: the system prompt, with what surrounds it.

    Raises:
        EngineError: it leaves too little; says what to shorten or to enlarge.
    """
    if fixed <= beginning_most(persona, n_ctx):
        return
    budget = prompt_budget(persona, n_ctx)
    trained = persona.version.window_tokens if persona.version else None
    by_version = trained is not None and trained <= budget
    larger = (
        f"train a version on longer windows ([training] model_max_length; {trained} in this one)"
        if by_version
        else f"set [engine] n_ctx larger ({n_ctx} now)"
    )
    raise EngineError(
        f"the system prompt of {persona.name!r} takes {fixed} tokens of the {budget} a prompt may have, and what was "
        f"said does not fit beside it: shorten persona.toml, or {larger}"
    )


def shortened(exchange: Exchange, cost: Callable[[Exchange], int], room: int) -> Exchange:
    """A burst longer than a whole window: its oldest bubbles go, then the beginning of the last one."""
    heard = list(exchange.heard)
    while len(heard) > 1 and cost(replace(exchange, heard=heard)) > room:
        heard.pop(0)
    while heard and cost(replace(exchange, heard=heard)) > room and len(heard[0].text) > 1:
        heard[0] = replace(heard[0], text=heard[0].text[len(heard[0].text) // 2 :])
    return replace(exchange, heard=heard)


def _newest(costs: Sequence[int], room: int, turns: int) -> int:
    """How many of the newest entries fit into `room`, at least one and at most `turns`."""
    n = used = 0
    for cost in reversed(costs):
        if n >= turns or (n and used + cost > room):
            break
        used += cost
        n += 1
    return n
