"""bot/presence.py: whose turn it is – several bubbles, newer words, pace, scenes side by side."""

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from chats import ACCOUNT, GROUP, OTHER, PRIVATE
from stage import DEBOUNCE_S, Stage, until

from bot.archive import Archive
from bot.errors import EngineError
from bot.message import Message, Origin, Scene
from bot.persona import Base, Manifest, Pacing, Version


async def test_three_bubbles_get_one_answer_to_all_of_them(stage: Stage) -> None:
    for text in ("在吗", "出来玩", "快"):
        stage.hear(text)
        await asyncio.sleep(DEBOUNCE_S / 5)
    await stage.quiet()
    assert stage.said == ["好呀"]
    assert stage.engine.heard().endswith("阿强：在吗\n阿强：出来玩\n阿强：快")
    assert stage.outcomes() == ["spoke"]


async def test_a_long_burst_gets_one_answer_that_heard_all_of_it(stage: Stage) -> None:
    for n in range(7):
        stage.hear(f"第{n}句")
        await asyncio.sleep(DEBOUNCE_S * 2 / 3)
    await stage.quiet()
    assert stage.said == ["好呀"]
    assert [stage.engine.heard().count(f"第{n}句") for n in range(7)] == [1] * 7
    assert stage.outcomes() == ["spoke"]


async def test_chatter_without_an_end_is_looked_at_all_the_same(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.presence.GATHER_S", 2 * DEBOUNCE_S)
    spoken = 0
    while not stage.outcomes() and spoken < 100:  # a slow machine's looks are broken off by newer words some times
        stage.hear(f"第{spoken}句")
        spoken += 1
        await asyncio.sleep(DEBOUNCE_S * 2 / 3)
    assert stage.outcomes(), "decided while they still write"
    await stage.quiet()


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


async def test_typing_is_not_shown_for_what_is_due_already(archive: Archive) -> None:
    stage = Stage(archive, scenes=(str(PRIVATE),), delay_scale=0.0, mark_as_read=False)
    stage.engine.lines = ["一", "二"]
    stage.hear("在吗", PRIVATE)
    await stage.quiet()
    assert (stage.said, stage.wire.shown) == (["一", "二"], [])


async def test_what_was_waited_for_more_words_is_taken_off_the_delay(archive: Archive) -> None:
    stage = Stage(archive, debounce_s=1.0, delay_scale=1.0)
    manifest = Manifest(
        version="1", created="2026-01-01T00:00:00+00:00", base=Base(file="b", sha256="0", architecture="gemma3"),
        format="gemma", system_prompt="", files={}, pacing=Pacing(group_delay_s=(1.5,) * 11),
    )  # fmt: skip
    stage.persona = replace(stage.persona, version=Version(Path(), manifest))
    began = time.monotonic()
    stage.hear("嗨")
    await until(lambda: bool(stage.said))
    assert 1.48 <= time.monotonic() - began < 2.4, "and not 2.5"


@pytest.mark.parametrize(
    ("how", "waits_s"), [({}, 0.5), ({"reply_to": "slow3"}, 0.05), ({"mentions": (ACCOUNT,)}, 0.05)]
)
async def test_who_addresses_the_twin_is_not_made_to_wait(
    archive: Archive, how: dict[str, Any], waits_s: float
) -> None:
    stage = Stage(archive, debounce_s=0.05, debounce_max_s=0.5)
    for n in range(8):
        when = datetime.now(UTC) - timedelta(seconds=60 - 4 * n)
        archive.append([Message(f"slow{n}", GROUP, OTHER, "阿珍", when, "嗯")])
    stage.hear("在吗", sender=OTHER, **how)
    await stage.quiet()
    assert stage.presence._turns[GROUP].waited == waits_s


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


async def test_scenes_do_not_wait_for_each_other(stage: Stage) -> None:
    stage.presence.switch(PRIVATE, True, datetime.now(UTC))
    stage.hear("群里")
    stage.hear("私聊", PRIVATE)
    await stage.quiet()
    assert {scene for _, scene, _ in stage.wire.sent} == {GROUP, PRIVATE}
    assert stage.draws.count == 2


async def _talked_over(stage: Stage, first: dict[str, Any]) -> Message:
    """Somebody speaks; half a minute later, before the answer is out, others talk on."""
    thinking, go = asyncio.Event(), asyncio.Event()

    async def hold(number: int) -> None:
        thinking.set()
        await go.wait()

    stage.engine.before_line = hold
    heard = stage.hear("在吗", age_s=30, **first)
    await asyncio.wait_for(thinking.wait(), 5)
    stage.hear("今天好冷", sender=OTHER)
    go.set()
    return heard


async def test_who_addressed_the_twin_is_answered_though_others_talk_on(stage: Stage) -> None:
    await _talked_over(stage, {"mentions": (ACCOUNT,)})
    await stage.quiet()
    assert stage.outcomes() == ["cancelled", "spoke"]
    assert stage.wire.quotes == ["m1"]
    last = stage.archive.decisions(GROUP, 1)[0]
    assert (last.why["mentioned"], last.why["burst"], last.message_id) == (True, 2, "m2")
    assert len({r.seed for r in stage.engine.asked}) == 1, "a turn that grows keeps its random number"


async def test_what_was_left_alone_or_taken_back_is_not_decided_on_again(stage: Stage) -> None:
    stage.presence.scenes.type(GROUP, "bias", "-200", datetime.now(UTC))
    stage.hear("在吗", age_s=90, mentions=(ACCOUNT,))
    await stage.quiet()
    stage.presence.scenes.type(GROUP, "bias", "0", datetime.now(UTC))
    slip = await _talked_over(stage, {"mentions": (ACCOUNT,)})
    stage.archive.recall(slip.scene, slip.id, slip.time)
    stage.presence.recalled(slip.scene, slip.id)
    await stage.quiet()
    last = stage.archive.decisions(GROUP, 1)[0]
    assert (last.outcome, last.why["mentioned"], last.why["burst"]) == ("spoke", False, 1)


async def test_an_engine_that_fails_behind_a_bubble_cut_the_answer_short(stage: Stage) -> None:
    async def fail(number: int) -> None:
        if number == 1:
            await until(lambda: len(stage.wire.sent) == 1)
            raise EngineError("the model is gone")

    stage.engine.lines, stage.engine.before_line = ["一", "二"], fail
    stage.hear("嗨")
    await stage.quiet()
    assert (stage.said, stage.outcomes()) == (["一"], ["cut short"])
    assert len(stage.told) == 1, "the owner reads why"
