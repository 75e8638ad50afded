"""bot/optouts.py over a real archive: who is out when, and what of a message is kept."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chats import FRIEND, GROUP, ME, OTHER, PRIVATE, at, say

from bot.archive import Archive
from bot.message import Message, Origin
from bot.optouts import Why, without_mention, without_quoted_words


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    opened = Archive(f"sqlite:///{tmp_path / 'archive.db'}")
    yield opened
    opened.close()


def forget(archive: Archive, person: str, seconds: float) -> None:
    with archive.engine.begin() as connection:
        archive.optouts.forget(connection, person, "self", at(seconds))
    archive.optouts.reload()


LATE = 1e6
"""Seconds: after everything that was wished."""
WISHES = [
    # wishes in order → by second: why a message of then is not kept
    ([], {0: None}),
    (["out 10"], {5: Why.OUT, 10: Why.OUT, 20: Why.OUT}),
    (["out 10", "in 20"], {5: None, 15: Why.OUT, 20: None, 25: None}),
    (["out 10", "in 20", "out 30"], {5: Why.OUT, 25: Why.OUT, 35: Why.OUT}),
    (["forgotten 10"], {5: Why.FORGOTTEN, 10: Why.FORGOTTEN, 20: Why.FORGOTTEN}),
    (["forgotten 10", "in 20"], {5: Why.FORGOTTEN, 15: Why.FORGOTTEN, 25: None}),
    (["forgotten 10", "in 10"], {10: Why.FORGOTTEN, 11: None}),
    (["forgotten 10", "in 20", "out 30"], {5: Why.FORGOTTEN, 15: Why.FORGOTTEN, 25: Why.OUT, 35: Why.OUT}),
    (["out 10", "forgotten 15", "in 20", "forgotten 40"], {25: Why.FORGOTTEN, 50: Why.FORGOTTEN}),
    (["in 20", "out 10"], {15: Why.OUT, 25: None}),  # a replayed command counts from its own time
]


@pytest.mark.parametrize(("wishes", "expected"), WISHES)
def test_what_is_kept_depends_on_when_it_was_said(
    archive: Archive, tmp_path: Path, wishes: list[str], expected: dict[int, Why | None]
) -> None:
    for wish in wishes:
        kind, seconds = wish.split()
        if kind == "forgotten":
            forget(archive, OTHER, float(seconds))
        else:
            archive.optouts.note(OTHER, kind, "self", at(float(seconds)))
    again = Archive(f"sqlite:///{tmp_path / 'archive.db'}")  # after a restart
    for wishes_of in (archive.optouts, again.optouts):
        assert {seconds: wishes_of.why(OTHER, at(seconds)) for seconds in expected} == expected
        assert wishes_of.why(FRIEND, at(15)) is None
        assert wishes_of.is_out(OTHER) == (expected[max(expected)] is not None)
    again.close()


def test_a_wish_of_another_process_is_seen(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Archive(f"sqlite:///{tmp_path / 'archive.db'}")
    assert not archive.optouts.is_out(OTHER)
    other.optouts.note(OTHER, "out", "self", at(0))
    other.close()
    monkeypatch.setattr("bot.optouts.RELOAD_S", 0.0)
    assert archive.optouts.is_out(OTHER)


def test_of_somebody_out_a_row_says_who_and_when_and_nothing_else(archive: Archive) -> None:
    archive.optouts.note(OTHER, "out", "self", at(0))
    said = say(
        5, OTHER, "秘密", seq=3, reply_to="1", mentions=(ME,), segments=({"type": "text", "data": {"text": "秘密"}},)
    )
    kept, why = archive.optouts.kept(said)
    assert why is Why.OUT
    assert kept == Message(said.id, GROUP, OTHER, "", at(5), "", recalled=True, seq=3, scene_name="测试群")
    command, _ = archive.optouts.kept(replace(said, origin=Origin.SYSTEM))
    assert command is not None
    assert command.sender_id == "", "else it would count as a line of the program's own"
    twins = replace(said, origin=Origin.TWIN)
    assert archive.optouts.kept(twins) == (twins, None), "the twin may speak from their account"


def test_of_somebody_forgotten_a_row_does_not_say_who_and_a_private_chat_leaves_none(archive: Archive) -> None:
    forget(archive, FRIEND, 10)
    kept, why = archive.optouts.kept(say(5, FRIEND, "秘密"))
    assert kept is not None
    assert (kept.sender_id, kept.sender_name, kept.text, kept.recalled, why) == ("", "", "", True, Why.FORGOTTEN)
    assert archive.optouts.kept(say(5, ME, "回你", PRIVATE)) == (None, Why.FORGOTTEN)
    archive.optouts.note(FRIEND, "in", "self", at(20))
    later = say(25, ME, "你好", PRIVATE)
    assert archive.optouts.kept(later) == (later, None)


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "data": {"text": words}}


def mention(number: str, **data: str) -> dict[str, Any]:
    return {"type": "at", "data": {"qq": number, **data}}


NODE = {"type": "node", "data": {"user_id": OTHER, "nickname": "小红", "content": [text("她的话")]}}
FORWARD = {
    "type": "forward",
    "data": {
        "id": "f", "content": [
            {"user_id": int(OTHER), "message": [text("她的话")]},
            {"sender": {"user_id": OTHER}, "message": [text("她的话")]},
            {"user_id": 5, "message": [text("别人的话")]},
        ],
    },
}  # fmt: skip
MENTIONS = [
    # text, segments, mentions, names → text, segments
    ("@小红 你", [mention(OTHER, name="小红"), text(" 你")], (OTHER,), (), "@某人 你", [text("@某人"), text(" 你")]),
    ("@小红你", [mention(OTHER, name="@小红"), text("你")], (OTHER,), (), "@某人你", [text("@某人"), text("你")]),
    (f"@{OTHER} 在", [mention(OTHER)], (OTHER, ME), (), "@某人 在", [text("@某人")]),
    ("@红姐 @小红花 看", [], (), ("红姐", "小红"), "@某人 @小红花 看", []),
    ("看 @小红", [], (), ("小红",), "看 @某人", []),
    ("小红今天来吗", [], (), ("小红",), "小红今天来吗", []),
    ("[聊天记录]", [NODE], (), (), "[聊天记录]", []),
    ("[聊天记录]", [FORWARD], (), (), "[聊天记录]", [
        {"type": "forward", "data": {"id": "f", "content": [{"user_id": 5, "message": [text("别人的话")]}]}}
    ]),
    (f"{OTHER}9", [text(f"{OTHER}9")], (), (), f"{OTHER}9", [text(f"{OTHER}9")]),
]  # fmt: skip


@pytest.mark.parametrize(("said", "raw", "mentions", "names", "text_after", "raw_after"), MENTIONS)
def test_others_words_lose_the_mention_and_what_bears_the_number(
    said: str, raw: list[Any], mentions: tuple[str, ...], names: tuple[str, ...], text_after: str, raw_after: list[Any]
) -> None:
    after = without_mention(say(1, ME, said, segments=tuple(raw), mentions=mentions), OTHER, names)
    assert (after.text, list(after.segments)) == (text_after, raw_after)
    assert after.mentions == tuple(m for m in mentions if m != OTHER)


def test_a_quote_keeps_the_id_alone() -> None:
    quote = {"type": "reply", "data": {"id": "7", "text": "原话", "qq": OTHER}}
    assert without_quoted_words([quote, text("嗯")]) == ({"type": "reply", "data": {"id": "7"}}, text("嗯"))


def test_a_mention_of_somebody_forgotten_is_kept_without_name_and_number(archive: Archive) -> None:
    forget(archive, OTHER, 10)
    said = say(20, ME, "@小红 在吗", mentions=(OTHER,), segments=(mention(OTHER, name="小红"), text(" 在吗")))
    kept, why = archive.optouts.kept(said)
    assert kept is not None
    assert (kept.text, kept.mentions, why) == ("@某人 在吗", (), None)


ID_ALONE = {"type": "reply", "data": {"id": "7"}}
OTHERS_ALONE = {"type": "forward", "data": {"id": "f", "content": [{"user_id": 5, "message": [text("别人的话")]}]}}
FORWARDED: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "a node": (NODE, ()),
    "a forward": (FORWARD, (OTHERS_ALONE,)),
    "a quote": ({"type": "reply", "data": {"id": "7", "text": "她的话", "qq": OTHER}}, (ID_ALONE,)),
    "a quote without a number": ({"type": "reply", "data": {"id": "7", "text": "她的话"}}, (ID_ALONE,)),
}


@pytest.mark.parametrize("wish", ["out", "forgotten"])
@pytest.mark.parametrize(("raw", "kept_of_it"), FORWARDED.values(), ids=FORWARDED)
def test_what_others_forward_or_quote_does_not_bring_their_words_back(
    archive: Archive, wish: str, raw: dict[str, Any], kept_of_it: tuple[Any, ...]
) -> None:
    if wish == "out":
        archive.optouts.note(OTHER, "out", "self", at(10))
    else:
        forget(archive, OTHER, 10)
    kept, why = archive.optouts.kept(say(20, ME, "[聊天记录]看", segments=(raw, text("看"))))
    assert kept is not None
    assert (kept.text, kept.segments, why) == ("[聊天记录]看", (*kept_of_it, text("看")), None)


def test_a_mention_of_somebody_out_is_others_words_and_stays(archive: Archive) -> None:
    archive.optouts.note(OTHER, "out", "self", at(10))
    said = say(20, ME, "@小红 在吗", mentions=(OTHER,), segments=(mention(OTHER, name="小红"), text(" 在吗")))
    assert archive.optouts.kept(said) == (said, None)


def test_a_forward_without_end_is_kept_without_what_it_forwards(archive: Archive) -> None:
    forget(archive, OTHER, 10)
    inner: list[Any] = [{"type": "node", "data": {"user_id": OTHER, "content": [text("她的话")]}}]
    for _ in range(300):
        inner = [{"type": "forward", "data": {"id": "1", "content": inner}}]
    kept, _ = archive.optouts.kept(say(20, ME, "[聊天记录]", segments=(*inner, text("看"))))
    assert kept is not None
    assert kept.segments == (text("看"),)


@pytest.mark.parametrize("who", [(FRIEND, OTHER), (OTHER, FRIEND)], ids=["at them", "by them"])
def test_of_a_poke_by_or_at_somebody_forgotten_nothing_is_kept_for_its_id_names_them(
    archive: Archive, who: tuple[str, str]
) -> None:
    poke = say(20, who[0], "[戳一戳]", id=f"poke-20-{who[0]}-{who[1]}", mentions=(who[1],))
    archive.optouts.note(OTHER, "out", "self", at(5))
    assert archive.optouts.kept(poke)[0] is not None, "of somebody out the number is known anyway"
    forget(archive, OTHER, 10)
    assert archive.optouts.kept(poke) == (None, Why.FORGOTTEN)
    other = say(20, FRIEND, "[戳一戳]", id=f"poke-20-{FRIEND}-{ME}", mentions=(ME,))
    assert archive.optouts.kept(other) == (other, None)


def test_words_of_somebody_out_read_as_taken_back_until_they_are_in_again(archive: Archive) -> None:
    said = [say(1, OTHER, "以前的话"), say(2, ME, "嗯"), say(3, FRIEND, "喂")]
    archive.append(said)
    archive.optouts.note(OTHER, "out", "self", at(10))
    assert [m.text for m in archive.window(GROUP, 10)] == ["嗯", "喂"]
    assert [m.text for m in archive.window(GROUP, 2)] == ["嗯", "喂"], "the newest that may be seen"
    assert [m.text for m in archive.history(GROUP)] == ["嗯", "喂"]
    whole = archive.history(GROUP, recalled=True)
    assert [(m.text, m.recalled) for m in whole] == [("", True), ("嗯", False), ("喂", False)]
    assert (whole[0].sender_id, whole[0].sender_name, whole[0].segments) == (OTHER, "", ())
    quoted = archive.get(GROUP, said[0].id)
    assert quoted is not None
    assert (quoted.text, quoted.recalled) == ("", True)
    assert archive.count([OTHER]) == 0
    assert [m.sender_id for m in archive.times(GROUP, at(0))] == [ME, FRIEND]
    assert archive.containing("以前", [OTHER], 5) == []
    assert "小红" not in archive.speakers(GROUP)
    archive.optouts.note(OTHER, "in", "self", at(20))
    assert [m.text for m in archive.window(GROUP, 10)] == ["以前的话", "嗯", "喂"]
    assert archive.count([OTHER]) == 1
