import asyncio
import time
from collections.abc import Generator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from chats import ACCOUNT, FRIEND, GROUP, OTHER, say

from bot.config import Settings
from bot.decision import Moment, Verdict
from bot.engine import Measure, Voice
from bot.message import Message, Scene
from bot.persona import Persona, Spec
from bot.prompt import FORMATS, Exchange
from bot.reply import Look, Replier, tidy, uncounted


@pytest.mark.parametrize(
    ("made", "sent"),
    [
        ("  好呀 ", "好呀"),
        ("红\x1b[31m字\x07", "红[31m字"),
        ("一\x00二\x0b三", "一二三"),
        ("一家人👨‍👩‍👧", "一家人👨‍👩‍👧"),
        ("\x0b\x1c ", ""),
        ("哈" * 600, "哈" * 500),
        ("a\ud83d\ude00b", "a😀b"),
        ("a\ud83db\ude00", "ab"),
        ("\u202e倒\u2066过\u2069来\ufeff", "倒过来"),
        ("\u200b", ""),
        ("\u200d\u3000\u200e", ""),
        ("\u3164\u2800\ufe0f\u115f\uffa0", ""),
        ("1\ufe0f\u20e3\u3164", "1\ufe0f\u20e3\u3164"),
        ("[CQ:at,qq=all]来", "来"),
        ("[CQ:image,file=file:///etc/hostname][CQ:shake]", ""),
        ("[CQ:at,[CQ:face,id=1]qq=all]\u200b[C\u200bQ:shake] 好", "好"),
        ("怎么发[CQ:at]? 写 [CQ: 和 ]", "怎么发? 写 [CQ: 和 ]"),
        ("[CQ:image,file=" + "a" * 600 + "]好", "好"),
    ],
)
def test_a_bubble_is_sent_without_codes_control_characters_or_endless_text(made: str, sent: str) -> None:
    assert tidy(made) == sent


@pytest.mark.parametrize(
    ("one", "other", "loop"),
    [
        ("我数到3了", "我数到14了", True), ("3", "2", False), ("10:30", "10:40", False), ("第1次", "第2回", False),
        ("好耶", "好耶", False),
    ],
)  # fmt: skip
def test_bubbles_that_only_count_on_are_told_from_counting(one: str, other: str, loop: bool) -> None:
    assert (uncounted(one) == uncounted(other) and uncounted(one) != one) is loop


ASKED, AFTER, OWN = say(0, FRIEND, "在吗"), say(5, OTHER, "今天好冷"), say(6, FRIEND, "喂")


def look(*heard: Message, to: Message | None) -> Look:
    nothing: Any = None
    moment = Moment(None, None, False, False, False, False, len(heard), 12.0)
    persona = Persona("xiaoman", Path(), Spec(display_name="小满"), None)
    return Look(
        GROUP, persona, ACCOUNT, Exchange(heard=list(heard)), Verdict(True, 1.0, 0.1), moment, to, nothing, 0, {},
        cast(Any, lambda _: None),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("heard", "to", "newest", "quotes"),
    [
        ((ASKED,), ASKED, ASKED, False), ((ASKED,), ASKED, AFTER, True), ((ASKED, AFTER), ASKED, AFTER, True),
        ((ASKED, OWN), ASKED, OWN, False), ((ASKED, AFTER, OWN), ASKED, OWN, True), ((ASKED, OWN), ASKED, None, False),
        # Told late, it stands before what was said meanwhile, but is the last thing on the screen.
        ((ASKED, AFTER), ASKED, ASKED, False), ((ASKED,), None, AFTER, False),
    ],
)  # fmt: skip
def test_an_answer_quotes_what_it_is_to_where_others_stand_between(
    heard: tuple[Message, ...], to: Message | None, newest: Message | None, quotes: bool
) -> None:
    found = look(*heard, to=to).quotes(newest.id if newest else "")
    assert found == (ASKED.id if quotes else None)


async def test_scenes_that_look_at_once_leave_messages_their_turn() -> None:
    """Between two steps the loop is free for as long as one took; else nobody is heard until the last is read."""
    ticks, seen = 0, []

    def steps(*_: object) -> Generator[None, None, None]:
        for _ in range(2):
            seen.append(ticks)
            time.sleep(0.02)
            yield

    async def measure(_: Voice) -> Measure:
        return Measure(1, len)

    async def others() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    busy = asyncio.create_task(others())
    replier = Replier(Settings(), cast(Any, SimpleNamespace(steps=steps)), cast(Any, SimpleNamespace(measure=measure)))
    persona = look(ASKED, to=None).persona
    voice = Voice("xiaoman/base", None, FORMATS["gemma"])
    await asyncio.gather(*(replier._window(Scene("group", str(n)), persona, voice) for n in range(3)))
    busy.cancel()
    assert len(seen) == 6
    assert all(later - earlier > 20 for earlier, later in pairwise(seen)), seen


def test_a_message_whose_id_was_met_before_is_quoted_as_the_client_knows_it() -> None:
    met = replace(ASKED, id=f"{ASKED.id}@1796026087")
    assert look(met, AFTER, to=met).quotes(AFTER.id) == ASKED.id
    assert look(met, to=met).quotes(ASKED.id) is None, "it was said last"


def test_a_poke_cannot_be_quoted() -> None:
    poked = say(0, FRIEND, "[戳一戳]", id=f"poke-0-{FRIEND}-{ACCOUNT}", mentions=(ACCOUNT,))
    assert look(poked, AFTER, to=poked).quotes(AFTER.id) is None
