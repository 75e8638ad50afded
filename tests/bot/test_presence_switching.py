"""bot/presence.py: another persona answers from now on."""

import asyncio
from dataclasses import replace

import pytest
from chats import ACCOUNT, GROUP, PRIVATE
from stage import Stage

from bot.message import Scene
from bot.persona import Persona, ReplyPolicy, Spec
from bot.scenes import EVERYWHERE


class Held:
    """Keeps the engine from its line with a number until it may go on."""

    def __init__(self, stage: Stage, number: int = 0) -> None:
        self.asked, self.go = asyncio.Event(), asyncio.Event()
        self._number = number
        stage.engine.before_line = self._wait

    async def _wait(self, number: int) -> None:
        if number == self._number:
            self.asked.set()
            await self.go.wait()


def switch(stage: Stage, scene: Scene) -> None:
    stage.persona = Persona("other", stage.persona.folder, stage.persona.spec, None)
    stage.presence.decide_anew(scene)


@pytest.mark.parametrize("where", [GROUP, EVERYWHERE])
async def test_what_the_persona_before_prepared_is_decided_anew(stage: Stage, where: Scene) -> None:
    held = Held(stage)
    stage.hear("在吗")
    await asyncio.wait_for(held.asked.wait(), 5)
    switch(stage, where)
    held.go.set()
    await stage.quiet()
    assert stage.said == ["好呀"], "once"
    assert [(d.persona, d.outcome) for d in reversed(stage.archive.decisions(GROUP, 9))] == [
        ("xiaoman", "cancelled"), ("other", "spoke"),
    ]  # fmt: skip


@pytest.mark.parametrize("elsewhere", [True, False])
async def test_what_is_being_said_and_other_scenes_go_on(stage: Stage, elsewhere: bool) -> None:
    stage.engine.lines = ["一", "二"]
    held = Held(stage, 0 if elsewhere else 1)
    stage.hear("在吗")
    await asyncio.wait_for(held.asked.wait(), 5)
    switch(stage, PRIVATE if elsewhere else GROUP)
    held.go.set()
    await stage.quiet()
    assert stage.said == ["一", "二"]
    assert [(d.persona, d.outcome) for d in stage.archive.decisions(GROUP, 9)] == [("xiaoman", "spoke")]


async def test_an_opening_of_the_persona_before_is_dropped_and_older_words_are_left_alone(stage: Stage) -> None:
    talkative = stage.persona
    stage.persona = replace(talkative, spec=Spec(display_name="小满", reply=ReplyPolicy(bias=-50)))
    stage.hear("早")
    await stage.quiet()
    stage.persona = talkative
    held = Held(stage)
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    assert stage.presence.open(GROUP, ACCOUNT, "", "schedule", ended) is None
    await asyncio.wait_for(held.asked.wait(), 5)
    switch(stage, GROUP)
    held.go.set()
    await stage.quiet()
    assert (stage.said, await ended) == ([], "cancelled")
    assert stage.outcomes() == ["silent", "cancelled"]
