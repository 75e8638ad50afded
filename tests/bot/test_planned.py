"""bot/planned.py: a message by the clock is said, made up for, or told as missed; never said twice."""

import asyncio
import time
from datetime import UTC, datetime
from typing import cast
from zoneinfo import ZoneInfo

import pytest
from chats import ACCOUNT, GROUP
from stage import Stage

from bot import planned
from bot.config import Scheduled
from bot.errors import SendFailure
from bot.message import Scene
from bot.presence import Presence

MESSAGE = Scheduled(cron="0 8 * * *", scene=str(GROUP), prompt="叫大家起床")
RETRY_S = 0.02


class Doors:
    """A presence as a planned message meets it: what forbids it at each try, and how each opening ends."""

    def __init__(self, *ends: str, forbidden: str | None = None) -> None:
        self.ends = list(ends)
        self.forbidden = forbidden
        self.opened: list[tuple[Scene, str, str, str]] = []

    def forbids(self, scene: Scene, account: str) -> str | None:
        return self.forbidden

    def open(self, scene: Scene, account: str, prompt: str, kind: str, ended: asyncio.Future[str]) -> str | None:
        self.opened.append((scene, account, prompt, kind))
        if self.forbidden is None:
            ended.set_result(self.ends.pop(0))
        return self.forbidden


async def said(doors: Doors, late_s: float = 5.0, account: str | None = ACCOUNT) -> str:
    return await planned.say(cast(Presence, doors), MESSAGE, lambda _: account, late_s, RETRY_S)


async def test_what_nothing_forbids_is_said_once() -> None:
    doors = Doors("spoke")
    assert await said(doors) == "spoke"
    assert doors.opened == [(GROUP, ACCOUNT, "叫大家起床", "schedule")]


@pytest.mark.parametrize("hindrance", ["quiet", "budget", "offline", "muted", "paused", "busy", "held"])
async def test_what_is_forbidden_is_made_up_for_as_soon_as_it_may_be(hindrance: str) -> None:
    doors = Doors("spoke", forbidden=hindrance)
    saying = asyncio.create_task(said(doors))
    await asyncio.sleep(RETRY_S * 5)
    assert (len(doors.opened), saying.done()) == (1, False), "it is asked for once, and then waited for"
    doors.forbidden = None
    assert await asyncio.wait_for(saying, 5) == "spoke"
    assert len(doors.opened) == 2


@pytest.mark.parametrize("hindrance", ["quiet", "offline"])
async def test_too_late_it_is_dropped_and_what_was_in_the_way_is_told(hindrance: str) -> None:
    doors, began = Doors(forbidden=hindrance), time.monotonic()
    assert await said(doors, late_s=0.1) == hindrance
    assert time.monotonic() - began < 2
    assert len(doors.opened) == 1
    assert planned.missed(hindrance)


@pytest.mark.parametrize("forbidden", ["off", "optout"])
async def test_where_the_twin_is_off_or_not_wanted_nothing_is_waited_for(forbidden: str) -> None:
    began = time.monotonic()
    assert await said(Doors(forbidden=forbidden), late_s=60) == forbidden
    assert time.monotonic() - began < 5
    assert planned.missed(forbidden)


async def test_others_who_speak_first_only_delay_it_and_three_times_are_enough() -> None:
    assert await said(Doors("cancelled", "empty", "spoke")) == "spoke"
    doors = Doors(*["cancelled"] * 9)
    assert await said(doors) == "cancelled"
    assert len(doors.opened) == 3


@pytest.mark.parametrize("how", ["cut short", "stopped", "failed: refused", "failed: unknown", "failed: shadowed"])
async def test_what_is_perhaps_out_is_not_said_again_nor_told_twice(how: str) -> None:
    doors = Doors(how)
    assert await said(doors) == how
    assert len(doors.opened) == 1
    assert not planned.missed(how)


async def test_what_surely_never_left_is_tried_again() -> None:
    assert await said(Doors("failed: offline", "spoke")) == "spoke"
    assert planned.missed("failed: fault")


async def test_what_three_times_did_not_leave_is_told_as_missed(stage: Stage) -> None:
    stage.wire.failures = [SendFailure.OFFLINE] * 9
    ended = await told(stage)
    await stage.quiet()
    assert (ended, stage.wire.tried, stage.said) == ("failed: offline", 3, [])
    assert planned.missed(ended), "what the owner read was of a try"


async def test_without_an_account_there_it_waits_for_one() -> None:
    assert await said(Doors(), late_s=0.1, account=None) == planned.NOBODY
    assert planned.missed(planned.NOBODY)
    found: list[str] = []
    doors = Doors("spoke")
    saying = asyncio.create_task(
        planned.say(cast(Presence, doors), MESSAGE, lambda _: found[0] if found else None, 5.0, RETRY_S)
    )
    await asyncio.sleep(RETRY_S * 3)
    found.append(ACCOUNT)
    assert await asyncio.wait_for(saying, 5) == "spoke"


@pytest.mark.parametrize(
    ("now", "due"),
    [
        ("2026-11-20 08:00:05", "2026-11-20 08:00"), ("2026-11-20 07:59", "2026-11-19 08:00"),
        ("2026-11-20 08:00", "2026-11-20 08:00"),
    ],
)  # fmt: skip
def test_when_it_was_due_last(now: str, due: str) -> None:
    zone = ZoneInfo("Asia/Shanghai")
    found = planned.due(MESSAGE, datetime.fromisoformat(now).replace(tzinfo=zone), zone)
    assert found == datetime.fromisoformat(due).replace(tzinfo=zone)


def test_a_plan_for_once_a_year_was_not_due_today() -> None:
    yearly = MESSAGE.model_copy(update={"cron": "0 0 1 1 *"})
    assert planned.due(yearly, datetime(2026, 11, 20, tzinfo=UTC), UTC) is None


# -- with a real presence -------------------------------------------------------------------------


async def told(stage: Stage, late_s: float = 5.0) -> str:
    return await planned.say(stage.presence, MESSAGE, lambda _: ACCOUNT, late_s, RETRY_S)


async def test_quiet_hours_that_end_in_time_let_it_be_said_and_leave_one_row_each(stage: Stage) -> None:
    stage.presence.scenes.type(GROUP, "quiet", "00:00-00:00", datetime.now(UTC))
    saying = asyncio.create_task(told(stage))
    await asyncio.sleep(0.2)
    stage.presence.scenes.type(GROUP, "quiet", "", datetime.now(UTC))
    assert await asyncio.wait_for(saying, 5) == "spoke"
    assert stage.said == ["好呀"]
    assert stage.outcomes() == ["quiet", "spoke"]
    assert [d.why["opening"] for d in stage.archive.decisions(GROUP, 2)] == ["schedule", "schedule"]


async def test_who_speaks_first_is_answered_and_the_planned_words_follow(stage: Stage) -> None:
    ready, go = asyncio.Event(), asyncio.Event()

    async def hold(number: int) -> None:
        ready.set()
        await go.wait()

    stage.engine.before_line = hold
    saying = asyncio.create_task(told(stage))
    await asyncio.wait_for(ready.wait(), 5)
    stage.hear("在吗")
    go.set()
    assert await asyncio.wait_for(saying, 10) == "spoke"
    await stage.quiet()
    assert stage.outcomes() == ["cancelled", "spoke", "spoke"]
    assert [(d.why.get("opening"), d.outcome) for d in stage.archive.decisions(GROUP, 1)] == [("schedule", "spoke")]


async def test_a_planned_message_stopped_before_its_first_step_is_told_of(stage: Stage) -> None:
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    assert stage.presence.open(GROUP, ACCOUNT, "起床", "schedule", ended) is None
    stage.hear("在吗")
    assert await asyncio.wait_for(ended, 5) == "cancelled"
    await stage.quiet()


async def test_a_refused_planned_message_is_told_once(stage: Stage) -> None:
    stage.wire.failures = [SendFailure.UNKNOWN]
    assert await told(stage) == "failed: unknown"
    await stage.quiet()
    assert len(stage.told) == 1
    assert stage.wire.tried == 1
