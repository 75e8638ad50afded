"""bot/presence.py: every decision is one row in the archive and one INFO line, without a word of what was said."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from chats import ACCOUNT, GROUP, OTHER, PRIVATE
from loguru import logger
from stage import Stage, until

from bot.archive import Archive
from bot.errors import EngineError, PersonaError, SendFailure
from bot.events import Mute
from bot.message import Message, Origin, Scene
from bot.persona import Persona, ReplyPolicy, Spec

SECRET = "悄悄话七七八八"


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is logged at INFO."""
    found: list[str] = []
    sink = logger.add(lambda line: found.append(str(line)), level="INFO", format="{level} {message}")
    yield found
    logger.remove(sink)


async def _spoke(stage: Stage) -> None:
    stage.hear(SECRET)


async def _silent(stage: Stage) -> None:
    stage.persona = replace(stage.persona, spec=Spec(display_name="小满", reply=ReplyPolicy(bias=-50)))
    stage.hear(SECRET)


async def _quiet(stage: Stage) -> None:
    stage.presence.scenes.type(GROUP, "quiet", "00:00-00:00", datetime.now(UTC))
    stage.hear(SECRET)


async def _offline(stage: Stage) -> None:
    stage.presence.online(ACCOUNT, online=False)
    stage.hear(SECRET)


async def _stale(stage: Stage) -> None:
    stage.hear(SECRET, age_s=400)


async def _empty(stage: Stage) -> None:
    stage.engine.lines = []
    stage.hear(SECRET)


async def _poked(stage: Stage) -> None:
    stage.engine.lines = ["[戳一戳]"]
    stage.hear("[戳一戳]", sender=OTHER, mentions=(ACCOUNT,))


async def _opening(stage: Stage) -> None:
    stage.presence.open(GROUP, ACCOUNT, SECRET, "own")


async def _planned_in_quiet_hours(stage: Stage) -> None:
    stage.presence.scenes.type(GROUP, "quiet", "00:00-00:00", datetime.now(UTC))
    stage.presence.open(GROUP, ACCOUNT, SECRET, "schedule")


async def _opening_where_off(stage: Stage) -> None:
    stage.presence.switch(GROUP, False, datetime.now(UTC))
    stage.presence.open(GROUP, ACCOUNT, SECRET, "own")


async def _refused(stage: Stage) -> None:
    stage.wire.failures = [SendFailure.UNKNOWN]
    stage.hear(SECRET)


async def _no_persona(stage: Stage) -> None:
    def broken(_: Scene) -> Persona:
        raise PersonaError("xiaoman does not verify")

    stage.presence._persona_of = broken
    stage.hear(SECRET)


async def _fault(stage: Stage) -> None:
    async def fail(_: int) -> None:
        raise RuntimeError("a bug")

    stage.engine.before_line = fail
    stage.hear(SECRET)


async def _fault_while_looking(stage: Stage) -> None:
    async def fail(_: Any) -> float:
        raise RuntimeError("a bug")

    stage.engine.measure = fail  # type: ignore[assignment, method-assign]
    stage.hear(SECRET)


async def _engine(stage: Stage) -> None:
    async def fail(_: int) -> None:
        raise EngineError("the decode failed")

    stage.engine.before_line = fail
    stage.hear(SECRET)


@pytest.mark.parametrize(
    ("happens", "outcome"),
    [
        (_spoke, "spoke"), (_silent, "silent"), (_quiet, "quiet"), (_offline, "offline"), (_stale, "stale"),
        (_empty, "empty"), (_poked, "spoke"), (_opening, "spoke"), (_planned_in_quiet_hours, "quiet"),
        (_opening_where_off, "off"), (_refused, "failed: unknown"), (_no_persona, "failed: engine"),
        (_fault, "failed: fault"), (_fault_while_looking, "failed: fault"), (_engine, "failed: engine"),
    ],
)  # fmt: skip
async def test_one_row_and_one_line(stage: Stage, lines: list[str], happens: Any, outcome: str) -> None:
    await happens(stage)
    await stage.quiet()
    assert stage.outcomes() == [outcome]
    told = [line for line in lines if line.startswith(f"INFO group: {outcome} as xiaoman/")]
    assert len(told) == 1, lines
    (decision,) = stage.archive.decisions(GROUP)
    assert SECRET not in "".join(lines) + str(decision)
    assert "好呀" not in "".join(lines) + str(decision)


async def test_an_opening_of_a_persona_that_cannot_be_loaded_leaves_a_row_that_says_so(stage: Stage) -> None:
    await _no_persona(stage)
    await stage.quiet()
    stage.presence.open(GROUP, ACCOUNT, "", "own")
    await stage.quiet()
    assert [(d.outcome, d.why) for d in stage.archive.decisions(GROUP, 5)] == [
        ("failed: engine", {"opening": "own"}), ("failed: engine", {}),
    ]  # fmt: skip
    assert len(stage.told) == 2


async def test_the_line_says_the_numbers_that_the_row_holds(stage: Stage, lines: list[str]) -> None:
    stage.hear("在吗")
    await stage.quiet()
    (decision,) = stage.archive.decisions(GROUP)
    (line,) = [line for line in lines if "spoke as" in line]
    assert f"draw {decision.why['draw']:.3f}, {decision.why['tokens']} tokens" in line
    assert f"P(speak) {decision.why['p_speak']:.3f}" in line


async def test_a_stale_message_where_the_twin_is_off_is_nobodys_decision(stage: Stage) -> None:
    stage.hear("昨天说的", PRIVATE, age_s=400)
    await stage.quiet()
    assert stage.outcomes(PRIVATE) == []


async def test_an_answer_leaves_from_the_account_that_began_it(archive: Archive) -> None:
    """Two accounts in a group: the other one hears something first while the answer is under way."""
    stage = Stage(archive)
    stage.engine.lines = ["一", "二"]

    async def interrupt(number: int) -> None:
        if number == 1 and len(stage.engine.asked) == 1:
            await until(lambda: len(stage.wire.sent) == 1)
            later = Message("other", GROUP, OTHER, "小红", datetime.now(UTC), "等等", Origin.HUMAN)
            archive.append([later])
            stage.presence.heard(later, "40002")

    stage.engine.before_line = interrupt
    stage.hear("嗨")
    await stage.quiet()
    assert [account for account, *_ in stage.wire.sent][:2] == [ACCOUNT, ACCOUNT]
    assert {m.sender_id for m in archive.window(GROUP, 10) if m.text == "二"} >= {ACCOUNT}


async def test_one_accounts_mute_and_lost_login_do_not_silence_another(archive: Archive) -> None:
    stage = Stage(archive)
    stage.presence.mutes.told(Mute(ACCOUNT, GROUP, 600))
    for _ in range(3):
        stage.presence.online(ACCOUNT, online=False)
    heard = Message("m", GROUP, OTHER, "小红", datetime.now(UTC), "在吗", Origin.HUMAN)
    archive.append([heard])
    stage.presence.heard(heard, "40002")
    await stage.quiet()
    assert [account for account, *_ in stage.wire.sent] == ["40002"]
    assert stage.presence.forbids(GROUP, ACCOUNT) == "offline"
    assert [stage.presence.is_online(a) for a in (ACCOUNT, "40002")] == [False, True]
    assert [f"QQ 账号 {ACCOUNT} 掉线了" in line for line in stage.told] == [True], "the owner is told, once"
    assert stage.presence.forbids(GROUP, "40002") is None


async def test_each_account_sends_its_own_budget(archive: Archive) -> None:
    stage = Stage(archive, account_per_minute=1)
    for n, account in enumerate((ACCOUNT, ACCOUNT, "40002")):
        heard = Message(f"m{n}", GROUP, OTHER, "小红", datetime.now(UTC), "在吗", Origin.HUMAN)
        archive.append([heard])
        stage.presence.heard(heard, account)
        await stage.quiet()
        await asyncio.sleep(0.01)
    assert stage.outcomes() == ["spoke", "budget", "spoke"]
    stage.restart()
    assert [stage.presence.forbids(GROUP, a) for a in (ACCOUNT, "40002", "40003")] == ["budget", "budget", None]
