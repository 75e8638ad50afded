"""plugins/chat/opening.py: a real archive and presence, a clock made of ticks."""

import asyncio
import random
import re
import threading
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from apscheduler.triggers.cron import CronTrigger
from chats import ACCOUNT, FRIEND, GROUP, ME, PRIVATE
from plugged import plugged

from bot.archive import Archive, Decision
from bot.config import Chat, Opening, Paths, Scheduled, Settings
from bot.message import Message, Origin, Scene
from bot.twin import now


class Doors:
    """A presence as the opener sees it."""

    def __init__(self) -> None:
        self.opened: list[tuple[Scene, str, str, str]] = []
        self.hindrance: str | None = None
        self.accounts: dict[Scene, str] = {}

    def account_of(self, scene: Scene) -> str | None:
        return self.accounts.get(scene)

    def forbids(self, scene: Scene, account: str) -> str | None:
        return self.hindrance

    def open(
        self, scene: Scene, account: str, prompt: str, kind: str, ended: asyncio.Future[str] | None = None
    ) -> str | None:
        self.opened.append((scene, account, prompt, kind))
        if ended is not None and self.hindrance is None:
            ended.set_result("spoke")
        return self.hindrance


class Stage:
    """A history in which somebody opens six conversations a day, at whatever hour it is now."""

    def __init__(self, folder: Path, opener: Any, **rules: Any) -> None:
        opening = Opening(**{"enabled": True} | rules)
        self.settings = Settings(paths=Paths(data=folder), chat=Chat(scenes=(str(GROUP),)), opening=opening)
        self.archive = Archive(self.settings.archive_url)
        self.presence = Doors()
        self.connected = [ACCOUNT]
        persona = SimpleNamespace(spec=SimpleNamespace(people=(ME,)))
        self.told: list[str] = []

        async def tell(text: str) -> None:
            self.told.append(text)

        twin = SimpleNamespace(
            settings=self.settings, archive=self.archive, presence=self.presence, persona_of=lambda _: persona,
            tell_owner=tell,
        )  # fmt: skip
        self.opener = opener(twin, lambda: self.connected, random.Random(0))
        moment = now()
        for day in range(1, 60):
            for n in range(6):
                at = moment - timedelta(days=day, minutes=0) + timedelta(seconds=n)
                self.say(at - timedelta(hours=0.6 * n), ME, f"{day}-{n}")

    def say(self, at: datetime, who: str, key: str, scene: Scene = GROUP, origin: Origin = Origin.HUMAN) -> None:
        self.archive.append([Message(key, scene, who, "", at, "嗯", origin)])

    async def ticks(self, n: int) -> int:
        before = len(self.presence.opened)
        for _ in range(n):
            await self.opener.tick()
        return len(self.presence.opened) - before


@pytest.fixture
def opener() -> Any:
    """The class; importing a plugin asks NoneBot for its driver."""
    return plugged("chat.opening").Opener


@pytest.fixture
async def stage(tmp_path: Path, opener: Any) -> AsyncIterator[Stage]:
    made = Stage(tmp_path, opener)
    yield made
    made.archive.close()


async def test_a_scene_is_opened_as_often_as_the_person_opens_it(stage: Stage) -> None:
    count = await stage.ticks(600)
    (by_hour,) = stage.opener._rates.values()
    expected = by_hour[now().astimezone(stage.settings.zone).hour] * 10
    assert expected > 5
    assert 0.5 * expected < count < 1.7 * expected
    assert set(stage.presence.opened) == {(GROUP, ACCOUNT, "", "own")}


async def test_nothing_is_opened_into_a_conversation(stage: Stage) -> None:
    stage.say(now() - timedelta(minutes=25), FRIEND, "now")
    assert await stage.ticks(300) == 0


async def test_an_opening_without_an_answer_is_not_followed_by_another(stage: Stage) -> None:
    stage.say(now() - timedelta(hours=2), ACCOUNT, "own", origin=Origin.TWIN)
    assert await stage.ticks(200) > 0, "it was the last word of a conversation"
    said = Decision(GROUP, "", now() - timedelta(hours=2), "xiaoman", None, "spoke", {"opening": "own"})
    stage.archive.decide(said)
    assert await stage.ticks(300) == 0
    stage.say(now() - timedelta(hours=1), FRIEND, "answer")
    assert await stage.ticks(200) > 0


async def test_where_nothing_is_said_first_by_the_person_the_twin_does_not_either(stage: Stage) -> None:
    stage.say(now() - timedelta(days=2), FRIEND, "p1", PRIVATE)
    stage.say(now() - timedelta(days=2) + timedelta(seconds=9), ME, "p2", PRIVATE)
    await stage.ticks(300)
    assert {scene for scene, *_ in stage.presence.opened} == {GROUP}


async def test_todays_openings_are_bounded(tmp_path: Path, opener: Any) -> None:
    stage = Stage(tmp_path, opener, per_day=2)
    midnight = now().astimezone(stage.settings.zone).replace(hour=0, minute=0, second=0, microsecond=0)
    for day, outcome in ((0, "spoke"), (0, "cancelled"), (-1, "spoke")):
        at = midnight + timedelta(days=day, seconds=1)
        stage.archive.decide(Decision(GROUP, "", at, "xiaoman", None, outcome, {"opening": "own"}))
    assert await stage.ticks(100) > 0
    stage.archive.decide(Decision(GROUP, "", midnight, "xiaoman", None, "spoke", {"opening": "own"}))
    assert await stage.ticks(300) == 0
    stage.archive.close()


async def test_of_several_accounts_the_one_that_is_there_speaks(stage: Stage) -> None:
    stage.connected = [ACCOUNT, "40002"]
    assert await stage.ticks(200) == 0
    stage.presence.accounts[GROUP] = "40002"
    assert await stage.ticks(200) > 0
    assert stage.presence.opened[0][1] == "40002"
    stage.presence.accounts, stage.connected = {}, []
    assert await stage.ticks(200) == 0


async def test_after_a_restart_the_account_that_spoke_there_last_speaks(stage: Stage) -> None:
    stage.connected = [ACCOUNT, "40002"]
    stage.say(now() - timedelta(days=2), ACCOUNT, "older", origin=Origin.TWIN)
    stage.say(now() - timedelta(days=1), "40002", "newer", origin=Origin.TWIN)
    assert await stage.ticks(200) > 0
    assert {account for _, account, *_ in stage.presence.opened} == {"40002"}
    stage.presence.accounts[GROUP], stage.connected = "gone", [ACCOUNT]
    assert await stage.ticks(200) > 0
    assert stage.presence.opened[-1][1] == ACCOUNT, "who heard it last is connected no more"


async def test_where_the_twin_is_off_no_opening_is_even_decided(stage: Stage) -> None:
    stage.presence.hindrance = "off"
    assert await stage.ticks(200) == 0
    stage.presence.hindrance = "quiet"
    assert await stage.ticks(200) > 0


async def test_an_opening_that_was_forbidden_is_none_that_stands_unanswered(stage: Stage) -> None:
    stage.say(now() - timedelta(hours=2), ACCOUNT, "own", origin=Origin.TWIN)
    forbidden = Decision(GROUP, "", now() - timedelta(hours=1), "xiaoman", None, "quiet", {"opening": "own"})
    stage.archive.decide(forbidden)
    assert await stage.ticks(200) > 0


async def test_a_planned_message_that_comes_to_nothing_is_told_the_owner_in_words(tmp_path: Path, opener: Any) -> None:
    planned = Scheduled(cron="* * * * *", scene="group:20001", prompt="叫大家起床")
    stage = Stage(tmp_path, opener, schedule=(planned,), late_s=0)
    stage.presence.hindrance = "quiet"
    await stage.opener.planned(planned)
    stage.presence.hindrance = None
    await stage.opener.planned(planned)
    assert len(stage.told) == 1, "the second one was said"
    assert re.fullmatch(r"原定 \d\d-\d\d \d\d:\d\d 在 group:20001 说的话没说成：\S+。", stage.told[0])
    assert "起床" not in stage.told[0], "it is logged, and words are not"
    stage.archive.close()


@pytest.mark.parametrize(
    ("hindrance", "why"),
    [
        ("optout", "对方退出了（/optout）"),
        ("failed: offline", "客户端没连上"),
        ("recalled", "有人撤回了消息，就没接着说"),
    ],
)
async def test_a_planned_message_that_is_not_said_is_told_with_why(
    tmp_path: Path, opener: Any, hindrance: str, why: str
) -> None:
    planned = Scheduled(cron="* * * * *", scene="private:10001", prompt="叫大家起床")
    stage = Stage(tmp_path, opener, schedule=(planned,), late_s=0)
    stage.presence.hindrance = hindrance
    await stage.opener.planned(planned)
    (told,) = stage.told
    assert told.endswith(f"在 private:10001 说的话没说成：{why}。")
    stage.archive.close()


async def test_a_plan_denser_than_it_may_be_late_is_told_the_owner_once(tmp_path: Path, opener: Any) -> None:
    planned = Scheduled(cron="* * * * *", scene="group:20001", prompt="叫大家起床")
    stage = Stage(tmp_path, opener, enabled=False, schedule=(planned,), late_s=1800)
    stage.presence.hindrance = "quiet"
    await stage.opener.start()
    scheduler = stage.opener._scheduler
    (job,) = scheduler.get_jobs()
    scheduler.reschedule_job(job.id, trigger="interval", seconds=0.05)
    async with asyncio.timeout(10):
        while not stage.told:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
    assert len(stage.told) == 1
    assert stage.told[0].startswith("group:20001 的定时消息排得太密")
    assert "30 分钟" in stage.told[0]
    assert "起床" not in stage.told[0], "it is logged, and words are not"
    assert len(stage.presence.opened) == 1, "the others were skipped"
    await stage.opener.stop()
    stage.archive.close()


async def test_after_a_long_sleep_of_the_machine_a_planned_message_is_not_said_but_told(
    tmp_path: Path, opener: Any
) -> None:
    stage = Stage(tmp_path, opener)
    due = now().astimezone(stage.settings.zone) - timedelta(hours=2)
    slept = Scheduled(cron=f"{due.minute} {due.hour} * * *", scene="group:20001", prompt="叫大家起床")
    await stage.opener.planned(slept)
    assert stage.presence.opened == []
    assert [f"{due:%m-%d %H:%M}" in text and "太晚了" in text for text in stage.told] == [True]
    stage.archive.close()


async def test_a_factor_of_nothing_opens_nothing(tmp_path: Path, opener: Any) -> None:
    stage = Stage(tmp_path, opener, scale=0.0)
    assert await stage.ticks(200) == 0
    stage.archive.close()


async def test_planned_messages_are_due_by_the_clock_whether_enabled_or_not(tmp_path: Path, opener: Any) -> None:
    planned = Scheduled(cron="0 8 * * 1-5", scene="group:20001", prompt="叫大家起床")
    stage = Stage(tmp_path, opener, enabled=False, schedule=(planned,))
    await stage.opener.start()
    (job,) = stage.opener._scheduler.get_jobs()
    local = job.next_run_time.astimezone(stage.settings.zone)
    assert (local.hour, local.minute, local.weekday() < 5) == (8, 0, True)
    assert isinstance(job.trigger, CronTrigger)
    assert (job.func, job.args) == (stage.opener.planned, (planned,))
    await stage.opener.planned(planned.model_copy(update={"cron": "* * * * *"}))  # due at whatever hour it is now
    assert stage.presence.opened == [(GROUP, ACCOUNT, "叫大家起床", "schedule")]
    await stage.opener.stop()
    await asyncio.sleep(0)
    stage.archive.close()


async def test_by_default_the_clock_is_not_even_watched(tmp_path: Path, opener: Any) -> None:
    stage = Stage(tmp_path, opener, enabled=Opening().enabled)
    await stage.opener.start()
    assert not stage.opener._scheduler.running
    stage.archive.close()


async def test_a_stop_waits_for_the_thread_that_reads_the_archive(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, scenes = threading.Event(), threading.Event(), stage.archive.scenes

    def held() -> Any:
        begun.set()
        go_on.wait(20)
        return scenes()

    monkeypatch.setattr(stage.archive, "scenes", held)
    ticking = asyncio.create_task(stage.opener.tick())
    await asyncio.to_thread(begun.wait, 20)
    ticking.cancel()
    stopping = asyncio.create_task(stage.opener.stop())
    await asyncio.sleep(0.05)
    assert not stopping.done()
    go_on.set()
    await stopping
