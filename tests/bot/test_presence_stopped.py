"""bot/presence.py: what takes an answer back – the person's own words, recalls, switching off."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from chats import ACCOUNT, GROUP, PRIVATE
from stage import DEBOUNCE_S, Stage, until

from bot.archive import Archive
from bot.errors import SendFailure
from bot.persona import ReplyPolicy, Spec


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


async def test_a_clock_put_back_does_not_make_the_hold_longer(stage: Stage) -> None:
    stage.archive.note(GROUP, "state", "held", datetime.now(UTC) + timedelta(days=1))
    stage.restart()
    assert not stage.presence.scenes.is_held(GROUP)
    stage.hear("在吗")
    await stage.quiet()
    assert stage.said == ["好呀"]
    stage.hear("我自己来", sender=ACCOUNT)
    assert stage.presence.scenes.is_held(GROUP)


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


async def test_a_burst_whose_first_bubble_is_taken_back_keeps_its_draw(stage: Stage) -> None:
    ready, go = asyncio.Event(), asyncio.Event()

    async def hold(number: int) -> None:
        ready.set()
        await go.wait()

    stage.engine.before_line = hold
    first = stage.hear("发错了")
    await asyncio.wait_for(ready.wait(), 5)
    ready.clear()
    stage.hear("在吗")
    await asyncio.wait_for(ready.wait(), 5)
    ready.clear()
    stage.archive.recall(GROUP, first.id, datetime.now(UTC))
    stage.presence.recalled(GROUP, first.id)
    await asyncio.wait_for(ready.wait(), 5)
    assert [stage.engine.lines_heard(n) for n in range(3)] == [
        ["阿强：发错了"], ["阿强：发错了", "阿强：在吗"], ["阿强：在吗"],
    ]  # fmt: skip
    assert (stage.draws.count, len({r.seed for r in stage.engine.asked})) == (1, 1)
    go.set()
    await stage.quiet()
    stage.hear("吃了吗", age_s=-600)
    await stage.quiet()
    assert stage.draws.count == 2, "the next burst has one of its own"


async def test_a_recall_does_not_dig_up_what_was_left_alone(stage: Stage) -> None:
    stage.hear("昨天那件事呢", age_s=4000)
    slip = stage.hear("发错了")
    await asyncio.sleep(DEBOUNCE_S / 3)
    stage.archive.recall(GROUP, slip.id, datetime.now(UTC))
    stage.presence.recalled(GROUP, slip.id)
    await stage.quiet()
    await asyncio.sleep(DEBOUNCE_S * 2)
    assert (stage.said, stage.engine.asked) == ([], [])


async def test_a_recall_does_not_decide_again_what_was_decided(stage: Stage) -> None:
    stage.persona = replace(stage.persona, spec=Spec(display_name="小满", reply=ReplyPolicy(bias=-50)))
    stage.hear("嗨")
    await stage.quiet()
    slip = stage.hear("发错了", age_s=-1)
    await asyncio.sleep(DEBOUNCE_S / 3)
    stage.archive.recall(GROUP, slip.id, datetime.now(UTC))
    stage.presence.recalled(GROUP, slip.id)
    await stage.quiet()
    assert stage.outcomes() == ["silent"]


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
