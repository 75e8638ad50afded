"""bot/message.py: values that cannot be wrong."""

from datetime import datetime

import pytest
from chats import GROUP, PRIVATE, START, say

from bot.message import Message, Origin, Scene


@pytest.mark.parametrize("text", ["group:20001", "private:10001", "group:a:b"])
def test_a_scene_is_read_back_as_it_is_written(text: str) -> None:
    assert str(Scene.parse(text)) == text


@pytest.mark.parametrize("text", ["", "group", "group:", ":1", "guild:1", "Group:1", "private:"])
def test_what_names_no_scene_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="scene must be group:ID or private:ID"):
        Scene.parse(text)


def test_only_a_private_chat_is_private() -> None:
    assert (PRIVATE.private, GROUP.private) == (True, False)


def test_a_time_without_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="without time zone"):
        Message("1", GROUP, "2", "x", datetime(2026, 11, 20), "嗨")


def test_messages_are_hashable_in_spite_of_their_segments() -> None:
    message = say(0, "1", "嗨", segments=({"type": "text", "data": {"text": "嗨"}},))
    assert len({message, say(0, "1", "嗨", segments=message.segments)}) == 1


def test_a_message_is_human_unless_said_otherwise() -> None:
    assert Message("1", GROUP, "2", "x", START, "嗨").origin is Origin.HUMAN
