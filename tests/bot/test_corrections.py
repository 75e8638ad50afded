"""bot/corrections.py over a real archive: what the owner says of answers."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from chats import ACCOUNT, FRIEND, GROUP, ME, PRIVATE, at, say

from bot import corrections
from bot.archive import Archive, Decision
from bot.corrections import Correction, How
from bot.message import Message, Origin

OWNER = "555"


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    opened = Archive(f"sqlite:///{tmp_path / 'archive.db'}")
    yield opened
    opened.close()


def exchange(archive: Archive, seconds: float, bubbles: tuple[str, ...], *, decided: bool = True) -> list[Message]:
    """A friend asks, the twin answers with bubbles as `bot.presence` stores them; gives the bubbles."""
    asked = say(seconds, FRIEND, "吃什么", seq=int(seconds))
    said = [say(seconds + 4, ACCOUNT, text, id=f"b{seconds:g}-{n}", seq=int(seconds)) for n, text in enumerate(bubbles)]
    archive.append([asked, *said])
    if decided:
        archive.decide(Decision(GROUP, asked.id, at(seconds + 9), "xiaoman", "v2", "spoke"))
    return said


def correct(
    archive: Archive, bubble: Message, how: How, wanted: tuple[str, ...] | None, seconds: float = 100
) -> Correction | None:
    return corrections.correct(
        archive, bubble, how, wanted, by=OWNER, told=f"c{seconds:g}", persona="xiaoman", now=at(seconds)
    )


def recall(archive: Archive, message_id: str, seconds: float) -> None:
    """As plugins/recorder does it."""
    corrections.recalled(archive, GROUP, message_id, by=OWNER, persona="xiaoman", now=at(seconds))
    archive.recall(GROUP, message_id, at(seconds))


def test_a_correction_holds_the_whole_answer_and_what_it_was_to(archive: Archive) -> None:
    exchange(archive, 0, ("早",))
    said = exchange(archive, 30, ("吃面", "加个蛋"))
    exchange(archive, 60, ("后来的",))
    assert correct(archive, said[1], How.UNLIKE, ("不吃",)) is not None
    (kept,) = corrections.current(archive)
    assert kept == Correction(
        GROUP, f"{FRIEND}-30", FRIEND, ("b30-0", "b30-1"), ("吃面", "加个蛋"), ("不吃",), How.UNLIKE, OWNER, "c100",
        "xiaoman", "v2", at(100),
    )  # fmt: skip


def test_a_second_correction_takes_the_place_of_the_first(archive: Archive) -> None:
    said = exchange(archive, 0, ("吃面", "加个蛋"))
    correct(archive, said[0], How.UNLIKE, None)
    correct(archive, said[1], How.HUSH, (), 110)
    (kept,) = corrections.current(archive)
    assert (kept.how, kept.wanted, kept.rejected) == (How.HUSH, (), ("吃面", "加个蛋"))
    assert [c.how for c in corrections.current(archive, until=at(105))] == [How.UNLIKE]


def test_an_answer_that_is_not_over_is_corrected_by_what_stands_before_it(archive: Archive) -> None:
    (said,) = exchange(archive, 0, ("吃面",), decided=False)
    kept = correct(archive, said, How.HUSH, ())
    assert kept is not None
    assert (kept.on, kept.persona, kept.version) == (f"{FRIEND}-0", "xiaoman", None)


@pytest.mark.parametrize(("after", "kept"), [(40, 1), (69, 1), (71, 0), (3600, 0)])
def test_only_what_is_taken_back_within_a_minute_is_a_correction(archive: Archive, after: float, kept: int) -> None:
    (said,) = exchange(archive, 0, ("吃面",))  # the answer ended after 9 s
    recall(archive, said.id, after)
    found = corrections.current(archive)
    assert len(found) == kept
    assert [(c.how, c.rejected, c.wanted) for c in found] == [(How.RECALLED, ("吃面",), None)] * kept
    assert [m.text for m in archive.window(GROUP, 10)] == ["吃什么"], "it does not stand as said"


def test_of_an_answer_taken_back_in_part_the_rest_is_what_was_wanted(archive: Archive) -> None:
    said = exchange(archive, 0, ("吃面", "加个蛋", "快点"))
    recall(archive, said[2].id, 20)
    recall(archive, said[0].id, 21)
    (kept,) = corrections.current(archive)
    assert (kept.rejected, kept.wanted) == (("吃面", "加个蛋", "快点"), ("加个蛋",))
    recall(archive, said[1].id, 22)
    (kept,) = corrections.current(archive)
    assert (kept.rejected, kept.wanted) == (("吃面", "加个蛋", "快点"), None)


def test_a_recall_after_words_changes_nothing_of_the_correction(archive: Archive) -> None:
    (said,) = exchange(archive, 0, ("吃面",))
    correct(archive, said, How.UNLIKE, ("不吃",), 20)
    recall(archive, said.id, 25)
    assert [(c.how, c.rejected, c.wanted) for c in corrections.current(archive)] == [(How.UNLIKE, ("吃面",), ("不吃",))]


def test_a_command_taken_back_takes_its_correction_with_it(archive: Archive) -> None:
    (said,) = exchange(archive, 0, ("吃面",))
    archive.append([say(20, OWNER, "/不像 不吃", id="c20", origin=Origin.SYSTEM)])
    correct(archive, said, How.UNLIKE, ("不吃",), 20)
    recall(archive, "c20", 500)
    assert corrections.current(archive) == []
    correct(archive, said, How.HUSH, (), 600)
    assert [c.how for c in corrections.current(archive)] == [How.HUSH]


def test_what_others_said_and_what_is_gone_is_not_corrected(archive: Archive) -> None:
    (said,) = exchange(archive, 0, ("吃面",))
    assert corrections.answered(archive, GROUP, f"{FRIEND}-0") is None
    assert corrections.answered(archive, PRIVATE, None) is None
    newest = corrections.answered(archive, GROUP, None)
    assert newest is not None
    assert newest.id == said.id
    archive.recall(GROUP, said.id, at(500))
    assert correct(archive, replace(said, text=""), How.UNLIKE, None) is None
    lone = say(900, ACCOUNT, "自言自语", scene=PRIVATE)
    archive.append([lone])
    assert correct(archive, lone, How.HUSH, ()) is None


@pytest.mark.parametrize(("person", "left"), [(FRIEND, 0), (OWNER, 0), (ME, 1)])
def test_forgetting_somebody_removes_the_rows_themselves(archive: Archive, person: str, left: int) -> None:
    (said,) = exchange(archive, 0, ("吃面",))
    correct(archive, said, How.UNLIKE, None)
    correct(archive, said, How.UNLIKE, ("不吃",), 110)
    assert corrections.forget(archive, person) == (0 if left else 2)
    assert len(corrections.current(archive)) == left
    assert len(archive.timeline(GROUP, corrections.KIND)) == 2 * left


def test_lines_typed_behind_the_command_are_bubbles() -> None:
    assert corrections.bubbles_of(" 好耶 ↵ ↵我也要  去") == ("好耶", "我也要  去")
    assert timedelta(seconds=corrections.RECALL_S) == timedelta(minutes=1)
