"""bot/presence.py: who does not want to be answered."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from chats import ACCOUNT, FRIEND, GROUP, OTHER, PRIVATE
from stage import Stage, until

from bot.archive import Archive
from bot.errors import SendFailure
from bot.message import Message


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


async def test_whose_words_are_left_out_is_known_though_their_id_was_another_ones_before(stage: Stage) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def wait(_: int) -> None:
        asked.set()
        await go.wait()

    stage.engine.before_line = wait
    now = datetime.now(UTC)
    stage.archive.add(Message("7", GROUP, OTHER, "小红", now - timedelta(days=1), "以前的"))
    stage.hear("我在问", sender=OTHER)
    stage.archive.add(Message("7", GROUP, FRIEND, "阿强", now, "秘密"))
    heard = stage.archive.get(GROUP, "7")
    assert heard is not None
    stage.presence.heard(heard, ACCOUNT)
    await asyncio.wait_for(asked.wait(), 5)
    opt_out(stage, FRIEND)
    go.set()
    await stage.quiet()
    assert stage.said == ["好呀"]
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


@pytest.mark.parametrize("by", ["here", "another process"])
async def test_an_opening_to_somebody_who_opts_out_meanwhile_is_not_said(archive: Archive, by: str) -> None:
    made = Stage(archive, scenes=(str(PRIVATE),))
    asked, go = asyncio.Event(), asyncio.Event()

    async def wait(_: int) -> None:
        asked.set()
        await go.wait()

    made.engine.before_line = wait
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    assert made.presence.open(PRIVATE, ACCOUNT, "", "schedule", ended) is None
    await asyncio.wait_for(asked.wait(), 5)
    archive.optouts.note(PRIVATE.id, "out", "self", datetime.now(UTC))
    if by == "here":
        made.presence.ignore(PRIVATE.id)
    go.set()
    await made.quiet()
    assert (made.said, await ended) == ([], "optout")


@pytest.mark.parametrize("opened", [True, False], ids=["an opening", "an answer"])
async def test_no_further_bubble_is_said_to_whoever_another_process_opted_out(archive: Archive, opened: bool) -> None:
    made = Stage(archive, scenes=(str(PRIVATE),))
    first, go = asyncio.Event(), asyncio.Event()

    async def wait(number: int) -> None:
        if number == 1:
            first.set()
            await go.wait()

    made.engine.lines, made.engine.before_line = ["一", "二", "三"], wait
    if opened:
        assert made.presence.open(PRIVATE, ACCOUNT, "", "own") is None
    else:
        made.hear("在吗", PRIVATE)
    await asyncio.wait_for(first.wait(), 5)
    archive.optouts.note(PRIVATE.id, "out", "owner", datetime.now(UTC))
    go.set()
    await made.quiet()
    assert made.said == ["一"]
    assert made.outcomes(PRIVATE) == ["cut short"]


async def test_a_refused_opening_is_not_tried_again_to_whoever_opted_out_by_then(archive: Archive) -> None:
    made = Stage(archive, scenes=(str(PRIVATE),))
    made.wire.failures = [SendFailure.REFUSED]
    assert made.presence.open(PRIVATE, ACCOUNT, "", "own") is None
    await until(lambda: made.wire.tried == 1)
    opt_out(made, PRIVATE.id)
    await made.quiet()
    assert (made.wire.tried, made.said) == (1, [])


async def test_nobody_who_opted_out_is_spoken_to_first(archive: Archive) -> None:
    made = Stage(archive, scenes=(str(PRIVATE),))
    archive.optouts.note(PRIVATE.id, "out", "self", datetime.now(UTC))
    assert made.presence.open(PRIVATE, ACCOUNT, "", "schedule") == "optout"
    archive.optouts.note(PRIVATE.id, "in", "self", datetime.now(UTC) + timedelta(seconds=1))
    assert made.presence.open(PRIVATE, ACCOUNT, "", "schedule") is None
    await made.quiet()
    assert made.said == ["好呀"]
    await made.presence.close()
