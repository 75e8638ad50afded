"""decide → generate → bubbles, and why: one look at a scene."""

import asyncio
import json
import re
import time
import unicodedata
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from bot import cq
from bot.archive import Decision
from bot.config import Settings
from bot.decision import Moment, Verdict, decide, local_hour, loop_shift, moment_of
from bot.engine import ReplyEngine, Request, Voice
from bot.errors import PersonaError
from bot.events import POKE_ID
from bot.memory import Memory, Window
from bot.message import Message, Scene, as_told
from bot.persona import Persona
from bot.prompt import FORMATS, Exchange
from bot.segments import Sticker, is_seen, to_segments

REPEATS_LEAST = 0.005
"""Of so many bubbles behind another one, one that repeats it is a habit; a small model loops oftener than that."""
_POKE = {"type": "poke", "data": {}}
_TEMPLATE = re.compile(r"<\|\w{2,40}\|>|<(?:start|end)_of_turn>|</?think>|</s>|<(?:bos|eos)>|\[/?INST\]")
"""A token of a chat format, spelled out: what follows is the model's idea of other people's turns."""
_PAUSE = 3
"""Times as long as a step of a look took the event loop is others' before the next: their messages come meanwhile."""
_INVISIBLE = re.compile("[\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069]")
"""Characters of no width, and those that turn what is written around; U+200D joins emoji, and stays."""
_TEXT_MAX = 500
"""Characters of one bubble at most; longer ones are cut there."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a scene found.

    Args:
        scene: where.
        persona: who looked.
        account: from which of the bot's QQ numbers the answer goes.
        exchange: the burst decided on, and earlier ones that were left undecided.
        verdict: whether to speak, and why.
        to: the message the answer is to: the last that mentions the persona or quotes it, else the last one heard;
            None where the persona speaks first.
        request: what the engine was asked, to go on from.
        tokens: of its prompt.
        speakers: recent names, for `@昵称` in the answer.
        sticker: finds the market faces the person used.
        opening: what made it speak first: `own` rate or `schedule`; empty for an answer.
        took_ms: milliseconds until the decision (`look`) and from there to the first bubble (`words`).
    """

    scene: Scene
    persona: Persona
    account: str
    exchange: Exchange
    verdict: Verdict
    moment: Moment
    to: Message | None
    request: Request
    tokens: int
    speakers: dict[str, set[str]]
    sticker: Sticker
    took_ms: dict[str, int] = field(default_factory=dict)
    opening: str = ""

    def quotes(self, newest: str) -> str | None:
        """Id of the message the answer has to quote, since others' words stand between them; None: it stands next.

        Args:
            newest: id of the last message heard in the scene; empty where it was taken back.
        """
        heard = self.exchange.heard
        if self.to is None or self.to.id.startswith(POKE_ID):  # a poke has no id that QQ knows
            return None
        between = heard[heard.index(self.to) + 1 :]
        to, newest = as_told(self.to.id), as_told(newest)
        follows = newest in ("", as_told(heard[-1].id)) and all(m.sender_id == self.to.sender_id for m in between)
        return None if follows or newest == to else to

    def segments(self, bubble: str) -> list[dict[str, Any]]:
        """What is sent for a bubble; empty when nothing of it can be.

        A poke that tells of nobody is at whom the answer is to, and left out where it is to nobody.
        """
        whom = self.to.sender_id if self.to else self.scene.id if self.scene.private else None
        made = to_segments(bubble, self.speakers, self.sticker)
        at_whom = [s | {"data": {"id": whom}} if s == _POKE else s for s in made]
        return [s for s in at_whom if s["type"] != "poke" or s["data"]["id"]]

    def decision(self, outcome: str, now: datetime) -> Decision:
        """What is stored beside the messages: numbers, never text."""
        v, m = self.verdict, self.moment
        why: dict[str, Any] = {
            "p_silent": m.p_silent, "p_speak": v.p_speak, "draw": v.draw, "terms": v.terms, "burst": m.burst,
            "mentioned": m.mentioned, "quoted": m.quoted, "named": m.named,
            "tokens": self.tokens, "took_ms": self.took_ms,
        }  # fmt: skip
        why |= {"opening": self.opening} if self.opening else {}
        version = self.persona.version.name if self.persona.version else None
        of = self.exchange.heard[-1].id if self.exchange.heard else ""
        return Decision(self.scene, of, now, self.persona.name, version, outcome, why)


class Replier:
    """Looks at scenes.

    Args:
        settings: `[chat]` shifts and caps.
        memory: windows.
        engine: the model.
    """

    def __init__(self, settings: Settings, memory: Memory, engine: ReplyEngine) -> None:
        self._settings = settings
        self._memory = memory
        self._engine = engine
        self._reading, self._free_at = asyncio.Lock(), 0.0

    async def look(
        self, scene: Scene, persona: Persona, account: str, draw_of: Callable[[str], float], bias: float = 0.0,
        undecided: Collection[str] = (),
    ) -> Look | None:  # fmt: skip
        """Decide whether to speak now; None when there is nothing to decide (the last word was ours).

        Args:
            scene: where.
            persona: who answers there.
            account: the bot's own QQ number; mentioning it means the persona.
            draw_of: first message id of a turn → uniform in [0, 1), the same at every re-decision of the turn.
            bias: log-odds added to speaking in this scene.
            undecided: ids of messages that no finished decision has seen.

        Raises:
            EngineError: the model cannot be evaluated.
            PersonaError: it was trained, and no version of it verifies; the bare base does not speak in its name.
        """
        _verified(persona)
        started = time.monotonic()
        voice = self.voice(persona)
        window = await self._window(scene, persona, voice)
        if not window.exchanges or window.exchanges[-1].said or not window.exchanges[-1].heard:
            return None
        turn = grown(window.exchanges, undecided)
        draw = draw_of(turn.first.id)
        seed = int(draw * 2**32)
        request = Request(f"{scene}|{persona.name}", voice, window.pieces, persona.spec.sampling, seed)
        p_silent = await self._engine.p_silent(request) if persona.version else None
        moment = self._moment(turn, window, persona, account, p_silent)
        calibration = persona.version.calibration if persona.version else None
        shifts = self.shifts(moment, persona) | {"scene": bias, "loop": loop_shift(window.before)}
        verdict = decide(moment, calibration, shifts, draw)
        to = asked(turn, {account, *persona.spec.people}, window)
        return Look(
            scene, persona, account, turn, verdict, moment, to, request, window.tokens,
            window.speakers, window.sticker, {"look": _ms_since(started)},
        )  # fmt: skip

    async def _window(self, scene: Scene, persona: Persona, voice: Voice, opening: Exchange | None = None) -> Window:
        """The scene's window; one at a time, and behind each of its steps a pause three times as long.

        It is some milliseconds of the event loop. Twenty scenes that look at once kept a message waiting for 450 ms.
        """
        measure = await self._engine.measure(voice)
        async with self._reading:
            steps = self._memory.steps(scene, persona, voice.format, measure, opening)
            while True:
                await asyncio.sleep(self._free_at - time.monotonic())
                began = time.monotonic()
                try:
                    next(steps)
                except StopIteration as made:
                    window: Window = made.value
                    return window
                finally:
                    ended = time.monotonic()
                    self._free_at = ended + _PAUSE * (ended - began)

    async def opening(
        self, scene: Scene, persona: Persona, account: str, draw: float, opening: Exchange, kind: str
    ) -> Look:
        """A look that speaks first, whatever the model thinks of it: whoever asks has decided.

        Args:
            scene: where.
            persona: who speaks.
            account: the bot's own QQ number.
            draw: uniform in [0, 1), for the words.
            opening: nothing heard, its moment, perhaps what it is about.
            kind: `own` or `schedule`.

        Raises:
            EngineError: the model cannot be evaluated.
            PersonaError: no version of it verifies.
        """
        _verified(persona)
        started = time.monotonic()
        voice = self.voice(persona)
        window = await self._window(scene, persona, voice, opening)
        request = Request(
            f"{scene}|{persona.name}", voice, window.pieces, persona.spec.sampling, int(draw * 2**32)
        )  # fmt: skip
        since, now = window.last_spoke, opening.opened
        assert now is not None
        moment = Moment(
            None, None if since is None else (now - since).total_seconds(), scene.private, False, False, False, 0,
            local_hour(now, self._settings.zone),
        )  # fmt: skip
        return Look(
            scene, persona, account, opening, Verdict(True, 1.0, draw), moment, None, request, window.tokens,
            window.speakers, window.sticker, {"look": _ms_since(started)}, kind,
        )  # fmt: skip

    def voice(self, persona: Persona) -> Voice:
        """What the engine needs to speak as a persona: its version's LoRA or merged model, or the bare base."""
        version = persona.version
        if version is None:
            return Voice(f"{persona.name}/base", None, self._engine.format)
        return Voice(f"{persona.name}/{version.name}", version.lora, FORMATS[version.manifest.format], version.model)

    async def bubbles(self, look: Look) -> AsyncGenerator[str, None]:
        """The answer's bubbles, tidied: none empty, at most `max_bubbles`, none sent twice in a row.

        One of which nothing can be sent (`[图片]`) is given, for who shows what was made, and counts for nothing.

        Where the person says things twice (在吗 在吗), the model has learned how often, and once more is let pass.

        Nor one that an earlier one only counts on from (`第3次`, `第4次`): so small models loop. A token of a chat
        format, spelled out, ends the answer.

        Raises:
            EngineError: the generation failed.
        """
        started = time.monotonic()
        async with aclosing(self.words(look.request, repeats=repeats(look.persona), sent_as=look.segments)) as bubbles:
            async for bubble in bubbles:
                look.took_ms.setdefault("words", _ms_since(started))
                yield bubble

    async def words(
        self, request: Request, *, repeats: bool, sent_as: Callable[[str], list[dict[str, Any]]] | None = None
    ) -> AsyncGenerator[str, None]:
        """The same for a request that no scene stands behind; raises EngineError.

        Args:
            request: for the engine.
            repeats: whether a bubble may be said twice.
            sent_as: bubble → its segments: what is left out of two bubbles tells them apart for nobody. Without it they
                are compared as text.
        """
        said: list[str] = []
        sent: list[str] = []
        async with aclosing(self._engine.bubbles(request)) as lines:
            async for line in lines:
                end = _TEMPLATE.search(line)
                bubble = tidy(line[: end.start()] if end else line)
                if within := _TEMPLATE.search(bubble):  # what was taken out had stood in the middle of it
                    end, bubble = within, tidy(bubble[: within.start()])
                if end and not bubble:
                    break
                shown = _shown(sent_as(bubble)) if sent_as and bubble else bubble
                if bubble and not shown:
                    yield bubble
                if not shown or (sent[-1:] == [shown] and not (repeats and shown not in sent[:-1])):
                    if end:
                        break
                    continue
                if uncounted(bubble) in map(uncounted, said) and uncounted(bubble) != bubble:
                    break
                said.append(bubble)
                sent.append(shown)
                yield bubble
                if end or len(said) >= self._settings.chat.max_bubbles:
                    break

    def _moment(self, turn: Exchange, window: Window, persona: Persona, account: str, p_silent: float | None) -> Moment:
        return moment_of(
            turn, last_spoke=window.last_spoke, ids={account, *persona.spec.people},
            names=persona.spec.names, quoted=window.quoted, ours=window.ours, zone=self._settings.zone,
            p_silent=p_silent,
        )  # fmt: skip

    def shifts(self, moment: Moment, persona: Persona) -> dict[str, float]:
        """The configured log-odds by name, as far as they hold at a moment."""
        chat = self._settings.chat
        return {
            "mention": chat.mention_shift if moment.mentioned else 0.0,
            "quote": chat.quote_shift if moment.quoted else 0.0,
            "name": chat.name_shift if moment.named else 0.0,
            "bias": persona.spec.reply.bias,
        }


def _verified(persona: Persona) -> None:
    if persona.version is None and persona.refused is not None:
        raise PersonaError(persona.refused)


def repeats(persona: Persona) -> bool:
    """Whether the person says a bubble twice in a row often enough for it to be theirs."""
    return persona.version is not None and persona.version.manifest.pacing.repeat_share >= REPEATS_LEAST


def _ms_since(started: float) -> int:
    return round((time.monotonic() - started) * 1000)


def grown(exchanges: Sequence[Exchange], undecided: Collection[str]) -> Exchange:
    """What is decided at the last of a scene's exchanges: its burst, and those before it that nothing was decided on.

    Whoever addressed the persona is not forgotten because others went on talking before the answer was out.

    Args:
        exchanges: oldest first; nothing was said in the last one.
        undecided: ids of messages that no finished decision has seen.
    """
    heard: list[Message] = []
    for exchange in reversed(exchanges):
        if exchange.said or not any(m.id in undecided for m in exchange.heard):
            break
        heard = exchange.heard + heard
    return replace(exchanges[-1], heard=heard or exchanges[-1].heard)


def asked(exchange: Exchange, ids: Collection[str], window: Window) -> Message:
    """The message of a burst that an answer is to: the last one that mentions or quotes the persona, else the last."""
    for message in reversed(exchange.heard):
        target = window.quoted(message)
        if any(i in ids for i in message.mentions) or (target is not None and window.ours(target)):
            return message
    return exchange.heard[-1]


def _shown(segments: list[dict[str, Any]]) -> str:
    """Segments as one string, equal for those that look the same; empty for none."""
    texts = [s | {"data": {"text": s["data"]["text"].strip()}} if s["type"] == "text" else s for s in segments]
    return json.dumps(texts, sort_keys=True) if texts else ""


def uncounted(bubble: str) -> str:
    """A bubble with every number alike; as it is where it holds nothing else, for people do count down."""
    without = re.sub(r"\d+", "0", bubble)
    return without if without.strip("0 ,.:，。：、") else bubble


def tidy(line: str) -> str:
    """A generated line as it may be sent: no control characters (a byte-fallback token can be an ESC), no long text.

    Nor characters of no width or ones that turn the writing around, nor CQ codes; nothing, where nothing of it is seen.

    Emoji that a server streamed in halves are put together; half of one is left out: it can be neither sent nor stored.
    """
    line = line.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
    line = "".join(c for c in _INVISIBLE.sub("", line) if unicodedata.category(c) != "Cc")
    line = cq.without(line).strip()[:_TEXT_MAX]
    return line if is_seen(line) else ""
