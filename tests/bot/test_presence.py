"""bot/presence.py with a scripted engine and a transport that records: taking turns like a person."""

import asyncio
import base64
import math
import random
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from chats import ACCOUNT, FRIEND, GROUP, ME, OTHER, PRIVATE

from bot.archive import Archive
from bot.config import Chat, OneBot, Paths, PerScene, Settings
from bot.config import Stickers as StickerRules
from bot.engine import Measure, Request, Voice
from bot.errors import EngineError, SendError, SendFailure
from bot.memory import Memory
from bot.message import Message, Origin, Scene
from bot.persona import Base, Manifest, Pacing, Persona, ReplyPolicy, Spec, Version
from bot.presence import Presence
from bot.prompt import FORMATS
from bot.reply import Replier
from bot.stickers import Stickers

DEBOUNCE_S = 0.05
OWNER = Scene("private", ME)


class Script:
    """A reply engine that says what it is told, and remembers what it was asked."""

    base_sha256, format = "b" * 64, FORMATS["gemma"]

    def __init__(self) -> None:
        self.lines: list[str] = ["好呀"]
        self.asked: list[Request] = []
        self.closed = 0
        self.before_line: Callable[[int], Any] | None = None

    async def measure(self, voice: Voice) -> Measure:
        return Measure(2048, lambda pieces: sum(len(p.text) for p in pieces))

    async def p_silent(self, request: Request) -> float:
        return 0.01

    async def bubbles(self, request: Request) -> AsyncGenerator[str, None]:
        self.asked.append(request)
        try:
            for number, line in enumerate(self.lines):
                if self.before_line is not None:
                    await self.before_line(number)
                yield line
        finally:
            self.closed += 1

    async def close(self) -> None: ...

    def heard(self, n: int = -1) -> str:
        """The last user turn of what it was asked."""
        text = "".join(p.text for p in self.asked[n].pieces)
        return text.rsplit("<start_of_turn>user\n", 1)[1].split("<end_of_turn>")[0]

    def lines_heard(self, n: int) -> list[str]:
        """The bubbles of that turn."""
        return [line for line in self.heard(n).split("\n") if line.startswith("阿强：")]


class Wire:
    """A transport that records, and fails as it is told."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Scene, str]] = []
        self.quotes: list[str | None] = []
        self.segments: list[list[dict[str, Any]]] = []
        self.shown: list[tuple[str, Scene, str | None]] = []
        self.tried = 0
        self.failures: list[SendFailure] = []
        self.gate: asyncio.Event | None = None

    async def seen(self, account: str, scene: Scene, message_id: str) -> None:
        self.shown.append((account, scene, message_id))

    async def typing(self, account: str, scene: Scene) -> None:
        self.shown.append((account, scene, None))

    async def send(self, account: str, scene: Scene, segments: list[dict[str, Any]]) -> str:
        self.tried += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.failures:
            raise SendError(self.failures.pop(0), "told to")
        text = "".join(s["data"].get("text", "") for s in segments)
        self.sent.append((account, scene, text))
        self.segments.append(segments)
        self.quotes.append(segments[0]["data"]["id"] if segments[0]["type"] == "reply" else None)
        return f"sent-{len(self.sent)}"


class Draws(random.Random):
    """Random numbers 0.001, 0.002, …: every draw can be told apart, and all of them speak."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def random(self) -> float:
        self.count += 1
        return self.count / 1000


class Stage:
    """A presence with its parts, and a clock for messages."""

    def __init__(self, archive: Archive, **chat: Any) -> None:
        values = {"debounce_s": DEBOUNCE_S, "delay_scale": 0.0, "account_gap_s": 0.0, "scenes": (str(GROUP),)} | chat
        self.settings = Settings(chat=Chat(**values), onebot=OneBot(superusers=(ME,)))
        self.archive, self.engine, self.wire, self.draws = archive, Script(), Wire(), Draws()
        self.told: list[str] = []
        self.skew = timedelta()
        self.persona = Persona("xiaoman", Path(), Spec(display_name="小满", reply=ReplyPolicy(bias=50)), None)
        self._seq = 0
        self.restart()

    def restart(self) -> None:
        memory = Memory(self.archive, self.settings)
        replier = Replier(self.settings, memory, self.engine)
        self.presence = Presence(
            self.settings, self.archive, replier, lambda _: self.persona, self.wire, self._tell, self.draws
        )

    async def _tell(self, text: str) -> None:
        self.told.append(text)

    def hear(
        self, text: str, scene: Scene = GROUP, sender: str = FRIEND, age_s: float = 0.0, **changed: Any
    ) -> Message:
        """A message arrives: stored, then told to the presence, as the recorder and the listener do."""
        self._seq += 1
        time = datetime.now(UTC) + self.skew - timedelta(seconds=age_s)
        message = Message(f"m{self._seq}", scene, sender, "阿强", time, text, **changed)
        self.archive.append([message])
        if sender == ACCOUNT:
            self.presence.own_words(message)
        else:
            self.presence.heard(message, ACCOUNT)
        return message

    @property
    def said(self) -> list[str]:
        return [text for _, _, text in self.wire.sent]

    def outcomes(self, scene: Scene = GROUP) -> list[str]:
        return [d.outcome for d in reversed(self.archive.decisions(scene, 20))]

    async def quiet(self, wait_s: float = 5.0) -> None:
        """Until no scene has anything going on."""
        async with asyncio.timeout(wait_s):
            turns, begun = self.presence._turns.values(), self.presence._background
            while begun or any(t.task and not t.task.done() for t in turns):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def until(condition: Callable[[], bool], wait_s: float = 5.0) -> None:
    async with asyncio.timeout(wait_s):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[Archive]:
    opened = Archive(f"sqlite:///{tmp_path / 'archive.db'}")
    yield opened
    opened.close()


@pytest.fixture
async def stage(archive: Archive) -> AsyncIterator[Stage]:
    made = Stage(archive)
    yield made
    await made.presence.close()


# -- taking turns ---------------------------------------------------------------------------------


async def test_three_bubbles_get_one_answer_to_all_of_them(stage: Stage) -> None:
    for text in ("在吗", "出来玩", "快"):
        stage.hear(text)
        await asyncio.sleep(DEBOUNCE_S / 5)
    await stage.quiet()
    assert stage.said == ["好呀"]
    assert stage.engine.heard().endswith("阿强：在吗\n阿强：出来玩\n阿强：快")
    assert stage.outcomes() == ["spoke"]


async def test_every_bubble_is_sent_in_order_and_stored_as_the_twins(stage: Stage) -> None:
    stage.engine.lines = ["好", "", "好", "走[微笑]", "  等我  "]
    stage.hear("出来玩")
    await stage.quiet()
    assert stage.said == ["好", "走", "等我"]
    assert {(account, scene) for account, scene, _ in stage.wire.sent} == {(ACCOUNT, GROUP)}
    window = stage.archive.window(GROUP, 10)
    assert [m.text for m in window] == ["出来玩", "好", "走[微笑]", "等我"]
    assert {m.origin for m in window[1:]} == {Origin.TWIN}
    assert all(m.time >= window[0].time for m in window[1:])
    assert window[1].id == "sent-1"


async def test_bubbles_that_only_count_on_end_the_answer(stage: Stage) -> None:
    stage.engine.lines = ["我睡了3次", "困", "我睡了4次", "我睡了5次"]
    stage.hear("嗨")
    await stage.quiet()
    assert stage.said == ["我睡了3次", "困"]


async def test_who_says_things_twice_may_and_no_more_than_twice(stage: Stage) -> None:
    stage.engine.lines = ["在吗", "在吗", "在吗", "好", "在吗"]
    manifest = Manifest(
        version="1", created="2026-01-01T00:00:00+00:00", base=Base(file="b", sha256="0", architecture="gemma3"),
        format="gemma", system_prompt="", files={}, pacing=Pacing(repeat_share=0.01),
    )  # fmt: skip
    stage.persona = replace(stage.persona, version=Version(Path(), manifest))
    stage.hear("嗨")
    await stage.quiet()
    assert stage.said == ["在吗", "在吗", "好", "在吗"]


async def test_a_market_face_the_person_used_is_sent_as_they_sent_it(stage: Stage) -> None:
    face = {"emoji_id": "ab", "emoji_package_id": 7, "key": "k", "summary": "[猫猫摇头]"}
    stage.persona = replace(stage.persona, spec=stage.persona.spec.model_copy(update={"people": (ME,)}))
    own = Message(
        "f1", PRIVATE, ME, "小满", datetime.now(UTC), "[猫猫摇头]", segments=({"type": "mface", "data": face},)
    )
    stage.archive.append([own])
    sent: list[dict[str, Any]] = []
    send = stage.wire.send

    async def keep(account: str, scene: Scene, segments: list[dict[str, Any]]) -> str:
        sent.extend(segments)
        return await send(account, scene, segments)

    stage.wire.send = keep  # type: ignore[method-assign]
    stage.engine.lines = ["[猫猫摇头]", "[动画表情]"]
    stage.hear("嗨")
    await stage.quiet()
    assert sent == [{"type": "mface", "data": face | {"emoji_package_id": "7"}}]


async def test_a_sticker_of_the_library_is_sent_with_its_file_and_stored_without(
    archive: Archive, tmp_path: Path
) -> None:
    content, md5 = b"GIF89a" + b"x" * 1000, "a" * 32
    library = Stickers(tmp_path / "stickers", StickerRules(enabled=True))
    library.add(content, md5, "[贴贴]", ME, datetime.now(UTC))
    stage = Stage(archive)
    stage.settings = stage.settings.model_copy(
        update={"stickers": StickerRules(enabled=True), "paths": Paths(data=tmp_path)}
    )
    stage.restart()
    stage.persona = replace(stage.persona, spec=stage.persona.spec.model_copy(update={"people": (ME,)}))
    stage.engine.lines = ["来[动画表情:贴贴]", "[动画表情:没有的]", "[动画表情]", "[骰子]"]
    stage.hear("嗨")
    await stage.quiet()
    (first, dice) = stage.wire.segments
    assert [s["type"] for s in first] == ["text", "image"]
    assert base64.b64decode(first[1]["data"]["file"].removeprefix("base64://")) == content
    assert dice == [{"type": "dice", "data": {}}]
    stored = archive.window(GROUP, 10)[1]
    assert stored.text == "来[动画表情:贴贴]"
    assert "base64" not in str(stored.segments)


async def test_answers_and_bubbles_come_at_the_persons_own_pace(archive: Archive) -> None:
    stage = Stage(archive, delay_scale=1.0)
    manifest = Manifest(
        version="1", created="2026-01-01T00:00:00+00:00", base=Base(file="b", sha256="0", architecture="gemma3"),
        format="gemma", system_prompt="", files={},
        pacing=Pacing(group_delay_s=(0.7,) * 11, private_delay_s=(0.2,) * 11, bubble_gap_s=(0.4,) * 11),
    )  # fmt: skip
    stage.persona = replace(stage.persona, version=Version(Path(), manifest))
    stage.engine.lines = ["一", "二"]
    times: list[float] = []
    send = stage.wire.send

    async def note(account: str, scene: Scene, segments: list[dict[str, Any]]) -> str:
        times.append(time.monotonic())
        return await send(account, scene, segments)

    stage.wire.send = note  # type: ignore[method-assign]
    began = time.monotonic()
    stage.hear("嗨")
    await stage.quiet()
    assert stage.said == ["一", "二"]
    assert 0.68 <= times[0] - began < 2, "the delay learned in groups, what was spent on looking taken off"
    assert 0.38 <= times[1] - times[0] < 2


async def test_no_more_bubbles_than_allowed(archive: Archive) -> None:
    stage = Stage(archive, max_bubbles=2)
    stage.engine.lines = list("一二三四")
    stage.hear("嗨")
    await stage.quiet()
    assert stage.said == ["一", "二"]
    assert stage.engine.closed == 1


async def test_newer_words_are_decided_anew_with_the_same_draw_at_most_twice(archive: Archive) -> None:
    stage = Stage(archive, debounce_s=0.03)
    ready, go = asyncio.Event(), asyncio.Event()

    async def hold(number: int) -> None:
        ready.set()
        await go.wait()

    stage.engine.before_line = hold
    for number, text in enumerate(("一", "二", "三", "四")):
        ready.clear()
        stage.hear(text)
        if number < 3:
            await asyncio.wait_for(ready.wait(), 5)
    await asyncio.sleep(0.15)
    assert [stage.engine.lines_heard(n) for n in range(len(stage.engine.asked))] == [
        ["阿强：一"], ["阿强：一", "阿强：二"], ["阿强：一", "阿强：二", "阿强：三"],
    ]  # fmt: skip
    assert len({r.seed for r in stage.engine.asked}) == 1
    assert stage.draws.count == 1
    go.set()
    await stage.quiet()
    # The fourth did not cancel; the answer to the first three was given.
    assert stage.outcomes()[:3] == ["cancelled", "cancelled", "spoke"]
    assert stage.said[0] == "好呀"


async def test_words_arriving_between_two_bubbles_do_not_cut_the_answer(stage: Stage) -> None:
    stage.engine.lines = ["一", "二"]

    async def interrupt(number: int) -> None:
        if number == 1 and len(stage.engine.asked) == 1:
            await until(lambda: len(stage.wire.sent) == 1)
            stage.hear("等等")

    stage.engine.before_line = interrupt
    stage.hear("嗨")
    await stage.quiet()
    assert stage.said[:2] == ["一", "二"], "what was begun is finished"
    assert len(stage.engine.asked) == 2
    assert stage.engine.lines_heard(1) == ["阿强：等等"], "what came in between is decided after it"


async def test_words_arriving_after_the_last_bubble_was_sent_are_answered(stage: Stage) -> None:
    async def interrupt(number: int) -> None:
        if number == 1 and len(stage.engine.asked) == 1:
            await until(lambda: len(stage.wire.sent) == 1)
            stage.hear("等等")

    stage.engine.lines = ["一", "\u3000"]
    stage.engine.before_line = interrupt
    stage.hear("嗨")
    await stage.quiet()
    assert len(stage.engine.asked) == 2
    assert stage.engine.heard().endswith("等等")
    assert stage.said == ["一", "一"]


async def test_after_such_another_look_newer_words_still_cancel(stage: Stage) -> None:
    waiting, go = asyncio.Event(), asyncio.Event()

    async def script(number: int) -> None:
        if len(stage.engine.asked) == 1 and number == 1:
            await until(lambda: len(stage.wire.sent) == 1)
            stage.hear("等等")
        if len(stage.engine.asked) == 2:
            waiting.set()
            await go.wait()

    stage.engine.lines = ["一", "\u3000"]
    stage.engine.before_line = script
    stage.hear("嗨")
    await asyncio.wait_for(waiting.wait(), 5)
    stage.hear("再等等")
    await until(lambda: len(stage.engine.asked) == 3)
    assert stage.engine.heard().endswith("等等\n阿强：再等等")
    go.set()
    await stage.quiet()
    assert "cancelled" in stage.outcomes()


async def test_a_clock_ahead_of_qqs_does_not_swallow_the_next_question(stage: Stage) -> None:
    stage.skew = timedelta(seconds=-60)
    stage.hear("嗨")
    await stage.quiet()
    stage.hear("在吗")
    await stage.quiet()
    assert len(stage.said) == 2
    assert [m.text for m in stage.archive.window(GROUP, 10)] == ["嗨", "好呀", "在吗", "好呀"]


# -- silence --------------------------------------------------------------------------------------


async def test_a_decision_to_be_silent_sends_nothing_and_is_explained(stage: Stage) -> None:
    stage.persona = replace(stage.persona, spec=Spec(display_name="小满", reply=ReplyPolicy(bias=-50)))
    stage.hear("嗨")
    await stage.quiet()
    assert (stage.said, stage.engine.asked) == ([], [])
    (decision,) = stage.archive.decisions(GROUP)
    assert decision.outcome == "silent"
    assert decision.why["terms"]["shift:bias"] == -50
    assert "嗨" not in str(decision.why)


async def test_an_answer_without_words_is_recorded_as_empty(stage: Stage) -> None:
    stage.engine.lines = []
    stage.hear("嗨")
    await stage.quiet()
    assert (stage.wire.tried, stage.outcomes()) == (0, ["empty"])


async def test_a_scene_that_is_off_stays_quiet(stage: Stage) -> None:
    stage.hear("嗨", PRIVATE)
    stage.presence.switch(GROUP, False, datetime.now(UTC))
    stage.hear("嗨")
    await asyncio.sleep(DEBOUNCE_S * 3)
    assert (stage.said, stage.outcomes(), stage.outcomes(PRIVATE)) == ([], [], [])
    stage.presence.switch(PRIVATE, True, datetime.now(UTC))
    stage.hear("在吗", PRIVATE)
    await stage.quiet()
    assert stage.said == ["好呀"]


async def test_switching_off_drops_what_is_prepared(stage: Stage) -> None:
    stage.hear("嗨")
    stage.presence.switch(GROUP, False, datetime.now(UTC))
    await asyncio.sleep(DEBOUNCE_S * 3)
    assert (stage.said, stage.engine.asked) == ([], [])


async def test_the_owners_private_chat_is_on_by_default_and_that_is_written_down(stage: Stage) -> None:
    assert stage.archive.latest(OWNER, "state") is None
    stage.hear("嗨", OWNER, sender=ME)
    await stage.quiet()
    assert stage.said == ["好呀"]
    noted = stage.archive.latest(OWNER, "state")
    assert noted is not None
    assert noted[0] == "default"
    assert not stage.presence.scenes.is_on(PRIVATE)
    assert stage.archive.latest(PRIVATE, "state") is None


async def test_a_scene_that_is_no_longer_answered_by_default_is_off(archive: Archive) -> None:
    assert Stage(archive).presence.scenes.is_on(GROUP)
    later = Stage(archive, scenes=())
    assert not later.presence.scenes.is_on(GROUP)
    assert not later.presence.scenes.is_on(GROUP)
    assert [value for _, value in archive.timeline(GROUP, "state")] == ["default", "off"]
    later.presence.switch(GROUP, True, datetime.now(UTC))
    assert Stage(archive, scenes=()).presence.scenes.is_on(GROUP), "what was said in the chat outlives bot.toml"


async def test_who_asked_is_poked(stage: Stage) -> None:
    stage.engine.lines = ["[戳一戳]"]
    sent: list[list[dict[str, Any]]] = []

    async def note(_: str, __: Scene, segments: list[dict[str, Any]]) -> str:
        sent.append(segments)
        return "poke-1"

    stage.wire.send = note  # type: ignore[method-assign]
    stage.hear("[戳一戳]", sender=OTHER, mentions=(ACCOUNT,))
    await stage.quiet()
    assert sent == [[{"type": "poke", "data": {"id": OTHER}}]]
    assert stage.archive.window(GROUP, 1)[0].text == "[戳一戳]"


async def test_what_was_looked_at_is_shown_as_read_answered_or_not(archive: Archive) -> None:
    stage = Stage(archive)
    stage.hear("在吗")
    await stage.quiet()
    stage.presence.scenes.type(GROUP, "bias", "-200", datetime.now(UTC))
    stage.hear("嗯", age_s=-1)
    await stage.quiet()
    assert stage.outcomes() == ["spoke", "silent"]
    assert stage.wire.shown == [(ACCOUNT, GROUP, "m1"), (ACCOUNT, GROUP, "m2")]
    unseen = Stage(archive, mark_as_read=False)
    unseen.hear("嗯", sender=OTHER)
    await unseen.quiet()
    assert unseen.wire.shown == []


async def test_typing_is_shown_in_private_before_every_bubble(archive: Archive) -> None:
    stage = Stage(archive, scenes=(str(PRIVATE),), delay_scale=0.1, mark_as_read=False)
    stage.engine.lines = ["一", "二"]
    stage.hear("在吗", PRIVATE)
    await stage.quiet()
    assert stage.said == ["一", "二"]
    assert stage.wire.shown == [(ACCOUNT, PRIVATE, None)] * 2


async def test_the_wait_for_more_words_is_the_speakers_own(archive: Archive) -> None:
    stage = Stage(archive, debounce_s=0.05, debounce_max_s=0.5)
    for n in range(8):
        when = datetime.now(UTC) - timedelta(seconds=60 - 4 * n)
        archive.append([Message(f"slow{n}", GROUP, OTHER, "阿珍", when, "嗯")])
    started = time.monotonic()
    stage.hear("在吗", sender=OTHER)
    await stage.quiet()
    slow = time.monotonic() - started
    started = time.monotonic()
    stage.hear("在吗", sender=OTHER, mentions=(ACCOUNT,))
    await stage.quiet()
    addressed = time.monotonic() - started
    assert slow > 0.5 > addressed + 0.1


async def test_two_programs_do_not_talk_each_other_into_a_loop(archive: Archive) -> None:
    stage = Stage(archive, scene_per_minute=1000, account_per_minute=1000)
    stage.persona = replace(stage.persona, spec=Spec(display_name="小满", reply=ReplyPolicy(bias=8)))
    while "silent" not in stage.outcomes() and len(stage.said) < 100:
        stage.hear("好的")
        await stage.quiet()
    assert 20 < len(stage.said) < 60, "it fell silent by itself, and not at once"
    terms = [d.why["terms"].get("shift:loop", 0.0) for d in reversed(archive.decisions(GROUP, 100))]
    assert terms[:15] == [*[0.0] * 13, -0.5, -1.0]


async def test_in_quiet_hours_nothing_is_said_and_why_is_kept(archive: Archive) -> None:
    stage = Stage(archive, quiet_hours="00:00-00:00")
    stage.hear("在吗")
    await stage.quiet()
    assert (stage.said, stage.outcomes()) == ([], ["quiet"])
    stage.presence.scenes.type(GROUP, "quiet", "", datetime.now(UTC))
    stage.hear("在吗")
    await stage.quiet()
    assert stage.said == ["好呀"], "what was typed there goes before bot.toml"


async def test_what_is_set_for_a_scene_in_bot_toml_holds_there_alone(archive: Archive) -> None:
    stage = Stage(archive, per_scene={str(GROUP): PerScene(persona="me", bias=-99.0, commands=False)})
    scenes = stage.presence.scenes
    assert [(scenes.persona(s), scenes.bias(s), scenes.commands(s)) for s in (GROUP, PRIVATE)] == [
        ("me", -99.0, False), ("xiaoman", 0.0, True),
    ]  # fmt: skip
    stage.hear("在吗")
    await stage.quiet()
    assert stage.outcomes() == ["silent"]
    (decision,) = archive.decisions(GROUP)
    assert decision.why["terms"]["shift:scene"] == -99.0
    stage.presence.scenes.type(GROUP, "bias", "1.5", datetime.now(UTC))
    assert Stage(archive).presence.scenes.bias(GROUP) == 1.5, "what was typed outlives a restart"


async def test_budgets_outlive_a_restart(archive: Archive) -> None:
    stage = Stage(archive, scene_per_hour=3, account_per_hour=4)
    stage.engine.lines = ["一", "二", "三"]
    stage.hear("在吗", age_s=20)
    await stage.quiet()
    assert len(stage.said) == 3
    archive.append(
        [
            Message("old", GROUP, ACCOUNT, "小满", datetime.now(UTC) - timedelta(hours=25), "早", Origin.TWIN),
            Message("typed", PRIVATE, FRIEND, "阿强", datetime.now(UTC), "/why", Origin.SYSTEM),
            Message("own", PRIVATE, ACCOUNT, "", datetime.now(UTC), "这里还没有做过决定。", Origin.SYSTEM),
        ]
    )
    again = Stage(archive, scene_per_hour=3, account_per_hour=5)
    again._seq = 10
    again.hear("还在吗", sender=OTHER)
    await again.quiet()
    assert again.outcomes()[-1] == "budget"
    assert [again.presence.budget.left(s, time.monotonic()) for s in (GROUP, PRIVATE)] == [0, 1]


async def test_answers_to_several_scenes_are_spread(archive: Archive) -> None:
    stage = Stage(archive, account_gap_s=0.3, scenes=tuple(f"group:{n}" for n in range(1, 4)))
    times: list[float] = []
    stage.engine.before_line = None
    send = stage.wire.send

    async def timed(*args: Any) -> str:
        times.append(time.monotonic())
        return await send(*args)

    stage.wire.send = timed  # type: ignore[method-assign]
    for n in range(1, 4):
        stage.hear("在吗", Scene("group", str(n)))
    await stage.quiet()
    assert len(times) == 3
    assert min(b - a for a, b in pairwise(times)) > 0.25


async def test_a_decision_says_what_it_took(stage: Stage) -> None:
    stage.hear("在吗")
    await stage.quiet()
    (decision,) = stage.archive.decisions(GROUP)
    assert set(decision.why["took_ms"]) == {"look", "words"}
    assert decision.why["tokens"] > 10
    twin_said = stage.archive.window(GROUP, 1)[0]
    assert stage.archive.decision_on(GROUP, twin_said.id) == decision
    assert stage.archive.decision_on(GROUP, decision.message_id) == decision
    assert stage.archive.decision_on(GROUP, "nobody") is None


async def test_a_stale_message_is_not_answered(stage: Stage) -> None:
    stage.hear("昨天说的", age_s=301)
    await asyncio.sleep(DEBOUNCE_S * 3)
    assert stage.engine.asked == []
    stage.hear("刚说的", age_s=200)
    await stage.quiet()
    assert stage.said == ["好呀"]


@pytest.mark.parametrize(
    ("how", "terms"),
    [
        ({"mentions": (ACCOUNT,)}, {"mentioned", "shift:mention"}),
        ({"mentions": (ME,)}, {"mentioned", "shift:mention"}),
        ({"mentions": (OTHER,)}, set()),
        ({"reply_to": "own"}, {"quoted", "shift:quote"}),
        ({"reply_to": "theirs"}, set()),
        ({"text": "小满在吗"}, {"named", "shift:name"}),
        ({}, set()),
    ],
)
async def test_being_addressed_shifts_the_odds(stage: Stage, how: dict[str, Any], terms: set[str]) -> None:
    spec = stage.persona.spec.model_copy(update={"people": (ME,), "reply": ReplyPolicy(bias=-50)})
    stage.persona = replace(stage.persona, spec=spec)
    long_ago = datetime.now(UTC) - timedelta(minutes=5)
    stage.archive.append(
        [Message(i, GROUP, by, "", long_ago, "早", Origin.HUMAN) for i, by in (("own", ME), ("theirs", OTHER))]
    )
    stage.hear(**{"text": "在吗"} | how)
    await stage.quiet()
    (decision,) = stage.archive.decisions(GROUP)
    addressed = {"mentioned", "quoted", "named", "shift:mention", "shift:quote", "shift:name"}
    assert {name for name, value in decision.why["terms"].items() if name in addressed and value} == terms
    assert all(decision.why["terms"][name] > 0 for name in terms)


# -- speaking first -------------------------------------------------------------------------------


async def test_speaking_first_answers_the_hour_alone(stage: Stage) -> None:
    stage.hear("晚安", age_s=7300)
    await stage.quiet()
    stage.engine.lines = ["早呀", "[戳一戳]", "起床"]
    assert stage.presence.open(GROUP, ACCOUNT, "", "own") is None
    await stage.quiet()
    assert stage.said == ["早呀", "起床"], "in a group a poke would be at nobody"
    assert re.fullmatch(r"【周. \d\d:\d\d · 隔了2小时】", stage.engine.heard())
    (decision,) = stage.archive.decisions(GROUP)
    assert (decision.outcome, decision.why["opening"], decision.message_id) == ("spoke", "own", "")
    assert [(m.text, m.origin) for m in stage.archive.window(GROUP, 2)] == [
        ("早呀", Origin.TWIN), ("起床", Origin.TWIN),
    ]  # fmt: skip
    assert stage.wire.shown == [], "nothing was read"


async def test_a_planned_message_is_about_its_prompt(stage: Stage) -> None:
    assert stage.presence.open(GROUP, ACCOUNT, "叫大家起床", "schedule") is None
    await stage.quiet()
    assert stage.engine.heard().split("\n")[-1] == "（叫大家起床）"
    assert "隔了" not in stage.engine.heard(), "nothing was ever said there"
    assert stage.archive.decisions(GROUP)[0].why["opening"] == "schedule"
    stage.hear("好")
    await stage.quiet()
    assert "叫大家起床" not in "".join(p.text for p in stage.engine.asked[-1].pieces), "it was never said"


async def test_speaking_first_is_forbidden_by_what_forbids_answers(archive: Archive) -> None:
    stage = Stage(archive, scene_per_minute=1)
    now = datetime.now(UTC)
    assert stage.presence.open(PRIVATE, ACCOUNT, "", "own") == "off"
    stage.presence.scenes.type(GROUP, "quiet", "00:00-00:00", now)
    assert stage.presence.open(GROUP, ACCOUNT, "", "own") == "quiet"
    stage.presence.scenes.type(GROUP, "quiet", "", now)
    stage.presence.muted(GROUP, 60)
    assert stage.presence.open(GROUP, ACCOUNT, "", "own") == "muted"
    stage.presence.muted(GROUP, 0)
    assert stage.presence.open(GROUP, ACCOUNT, "", "own") is None
    assert stage.presence.open(GROUP, ACCOUNT, "", "own") == "busy"
    await stage.quiet()
    assert stage.presence.open(GROUP, ACCOUNT, "", "own") == "budget"
    stage.hear("我自己来", sender=ACCOUNT)
    assert stage.presence.open(GROUP, ACCOUNT, "", "own") == "held"
    assert stage.said == ["好呀"]


async def test_who_speaks_before_the_opening_is_out_is_answered_instead(stage: Stage) -> None:
    ready, go = asyncio.Event(), asyncio.Event()

    async def hold(number: int) -> None:
        ready.set()
        await go.wait()

    stage.engine.before_line = hold
    stage.presence.open(GROUP, ACCOUNT, "", "own")
    await asyncio.wait_for(ready.wait(), 5)
    stage.hear("在吗")
    go.set()
    await stage.quiet()
    assert stage.outcomes() == ["cancelled", "spoke"]
    assert stage.engine.heard().endswith("阿强：在吗")
    assert stage.said == ["好呀"]
    assert stage.presence.account_of(GROUP) == ACCOUNT


# -- the person's own words, recalls --------------------------------------------------------------


async def test_the_persons_own_words_drop_the_answer_and_hold_the_twin(archive: Archive) -> None:
    stage = Stage(archive, hold_s=0.4)
    stage.hear("嗨")
    stage.hear("我自己来", sender=ACCOUNT)
    stage.hear("好的")
    await asyncio.sleep(DEBOUNCE_S * 3)
    assert stage.engine.asked == []
    stage.restart()
    stage.hear("还在吗")
    await asyncio.sleep(DEBOUNCE_S * 3)
    assert stage.engine.asked == [], "a restart does not end the hold"
    await asyncio.sleep(0.4)
    stage.hear("喂")
    await stage.quiet()
    assert stage.said == ["好呀"]
    assert [value for _, value in archive.timeline(GROUP, "state")] == ["default", "held", "default"]


async def test_own_words_in_a_scene_that_is_off_change_nothing(stage: Stage) -> None:
    stage.hear("我自己来", PRIVATE, sender=ACCOUNT)
    assert stage.archive.timeline(PRIVATE, "state") == []


async def test_twin_on_ends_the_hold(stage: Stage) -> None:
    stage.hear("我自己来", sender=ACCOUNT)
    stage.presence.switch(GROUP, True, datetime.now(UTC))
    stage.hear("嗨")
    await stage.quiet()
    assert stage.said == ["好呀"]


async def test_a_recall_before_the_answer_means_no_answer(stage: Stage) -> None:
    ready, go = asyncio.Event(), asyncio.Event()

    async def hold(number: int) -> None:
        ready.set()
        await go.wait()

    stage.engine.before_line = hold
    message = stage.hear("发错了")
    await asyncio.wait_for(ready.wait(), 5)
    stage.archive.recall(GROUP, message.id, datetime.now(UTC))
    stage.presence.recalled(GROUP, message.id)
    go.set()
    await stage.quiet()
    assert (stage.said, len(stage.engine.asked)) == ([], 1)


@pytest.mark.parametrize("why", ["held", "off", "recalled", "stopped"])
async def test_what_stopped_an_answer_is_written_down(stage: Stage, why: str) -> None:
    ready = asyncio.Event()

    async def hold(number: int) -> None:
        ready.set()
        await asyncio.Event().wait()

    stage.engine.before_line = hold
    message = stage.hear("嗨")
    await asyncio.wait_for(ready.wait(), 5)
    match why:
        case "held":
            stage.hear("我自己来", sender=ACCOUNT)
        case "off":
            stage.presence.switch(GROUP, False, datetime.now(UTC))
        case "recalled":
            stage.presence.recalled(GROUP, message.id)
        case "stopped":
            await stage.presence.close()
    await stage.quiet()
    assert stage.outcomes() == [why]


async def test_a_recall_of_one_of_two_is_answered_without_it(stage: Stage) -> None:
    first = stage.hear("发错了")
    stage.hear("在吗")
    stage.archive.recall(GROUP, first.id, datetime.now(UTC))
    stage.presence.recalled(GROUP, first.id)
    await stage.quiet()
    assert "发错了" not in "".join(p.text for p in stage.engine.asked[-1].pieces)
    assert stage.said == ["好呀"]


async def test_a_recall_does_not_dig_up_what_was_left_alone(stage: Stage) -> None:
    stage.hear("昨天那件事呢", age_s=4000)
    slip = stage.hear("发错了")
    await asyncio.sleep(DEBOUNCE_S / 3)
    stage.archive.recall(GROUP, slip.id, datetime.now(UTC))
    stage.presence.recalled(GROUP, slip.id)
    await stage.quiet()
    await asyncio.sleep(DEBOUNCE_S * 2)
    assert (stage.said, stage.engine.asked) == ([], [])


async def test_what_was_heard_before_switching_off_is_not_dug_up(stage: Stage) -> None:
    stage.hear("嗨")
    stage.presence.switch(GROUP, False, datetime.now(UTC))
    stage.presence.switch(GROUP, True, datetime.now(UTC))
    slip = stage.hear("发错了")
    stage.archive.recall(GROUP, slip.id, datetime.now(UTC))
    stage.presence.recalled(GROUP, slip.id)
    await stage.quiet()
    await asyncio.sleep(DEBOUNCE_S * 2)
    assert (stage.said, stage.engine.asked) == ([], [])


async def test_words_that_the_last_look_did_not_see_are_answered_next(stage: Stage) -> None:
    stage.wire.gate = asyncio.Event()
    ready, go = asyncio.Event(), asyncio.Event()

    async def hold(number: int) -> None:
        ready.set()
        await go.wait()

    stage.engine.before_line = hold
    for text in ("一", "二", "三"):
        stage.hear(text)
        await asyncio.wait_for(ready.wait(), 5)
        ready.clear()
    stage.hear("四")  # both re-decisions are spent: the answer to three is under way
    await asyncio.sleep(1.1)
    stage.wire.gate.set()
    go.set()
    await stage.quiet()
    assert stage.said == ["好呀", "好呀"]
    assert stage.engine.lines_heard(-1) == ["阿强：四"]
    assert stage.wire.quotes == ["m3", None], "the first answers words that are no longer the last ones"
    assert [m.reply_to for m in stage.archive.window(GROUP, 10) if m.origin is Origin.TWIN] == ["m3", None]


@pytest.mark.parametrize(
    ("heard", "quotes"),
    [
        ([("在吗", FRIEND, {}), ("我也想问", OTHER, {})], [None, None]),
        ([("在吗", FRIEND, {"mentions": (ME,)})], [None, None]),
        ([("在吗", FRIEND, {"mentions": (ME,)}), ("问你个事", FRIEND, {})], [None, None]),
        ([("在吗", FRIEND, {"mentions": (ME,)}), ("今天好冷", OTHER, {})], ["m2", None]),
        ([("今天好冷", OTHER, {}), ("真的吗", FRIEND, {"reply_to": "m1"}), ("是啊", OTHER, {})], ["m3", None]),
        ([("今天好冷", OTHER, {}), ("在吗", FRIEND, {"mentions": (ME,)})], [None, None]),
    ],
)
async def test_an_answer_to_something_not_last_quotes_it(
    stage: Stage, heard: list[tuple[str, str, dict[str, Any]]], quotes: list[str | None]
) -> None:
    stage.persona = replace(stage.persona, spec=stage.persona.spec.model_copy(update={"people": (ME,)}))
    stage.engine.lines = ["一", "　好"]
    stage.hear("我先说的", sender=ME)
    for text, sender, how in heard:
        stage.hear(text, sender=sender, **how)
    await stage.quiet()
    assert stage.wire.quotes == quotes


async def test_words_taken_back_stand_between_nothing(stage: Stage) -> None:
    stage.hear("在吗")
    slip = stage.hear("呀发错了")
    stage.archive.recall(slip.scene, slip.id, slip.time)
    stage.presence.recalled(slip.scene, slip.id)
    await stage.quiet()
    assert stage.wire.quotes == [None]


async def test_an_engine_that_fails_leaves_a_decision_and_the_next_words_are_answered(stage: Stage) -> None:
    async def fail(number: int) -> None:
        stage.engine.before_line = None
        stage.hear("还在吗")
        raise EngineError("the decode failed")

    stage.engine.before_line = fail
    stage.presence._chat = stage.settings.chat.model_copy(update={"max_redecisions": 0})
    stage.hear("在吗")
    await stage.quiet()
    assert stage.outcomes()[0] == "failed: engine"
    assert stage.told == ["回复生成失败：the decode failed"]
    assert stage.said == ["好呀"]


async def test_a_person_who_speaks_after_a_refusal_is_not_spoken_over(stage: Stage) -> None:
    stage.wire.failures = [SendFailure.REFUSED]
    stage.hear("嗨")
    await until(lambda: stage.wire.tried == 1)
    await asyncio.sleep(0.05)
    stage.hear("我自己来", sender=ACCOUNT)
    await asyncio.sleep(2.3)
    assert (stage.wire.tried, stage.said) == (1, [])


async def test_a_recall_during_the_pause_after_a_refusal_ends_the_answer(stage: Stage) -> None:
    stage.wire.failures = [SendFailure.REFUSED]
    message = stage.hear("发错了")
    await until(lambda: stage.wire.tried == 1)
    await asyncio.sleep(0.05)
    stage.archive.recall(GROUP, message.id, datetime.now(UTC))
    stage.presence.recalled(GROUP, message.id)
    await asyncio.sleep(2.3)
    assert (stage.wire.tried, stage.said, stage.outcomes()) == (1, [], ["recalled"])


async def test_a_look_that_fails_leaves_a_decision(stage: Stage) -> None:
    async def broken(voice: Voice) -> Measure:
        raise EngineError("the model is gone")

    stage.engine.measure = broken  # type: ignore[method-assign]
    stage.restart()
    message = stage.hear("嗨")
    await stage.quiet()
    (decision,) = stage.archive.decisions(GROUP)
    assert (decision.outcome, decision.message_id) == ("failed: engine", message.id)


async def test_newer_words_do_not_keep_a_fault_from_the_owner(stage: Stage) -> None:
    told, go = asyncio.Event(), asyncio.Event()

    async def fail(number: int) -> None:
        stage.engine.before_line = None
        raise EngineError("the model is broken")

    async def slowly(text: str) -> None:
        told.set()
        await go.wait()
        stage.told.append(text)

    stage.presence._tell_owner = slowly
    stage.engine.before_line = fail
    stage.hear("嗨")
    await asyncio.wait_for(told.wait(), 5)
    stage.hear("在吗")
    await until(lambda: bool(stage.said))
    go.set()
    await until(lambda: len(stage.told) == 1)
    assert stage.said == ["好呀"]


# -- sending --------------------------------------------------------------------------------------


async def test_the_budget_ends_an_answer(archive: Archive) -> None:
    stage = Stage(archive, scene_per_minute=2)
    stage.engine.lines = ["一", "二", "三"]
    stage.hear("嗨")
    await stage.quiet()
    assert stage.said == ["一", "二"]
    stage.hear("嗯", sender=OTHER)
    await stage.quiet()
    assert (stage.said, stage.outcomes()) == (["一", "二"], ["cut short", "budget"])


async def test_a_refused_send_is_tried_once_more(stage: Stage) -> None:
    stage.wire.failures = [SendFailure.REFUSED]
    stage.hear("嗨")
    await stage.quiet()
    assert (stage.said, stage.wire.tried, stage.outcomes()) == (["好呀"], 2, ["spoke"])


@pytest.mark.parametrize(
    ("failures", "tries"),
    [
        ([SendFailure.REFUSED] * 3, 2), ([SendFailure.UNKNOWN] * 2, 1), ([SendFailure.SHADOWED] * 2, 1),
        ([SendFailure.BUG] * 2, 1), ([SendFailure.OFFLINE] * 2, 1),
    ],
)  # fmt: skip
async def test_what_was_not_sent_is_given_up_recorded_and_told(
    stage: Stage, failures: list[SendFailure], tries: int
) -> None:
    stage.engine.lines = ["一", "二"]
    stage.wire.failures = failures
    stage.hear("嗨")
    await stage.quiet()
    assert (stage.said, stage.wire.tried) == ([], tries), "and the bubbles after it are not sent either"
    assert stage.outcomes() == [f"failed: {failures[0].value}"]
    assert [m.text for m in stage.archive.window(GROUP, 10)] == ["嗨"]
    assert len(stage.told) == 1
    assert str(GROUP) in stage.told[0]


async def test_what_may_have_been_delivered_counts_in_the_budget(archive: Archive) -> None:
    stage = Stage(archive, scene_per_minute=1)
    stage.wire.failures = [SendFailure.UNKNOWN]
    for text in ("嗨", "在吗"):
        stage.hear(text)
        await stage.quiet()
    assert stage.outcomes() == ["failed: unknown", "budget"]


async def test_a_message_never_confirmed_pauses_every_scene_and_the_owner_is_told_so(stage: Stage) -> None:
    stage.presence.switch(PRIVATE, True, datetime.now(UTC))
    stage.wire.failures = [SendFailure.SHADOWED]
    stage.hear("嗨")
    await stage.quiet()
    stage.hear("嗨", PRIVATE)
    await stage.quiet()
    assert (stage.said, stage.outcomes(PRIVATE), len(stage.engine.asked)) == ([], ["paused"], 1)
    assert "风控" in stage.told[0]


async def test_where_the_account_is_muted_nothing_is_said_until_it_is_lifted(stage: Stage) -> None:
    stage.presence.muted(GROUP, math.inf)
    stage.hear("嗨")
    await stage.quiet()
    assert (stage.wire.tried, stage.outcomes()) == (0, ["muted"])
    stage.presence.muted(GROUP, 0)
    stage.hear("在吗")
    await stage.quiet()
    assert stage.said == ["好呀"]


async def test_a_bubble_that_fails_after_its_turn_was_stopped_still_costs_the_budget(archive: Archive) -> None:
    stage = Stage(archive, scene_per_minute=3)
    stage.wire.gate = asyncio.Event()
    stage.wire.failures = [SendFailure.REFUSED]
    stage.hear("嗨")
    await until(lambda: stage.wire.tried == 1)
    stage.presence.switch(GROUP, False, datetime.now(UTC))
    await asyncio.sleep(0.02)
    stage.wire.gate.set()
    await asyncio.sleep(0.05)
    assert stage.presence.budget.hindrance(GROUP, time.monotonic()) == "budget"


async def test_closing_finishes_the_bubble_being_sent(archive: Archive) -> None:
    stage = Stage(archive)
    stage.engine.lines = ["一", "二"]
    stage.wire.gate = asyncio.Event()
    stage.hear("嗨")
    await until(lambda: stage.wire.tried == 1)
    closing = asyncio.create_task(stage.presence.close())
    await asyncio.sleep(0.02)
    stage.wire.gate.set()
    await closing
    assert stage.said == ["一"]
    assert [m.text for m in archive.window(GROUP, 10)] == ["嗨", "一"]


async def test_an_engine_that_fails_is_told_and_the_scene_lives_on(stage: Stage) -> None:
    async def fail(number: int) -> None:
        raise EngineError("the model is broken")

    stage.engine.before_line = fail
    stage.hear("嗨")
    await stage.quiet()
    assert (stage.said, len(stage.told)) == ([], 1)
    assert "the model is broken" in stage.told[0]
    stage.engine.before_line = None
    stage.hear("在吗")
    await stage.quiet()
    assert stage.said == ["好呀"]


async def test_scenes_do_not_wait_for_each_other(stage: Stage) -> None:
    stage.presence.switch(PRIVATE, True, datetime.now(UTC))
    stage.hear("群里")
    stage.hear("私聊", PRIVATE)
    await stage.quiet()
    assert {scene for _, scene, _ in stage.wire.sent} == {GROUP, PRIVATE}
    assert stage.draws.count == 2


# -- who does not want to be answered -------------------------------------------------------------


def opt_out(stage: Stage, person: str) -> None:
    stage.archive.optouts.note(person, "out", "self", datetime.now(UTC))
    stage.presence.ignore(person)


async def test_an_answer_prepared_for_somebody_who_opts_out_is_not_said(stage: Stage) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def wait(_: int) -> None:
        asked.set()
        await go.wait()

    stage.engine.before_line = wait
    stage.hear("在吗")
    await asyncio.wait_for(asked.wait(), 5)
    opt_out(stage, FRIEND)
    go.set()
    await stage.quiet()
    assert stage.said == []
    assert stage.outcomes() == ["optout"]


async def test_what_others_said_meanwhile_is_answered_without_their_words(stage: Stage) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def wait(_: int) -> None:
        asked.set()
        await go.wait()

    stage.engine.before_line = wait
    stage.hear("我在问", sender=OTHER)
    stage.hear("秘密")
    await asyncio.wait_for(asked.wait(), 5)
    assert "秘密" in stage.engine.heard()
    opt_out(stage, FRIEND)
    go.set()
    await stage.quiet()
    assert stage.said == ["好呀"]
    assert "我在问" in stage.engine.heard()
    assert "秘密" not in "".join(p.text for p in stage.engine.asked[-1].pieces)


async def test_an_answer_under_way_to_somebody_who_opts_out_ends(stage: Stage) -> None:
    first, go = asyncio.Event(), asyncio.Event()

    async def wait(number: int) -> None:
        if number == 1:
            first.set()
            await go.wait()

    stage.engine.lines, stage.engine.before_line = ["一", "二"], wait
    stage.hear("在吗")
    await asyncio.wait_for(first.wait(), 5)
    opt_out(stage, FRIEND)
    go.set()
    await stage.quiet()
    assert stage.said == ["一"]
    assert stage.outcomes() == ["cut short"]


async def test_nobody_who_opted_out_is_spoken_to_first(archive: Archive) -> None:
    made = Stage(archive, scenes=(str(PRIVATE),))
    archive.optouts.note(PRIVATE.id, "out", "self", datetime.now(UTC))
    assert made.presence.open(PRIVATE, ACCOUNT, "", "schedule") == "optout"
    archive.optouts.note(PRIVATE.id, "in", "self", datetime.now(UTC) + timedelta(seconds=1))
    assert made.presence.open(PRIVATE, ACCOUNT, "", "schedule") is None
    await made.quiet()
    assert made.said == ["好呀"]
    await made.presence.close()
