"""bot/commands.py: who may run what."""

from datetime import UTC, datetime, timedelta

import pytest
from chats import GROUP, PRIVATE

from bot.commands import Call, Commands, Who
from bot.message import Message, Scene

OWNER, SOMEONE, ACCOUNT = "1", "2", "9"
AT = datetime(2026, 9, 1, tzinfo=UTC)


def registry(calls: list[Call]) -> Commands:
    commands = Commands("/", (OWNER,))

    async def handler(call: Call) -> str:
        calls.append(call)
        return "好"

    commands.add("about", Who.EVERYONE, handler)
    commands.add("why", Who.GROUP_ADMIN, handler, private_for_everyone=True)
    commands.add("twin", Who.GROUP_ADMIN, handler)
    commands.add("train", Who.SUPERUSER, handler)
    return commands


async def run(commands: Commands, text: str, scene: Scene, sender: str, role: str = "") -> str | None:
    return await commands.run(Message("1", scene, sender, "", AT, text), role, ACCOUNT)


ALLOWED = {
    # (sender, role, scene): commands that answer
    (OWNER, "member", GROUP): {"about", "why", "twin", "train"},
    (OWNER, "", PRIVATE): {"about", "why", "twin", "train"},
    (SOMEONE, "owner", GROUP): {"about", "why", "twin"},
    (SOMEONE, "admin", GROUP): {"about", "why", "twin"},
    (SOMEONE, "member", GROUP): {"about"},
    (SOMEONE, "", GROUP): {"about"},
    (SOMEONE, "", PRIVATE): {"about", "why"},
    # A role in a private message would be made up: it counts nothing.
    (SOMEONE, "owner", PRIVATE): {"about", "why"},
    (SOMEONE, "superuser", GROUP): {"about"},
}


@pytest.mark.parametrize(("sender", "role", "scene"), ALLOWED)
async def test_who_may_run_what(sender: str, role: str, scene: Scene) -> None:
    calls: list[Call] = []
    commands = registry(calls)
    answered = {n for n in commands.names() if await run(commands, f"/{n}", scene, sender, role) is not None}
    assert answered == ALLOWED[(sender, role, scene)]
    assert len(calls) == len(answered)
    assert commands.names() == ["about", "train", "twin", "why"]


async def test_the_handler_gets_the_words_and_who_typed_them() -> None:
    calls: list[Call] = []
    answer = await run(registry(calls), "/twin  on   now", GROUP, SOMEONE, "admin")
    assert answer == "好"
    assert calls == [Call(GROUP, SOMEONE, Who.GROUP_ADMIN, ACCOUNT, AT, ("on", "now"), None, "1", "on   now")]


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("/about", True), ("/about x", True), ("/ about", True), ("about", False), ("/", False), ("", False),
        ("/aboutx", False), ("/weather", False), ("说/about", False), (" /about", False), ("//about", False),
    ],
)  # fmt: skip
async def test_only_a_known_name_after_the_prefix_is_a_command(text: str, is_one: bool) -> None:
    commands = registry([])
    assert commands.is_command(Message("1", GROUP, OWNER, "", AT, text)) is is_one
    assert (await run(commands, text, GROUP, OWNER) is not None) is is_one


async def test_the_prefix_can_be_anything() -> None:
    commands = Commands("小满，", (OWNER,))

    async def handler(call: Call) -> str:
        return " ".join(call.args)

    commands.add("about", Who.EVERYONE, handler)
    assert await run(commands, "小满，about 你", GROUP, SOMEONE) == "你"
    assert not commands.is_command(Message("1", GROUP, SOMEONE, "", AT, "/about"))


@pytest.mark.parametrize(
    ("text", "quotes", "rest"),
    [
        ("@小满 /why 好耶↵我也要去  啊", True, "好耶↵我也要去  啊"), ("@小 满/why a", True, "a"),
        ("@小满 /why a", False, None), ("/why↵早呀", False, "早呀"),
    ],
)  # fmt: skip
async def test_a_mention_that_comes_with_a_quote_is_passed_over_and_lines_are_kept(
    text: str, quotes: bool, rest: str | None
) -> None:
    calls: list[Call] = []
    message = Message("1", GROUP, OWNER, "", AT, text, reply_to="7" if quotes else None)
    await registry(calls).run(message, "", ACCOUNT)
    assert [call.rest for call in calls] == ([] if rest is None else [rest])


async def test_a_question_takes_the_next_choice_of_whom_it_was_put_to_and_only_that() -> None:
    commands, taken = registry([]), list[str]()

    async def begin(call: Call) -> str:
        async def answered(answer: Call) -> str:
            taken.append(answer.rest)
            return "收到"

        commands.ask(call, ("1", "2"), answered)
        return "1 还是 2？"

    commands.add("blind", Who.SUPERUSER, begin)
    assert await run(commands, "1", PRIVATE, OWNER) is None, "nothing was asked yet"
    assert await run(commands, "/blind", PRIVATE, OWNER) == "1 还是 2？"
    for text, scene, sender in (("3", PRIVATE, OWNER), ("1", GROUP, OWNER), ("1", PRIVATE, SOMEONE)):
        assert await run(commands, text, scene, sender) is None
    late = Message("1", PRIVATE, OWNER, "", AT + timedelta(minutes=31), "1")
    assert not commands.is_command(late)
    assert commands.is_command(Message("1", PRIVATE, OWNER, "", AT, " 2 "))
    assert await run(commands, " 2 ", PRIVATE, OWNER) == "收到"
    assert taken == ["2"]
    assert await run(commands, "1", PRIVATE, OWNER) is None, "it was answered"


async def test_what_somebody_wants_of_their_words_is_obeyed_always() -> None:
    commands = registry([])

    async def begin(call: Call) -> str:
        async def answered(_: Call) -> str:
            return "好"

        commands.ask(call, ("确认",), answered, always=True)
        return "？"

    commands.add("forgetme", Who.EVERYONE, begin, always=True)

    def always(text: str) -> bool:
        return commands.is_always(Message("1", GROUP, SOMEONE, "", AT, text))

    assert [always(text) for text in ("/forgetme", "/about", "嗨", "确认")] == [True, False, False, False]
    assert await run(commands, "/forgetme", GROUP, SOMEONE) == "？"
    assert always("确认")
