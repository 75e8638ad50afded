"""bot/mutes.py: bans of several kinds, over restarts, and lifts that were missed."""

import math
import time
from datetime import UTC, datetime, timedelta

import pytest
from chats import ACCOUNT, FRIEND, GROUP, PRIVATE
from stage import Stage

from bot.archive import Archive
from bot.events import BanKind, Mute
from bot.message import Message, Scene

OWN, ALL, GONE = BanKind
SECOND = "40002"


def muted(stage: Stage, in_s: float = 0.0, account: str = ACCOUNT, scene: Scene = GROUP) -> bool:
    return stage.presence.budget.hindrance(account, scene, time.monotonic() + in_s) == "muted"


def now(in_s: float = 0.0) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=in_s)


@pytest.mark.parametrize("kind", [ALL, GONE])
async def test_a_ban_of_the_account_neither_ends_nor_lifts_one_of_another_kind(stage: Stage, kind: BanKind) -> None:
    stage.presence.mutes.told(Mute(ACCOUNT, GROUP, math.inf, kind))
    stage.presence.mutes.told(Mute(ACCOUNT, GROUP, 100))
    assert muted(stage, 101)
    stage.presence.mutes.told(Mute(ACCOUNT, GROUP, 0))
    assert muted(stage)
    stage.presence.mutes.told(Mute(ACCOUNT, GROUP, 0, kind))
    assert not muted(stage)


async def test_the_seconds_of_a_ban_count_from_when_it_began(stage: Stage) -> None:
    stage.presence.mutes.told(Mute(ACCOUNT, GROUP, 600, since=now(-500)))
    assert [muted(stage, s) for s in (90, 110)] == [True, False]


async def test_a_clock_ahead_of_ours_makes_no_ban_longer(stage: Stage) -> None:
    stage.presence.mutes.told(Mute(ACCOUNT, GROUP, 60, since=now(200)))
    assert [muted(stage, s) for s in (50, 70)] == [True, False]


async def test_a_restart_forgets_no_ban_and_no_lift(archive: Archive) -> None:
    stage = Stage(archive)
    stage.presence.mutes.told(Mute(ACCOUNT, GROUP, 600, since=now(-100)))
    stage.presence.mutes.told(Mute(ACCOUNT, Scene("group", "20002"), math.inf, GONE))
    stage.presence.mutes.told(Mute(SECOND, Scene("group", "20003"), math.inf, ALL))
    stage.presence.mutes.told(Mute(SECOND, Scene("group", "20003"), 0, ALL))
    stage.restart()
    assert [muted(stage, s) for s in (490, 510)] == [True, False]
    assert muted(stage, 1e6, scene=Scene("group", "20002"))
    assert not muted(stage, account=SECOND)
    assert not muted(stage, account=SECOND, scene=Scene("group", "20003"))


async def test_lifting_what_was_not_muted_leaves_nothing_behind(stage: Stage, archive: Archive) -> None:
    stage.presence.mutes.told(Mute(ACCOUNT, GROUP, 0, GONE))
    assert archive.noted("muted") == []


@pytest.mark.parametrize(
    ("kind", "role", "in_s", "lifted"),
    [
        (GONE, "admin", 5, True), (GONE, "", 5, True), (ALL, "member", 5, True),
        (ALL, "admin", 5, False), (ALL, "owner", 5, False), (ALL, "", 5, False), (OWN, "member", 5, False),
        (GONE, "member", 0, False), (ALL, "member", -5, False),
    ],
)  # fmt: skip
async def test_who_speaks_after_it_shows_that_a_ban_is_over(
    stage: Stage, kind: BanKind, role: str, in_s: float, lifted: bool
) -> None:
    began = now()
    stage.presence.mutes.told(Mute(ACCOUNT, GROUP, math.inf, kind, began))
    for scene in (PRIVATE, GROUP):
        heard = Message("1", scene, FRIEND, "阿强", began + timedelta(seconds=in_s), "在吗")
        stage.presence.mutes.heard(SECOND, heard, role)
        stage.presence.mutes.heard(ACCOUNT, heard, role if scene is GROUP else "member")
        if scene is PRIVATE:
            assert muted(stage), "elsewhere, or to another account, it shows nothing"
    assert muted(stage) is not lifted
    stage.restart()
    assert muted(stage) is not lifted
