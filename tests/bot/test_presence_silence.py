"""bot/presence.py: when nothing is said – decided so, off, quiet, stale, two programs – and why."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from chats import ACCOUNT, FRIEND, GROUP, ME, OTHER, PRIVATE
from stage import DEBOUNCE_S, OWNER, Stage

from bot.archive import Archive
from bot.config import PerScene
from bot.message import Message, Origin
from bot.persona import ReplyPolicy, Spec


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


async def test_two_programs_do_not_talk_each_other_into_a_loop(archive: Archive) -> None:
    stage = Stage(archive, scene_per_minute=1000, account_per_minute=1000)
    stage.persona = replace(stage.persona, spec=Spec(display_name="小满", reply=ReplyPolicy(bias=8)))
    while "silent" not in stage.outcomes() and len(stage.said) < 100:
        stage.hear("好的")
        await stage.quiet()
    assert 20 < len(stage.said) < 60, "it fell silent by itself, and not at once"
    terms = [d.why["terms"].get("shift:loop", 0.0) for d in reversed(archive.decisions(GROUP, 100))]
    assert terms[:15] == [*[0.0] * 13, -0.5, -1.0]


@pytest.mark.parametrize("others", [(FRIEND,), (FRIEND, OTHER)], ids=["another twin", "two bots"])
async def test_programs_that_take_a_persons_time_do_not_loop_either(archive: Archive, others: tuple[str, ...]) -> None:
    stage = Stage(archive, scene_per_minute=1000, account_per_minute=1000)
    stage.persona = replace(stage.persona, spec=Spec(display_name="小满", reply=ReplyPolicy(bias=6)))
    while "silent" not in stage.outcomes() and len(stage.said) < 100:
        stage.skew += timedelta(seconds=45)
        stage.hear("好的", sender=others[len(stage.said) % len(others)])
        await stage.quiet()
    assert 25 < len(stage.said) < 60, "it fell silent by itself, and not at once"


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
