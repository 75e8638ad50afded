"""bot/presence.py: what is sent, what fails – budgets, refusals, mutes, a broken engine."""

import asyncio
import math
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from chats import ACCOUNT, FRIEND, GROUP, OTHER, PRIVATE
from stage import Stage, until

from bot.archive import Archive
from bot.engine import Measure, Voice
from bot.errors import EngineError, SendFailure
from bot.events import Mute
from bot.message import Message, Origin, Scene


async def test_the_budget_ends_an_answer(archive: Archive) -> None:
    stage = Stage(archive, scene_per_minute=2)
    stage.engine.lines = ["一", "二", "三"]
    stage.hear("嗨")
    await stage.quiet()
    assert stage.said == ["一", "二"]
    stage.hear("嗯", sender=OTHER)
    await stage.quiet()
    assert (stage.said, stage.outcomes()) == (["一", "二"], ["cut short", "budget"])


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
    assert [again.presence.budget.left(ACCOUNT, s, time.monotonic()) for s in (GROUP, PRIVATE)] == [0, 1]


async def test_what_a_clock_ahead_of_ours_sent_does_not_count_for_longer(archive: Archive) -> None:
    ahead = datetime.now(UTC) + timedelta(seconds=120)
    archive.append([Message("s", GROUP, ACCOUNT, "小满", ahead, "早", Origin.TWIN)])
    budget = Stage(archive, scene_per_minute=1).presence.budget
    now = time.monotonic()
    assert [budget.left(ACCOUNT, GROUP, at) for at in (now, now + 61)] == [0, 1]


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


async def test_a_refused_send_is_tried_once_more(stage: Stage) -> None:
    stage.wire.failures = [SendFailure.REFUSED]
    stage.hear("嗨")
    await stage.quiet()
    assert (stage.said, stage.wire.tried, stage.outcomes()) == (["好呀"], 2, ["spoke"])


async def test_a_refused_send_is_not_tried_again_where_that_is_forbidden_by_then(stage: Stage) -> None:
    stage.wire.failures = [SendFailure.REFUSED]
    stage.hear("嗨")
    await until(lambda: stage.wire.tried == 1)
    stage.presence.mutes.told(Mute(ACCOUNT, GROUP, 600))
    await stage.quiet()
    assert (stage.wire.tried, stage.said, stage.outcomes()) == (1, [], ["failed: refused"])


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


async def test_an_answer_of_which_something_was_sent_was_said(stage: Stage) -> None:
    stage.engine.lines = ["一", "二"]
    send, sent = stage.wire.send, 0

    async def once(account: str, scene: Scene, segments: list[dict[str, Any]]) -> str:
        nonlocal sent
        sent += 1
        if sent == 2:
            stage.wire.failures = [SendFailure.UNKNOWN]
        return await send(account, scene, segments)

    stage.wire.send = once  # type: ignore[method-assign]
    stage.hear("嗨")
    await stage.quiet()
    assert (stage.said, stage.outcomes()) == (["一"], ["cut short"])
    assert len(stage.told) == 1


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
    stage.presence.mutes.told(Mute(ACCOUNT, GROUP, math.inf))
    stage.hear("嗨")
    await stage.quiet()
    assert (stage.wire.tried, stage.outcomes()) == (0, ["muted"])
    stage.presence.mutes.told(Mute(ACCOUNT, GROUP, 0))
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
    assert stage.presence.budget.hindrance(ACCOUNT, GROUP, time.monotonic()) == "budget"


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


async def test_a_persona_whose_versions_do_not_verify_says_nothing_as_the_bare_base(stage: Stage) -> None:
    stage.persona = replace(stage.persona, refused="版本 v1 的文件坏了")
    stage.hear("嗨")
    await stage.quiet()
    stage.presence.open(GROUP, ACCOUNT, "", "own")
    await stage.quiet()
    assert (stage.said, stage.engine.asked, stage.outcomes()) == ([], [], ["failed: engine"] * 2)
    assert stage.told == ["回复生成失败：版本 v1 的文件坏了"] * 2


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
