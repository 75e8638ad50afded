"""bot/shown.py: one reading of stored messages, for the live window and for the corpus."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from chats import FRIEND, GROUP, ME, say

from bot.archive import Archive
from bot.config import Cleaning, Conversation, Settings
from bot.engine import Measure
from bot.memory import Memory
from bot.message import Message
from bot.persona import Persona, Spec
from bot.prompt import FORMATS, Piece, render
from bot.shown import shown
from training.corpus import build
from training.samples import renderer_for

MANAGER = "2854196310"


def texts(messages: list[Message], **rules: object) -> list[str]:
    return [m.text for m in shown(messages, Cleaning(**rules))]  # type: ignore[arg-type]


def test_words_and_names_are_redacted_and_the_rest_is_the_very_message() -> None:
    plain, told = say(0, FRIEND, "在吗"), say(1, FRIEND, "打13800001111", sender_name="张三13900002222")
    first, second = shown([plain, told], Cleaning())
    assert first is plain
    assert (second.text, second.sender_name, second.id) == ("打[手机号]", "张三[手机号]", told.id)
    assert texts([told], redact=False) == [told.text]


@pytest.mark.parametrize(("rules", "want"), [
    ({}, ["@阿强 看[图片]", "[图片]", "嗯"]),
    ({"strip_mentions": True}, ["看[图片]", "[图片]", "嗯"]),
    ({"strip_placeholders": True}, ["@阿强 看", "嗯"]),
    ({"strip_mentions": True, "strip_placeholders": True}, ["看", "嗯"]),
    ({"system_senders": (ME,)}, []),
])  # fmt: skip
def test_what_is_stripped_or_hidden_is_as_set(rules: dict[str, object], want: list[str]) -> None:
    said = [say(0, ME, "@阿强 看[图片]"), say(1, ME, "[图片]"), say(2, ME, "嗯"), say(3, ME, " ")]
    assert texts(said, **rules) == want


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    opened = Archive(f"sqlite:///{tmp_path / 'archive.db'}")
    yield opened
    opened.close()


@pytest.mark.parametrize("rules", [
    Cleaning(), Cleaning(redact=False), Cleaning(strip_mentions=True, strip_placeholders=True),
    Cleaning(system_senders=()),
])  # fmt: skip
def test_the_live_prompt_is_the_trained_prompt_whatever_is_set(archive: Archive, rules: Cleaning) -> None:
    quoted = say(0, FRIEND, "我电话13800001111", sender_name="阿强13800001111")
    archive.append([
        quoted, say(5, ME, "@阿强13800001111 记下了 QQ100001111"), say(40, MANAGER, "新人入群"),
        say(60, FRIEND, "[图片]", reply_to=quoted.id), say(100, FRIEND, "看到没", reply_to=quoted.id),
    ])  # fmt: skip
    settings = Settings(corpus=rules)
    persona = Persona("xiaoman", Path(), Spec(display_name="小满", people=(ME,)), None)

    window = Memory(archive, settings).window(GROUP, persona, FORMATS["gemma"], Measure(2048, len))
    built = build(archive, [ME], [], Conversation(), cleaning=rules)
    (part,) = built.scenes
    renderer = renderer_for(part, built, FORMATS["gemma"], persona.system_prompt)
    trained: list[Piece] = render(renderer, part.exchanges, part.quoted)
    assert list(window.pieces) == trained
    assert ("13800001111" in "".join(p.text for p in trained)) is not rules.redact


def test_of_a_message_longer_than_qq_sends_the_beginning_is_looked_at() -> None:
    (seen,) = texts([say(0, ME, "字" * 350_000)])
    assert seen == "字" * 5000
