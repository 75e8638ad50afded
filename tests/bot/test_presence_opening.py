"""bot/presence.py: speaking first."""

import asyncio
import re
from datetime import UTC, datetime

from chats import ACCOUNT, GROUP, PRIVATE
from stage import Stage

from bot.archive import Archive
from bot.events import Mute
from bot.message import Origin


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
    stage.presence.mutes.told(Mute(ACCOUNT, GROUP, 60))
    assert stage.presence.open(GROUP, ACCOUNT, "", "own") == "muted"
    stage.presence.mutes.told(Mute(ACCOUNT, GROUP, 0))
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
