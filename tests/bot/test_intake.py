"""bot/intake.py, bot/sameness.py: many messages at once, none twice, and never the twin's words as the person's."""

import os
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from chats import FRIEND, GROUP, ME, OTHER, PRIVATE, at, say
from nasty import TEXTS

from bot.archive import Archive
from bot.errors import ArchiveBusy
from bot.events import Recall
from bot.intake import Intake
from bot.message import Message, Origin

POSTGRES = os.environ.get("TWIN_TEST_POSTGRES")
"""A SQLAlchemy URL of an empty database, where there is one to test with."""


@pytest.fixture(params=["sqlite", "postgresql"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Archive]:
    if request.param == "postgresql" and not POSTGRES:
        pytest.skip("TWIN_TEST_POSTGRES names no database")
    opened = Archive(POSTGRES if request.param == "postgresql" and POSTGRES else f"sqlite:///{tmp_path / 'a.db'}")
    yield opened
    if request.param == "postgresql":
        with opened.engine.begin() as connection:
            for table in ("messages", "same_messages", "imports", "decisions", "scene_log"):
                connection.exec_driver_sql(f"DELETE FROM {table}")
    opened.close()


def told(source: str, *messages: Message) -> list[Message]:
    """Messages as another client has them: other ids."""
    return [replace(m, id=f"{source}-{m.id}") for m in messages]


def texts(archive: Archive) -> list[tuple[str, str]]:
    return [(m.text, m.origin.value) for m in archive.history(GROUP)]


CARD: tuple[dict[str, Any], ...] = ({"type": "json", "data": {"data": '{"a": [1, "二"]}'}},)


def test_a_batch_comes_back_as_append_would_have_stored_it(archive: Archive) -> None:
    said = [
        say(1, FRIEND, "嗨↵你好", reply_to="7", mentions=("10001", "all"), seq=12, segments=CARD),
        say(2, OTHER, "群", id="x", recalled=True),
        say(3, FRIEND, "私", PRIVATE, id="x"),
    ]
    taken = Intake(archive, "a").take(said)
    assert (taken.added, taken.same, taken.refused) == (3, 0, [])
    assert [archive.get(m.scene, m.id) for m in said] == [
        said[0], replace(said[1], recalled=True), said[2],
    ]  # fmt: skip


def test_every_text_comes_back_as_it_was(archive: Archive) -> None:
    allowed = [t for t in TEXTS if "\0" not in t or archive.engine.dialect.name == "sqlite"]
    for which, part in enumerate((allowed, [t for t in allowed if "\0" not in t])):
        said = [
            say(i, FRIEND, text, id=f"{which}-{i}", sender_name=text, seq=2**63 - 1 - i, reply_to=text or None,
                segments=({"type": "text", "data": {"text": text, "n": 2**60, "x": [None, True, 0.5]}},))
            for i, text in enumerate(part)
        ]  # fmt: skip
        assert Intake(archive, "a").take(said).added == len(part) > 100
        assert [archive.get(GROUP, m.id) for m in said] == said


def test_twice_adds_nothing_and_an_overlap_only_what_is_new(archive: Archive) -> None:
    said = [say(i, FRIEND, str(i)) for i in range(30)]
    counts = [Intake(archive, "a").take(part).added for part in (said[:20], said[:20], said[10:], [*said, *said])]
    assert counts == [20, 0, 10, 0]
    assert [t for t, _ in texts(archive)] == [str(i) for i in range(30)]


def test_an_id_met_again_much_later_is_another_message(archive: Archive) -> None:
    first, second = say(0, FRIEND, "旧", id="7"), say(86400, OTHER, "新", id="7")
    assert Intake(archive, "a").take([first, second]).added == 2
    assert Intake(archive, "a").take([second, first]).added == 0
    assert [t for t, _ in texts(archive)] == ["旧", "新"]


def test_one_message_the_store_can_never_hold_does_not_hold_up_the_others(archive: Archive) -> None:
    said = [say(i, FRIEND, str(i)) for i in range(20)]
    said[3], said[11] = replace(said[3], seq=2**70), replace(said[11], text="半\ud83d")
    taken = Intake(archive, "a").take(said)
    assert (taken.added, taken.refused) == (18, [said[3], said[11]])


def test_a_recalled_message_stays_without_words(archive: Archive) -> None:
    said = say(0, FRIEND, "秘密", id="1", seq=None)
    Intake(archive, "a").take([said])
    archive.recall(GROUP, "1", at(5))
    assert Intake(archive, "a").take([said]).added == 0
    assert Intake(archive, "b").take(told("b", said)).added == 0
    assert texts(archive) == []


def test_two_sources_with_the_chats_own_numbers_are_matched_by_them(archive: Archive) -> None:
    said = [say(i // 2, FRIEND, "@旧名 早" if i == 4 else str(i), id=f"a{i}", seq=100 + i) for i in range(10)]
    other = [replace(m, id=f"b{i}", text=m.text.replace("旧名", "新名")) for i, m in enumerate(said)]
    assert Intake(archive, "a").take(said).added == 10
    taken = Intake(archive, "b").take([*other, replace(other[0], id="b99", seq=999), say(60, OTHER, "新", id="b100")])
    assert (taken.added, taken.same) == (2, 10)


def test_without_numbers_sender_second_and_words_decide_and_each_counts_once(archive: Archive) -> None:
    haha = [say(0, FRIEND, "哈哈", id=f"a{i}") for i in range(2)]
    assert Intake(archive, "a").take(haha).added == 2, "one source's second 哈哈 in a second is a second one"
    three = [say(0.4, FRIEND, "哈 哈", id=f"b{i}", seq=i + 1) for i in range(3)]
    intake = Intake(archive, "b")
    parts = [intake.take([m]) for m in three]
    assert [(p.added, p.same) for p in parts] == [(0, 1), (0, 1), (1, 0)]
    again = [Intake(archive, "b").take([m]) for m in three]
    assert [(p.added, p.same) for p in again] == [(0, 0)] * 3
    others = [say(0, OTHER, "哈哈", id="c0"), say(1, FRIEND, "哈哈", id="c1"), say(0, FRIEND, "呵呵", id="c2")]
    assert Intake(archive, "c").take(others).added == 3
    assert len(texts(archive)) == 6


SAME = [
    ("哈哈[表情]", "哈哈[微笑]"), ("[表情][图片]", "[贴贴][动画表情:猫]"), ("[图片]", "[动画表情]"),
    ("[表情]", "[动画表情]"),
]  # fmt: skip
OTHERS = [
    ("[表情]", "[图片]"), ("[表情]", "[语音]"), ("[表情]", "[文件:a.txt]"), ("[图片]", "[微笑]"), ("[微笑]", "[呲牙]"),
    ("[表情]", "[]"), ("[][表情]", "[表情][]"), ("[表情][呲牙]", "[微笑][表情]"), ("哈[表情]", "[微笑]"),
    ("[表情]", "[微笑][微笑]"),
]  # fmt: skip


@pytest.mark.parametrize(("export", "named", "same"), [(*pair, 1) for pair in SAME] + [(*pair, 0) for pair in OTHERS])
@pytest.mark.parametrize("order", [1, -1], ids=["export first", "named first"])
def test_faces_without_names_are_those_with_names(
    archive: Archive, export: str, named: str, same: int, order: int
) -> None:
    said = [say(0, FRIEND, export, id="x1", seq=None), say(0, FRIEND, named, id="9001", seq=7)][::order]
    assert [Intake(archive, source).take([m]).same for source, m in zip("ab", said, strict=True)] == [0, same]
    elsewhere = [say(1, FRIEND, named, id="1"), say(0, OTHER, named, id="2")]
    assert Intake(archive, "c").take(elsewhere).added == 2


def test_every_face_of_a_second_counts_once_and_equal_words_come_first(archive: Archive) -> None:
    named = [say(0, FRIEND, text, id=f"n{i}", seq=i + 1) for i, text in enumerate(("[动画表情]", "[微笑]", "[图片]"))]
    export = [say(0, FRIEND, text, id=f"x{i}", seq=None) for i, text in enumerate(("[图片]", "[表情]", "[表情]"))]
    assert Intake(archive, "export").take(export[:1]).added == 1
    taken = Intake(archive, "named").take(named)
    assert (taken.added, taken.same) == (2, 1)
    assert [t for t, _ in texts(archive)] == ["[图片]", "[动画表情]", "[微笑]"], "the picture was the picture"
    taken = Intake(archive, "export").take(export)
    assert (taken.added, taken.same) == (0, 2)
    more = [replace(m, id=f"y{i}") for i, m in enumerate([*export, export[1]])]
    taken = Intake(archive, "another").take(more)
    assert (taken.added, taken.same) == (1, 3), "a third face in the second is another message"


def test_numbers_of_a_chat_tell_faces_apart(archive: Archive) -> None:
    said = [say(0, FRIEND, "[表情]", id="1", seq=1), say(0, FRIEND, "[微笑]", id="2", seq=2)]
    assert [Intake(archive, source).take([m]).added for source, m in zip("ab", said, strict=True)] == [1, 1]


def test_quotes_and_recalls_of_a_second_source_find_the_stored_message(archive: Archive) -> None:
    first = say(0, FRIEND, "早", id="a1", seq=1)
    Intake(archive, "a").take([first])
    intake = Intake(archive, "b")
    intake.take([replace(first, id="b1")])
    intake.take([say(9, OTHER, "回", id="b2", reply_to="b1"), say(10, OTHER, "再回", id="b3", reply_to="b2")])
    assert [m.reply_to for m in archive.history(GROUP)] == [None, "a1", "b2"]
    assert intake.take_back([Recall(GROUP, "b1", FRIEND, at(20)), Recall(GROUP, "b2", FRIEND, at(20))]) == 0
    assert [m.id for m in archive.history(GROUP)] == ["b3"]
    assert [m.id for m in archive.history(GROUP, recalled=True)] == ["a1", "b2", "b3"], "no tombstone beside them"


def test_a_quote_finds_the_stored_message_batches_later(archive: Archive) -> None:
    first = say(0, FRIEND, "早", id="a1", seq=1)
    Intake(archive, "a").take([first])
    intake = Intake(archive, "b")
    assert intake.take([replace(first, id="b1")]).same == 1
    for n in range(2, 5):  # far from what other sources told, and all new
        intake.take([say(n * 86400, OTHER, "回", id=f"b{n}", reply_to="b1")])
    again = Intake(archive, "b")
    again.take([say(9 * 86400, OTHER, "再回", id="b9", reply_to="b1")])
    assert [m.reply_to for m in archive.history(GROUP)] == [None, "a1", "a1", "a1", "a1"]


def test_a_recall_finds_another_sources_message_by_its_number_of_that_day(archive: Archive) -> None:
    twin = say(-1, ME, "答", id="t1", seq=7, origin=Origin.TWIN)  # bears the number of what it answers
    said = [say(0, FRIEND, "秘密", id="a1", seq=7), twin, say(0, FRIEND, "别的", id="a2", seq=8)]
    Intake(archive, "live").take([*said, say(-9 * 86400, FRIEND, "旧", id="a0", seq=7)])
    intake = Intake(archive, "import:nt")
    intake.take_back([Recall(GROUP, "nt1", "", at(60), seq=7), Recall(GROUP, "nt2", "", at(60), seq=99)])
    assert [m.text for m in archive.history(GROUP)] == ["旧", "答", "别的"]
    assert Intake(archive, "later").take([say(50, FRIEND, "秘密二", id="nt2", seq=99)]).added == 0, "a tombstone"


def test_a_recall_no_archive_can_hold_costs_no_other(archive: Archive) -> None:
    Intake(archive, "a").take([say(0, FRIEND, "秘密", id="a1")])
    bad = Recall(GROUP, "x\ud800", FRIEND, at(5))
    assert Intake(archive, "a").take_back([bad, Recall(GROUP, "a1", FRIEND, at(5)), bad]) == 2
    assert texts(archive) == []


def sent(seconds: float, text: str, *segments: dict[str, Any], **more: Any) -> Message:
    """A bubble of the twin on the person's own account, as bot/presence.py stores it."""
    raw = segments or ({"type": "text", "data": {"text": text}},)
    return say(seconds, ME, text, id=f"live-{seconds}-{text}", seq=5, origin=Origin.TWIN, segments=raw, **more)


def test_the_twins_own_words_never_become_the_persons(archive: Archive) -> None:
    at_segment, quoting = {"type": "at", "data": {"qq": FRIEND}}, {"type": "reply", "data": {"id": "live-0"}}
    archive.append(
        [
            say(0, FRIEND, "在吗", id="live-0", seq=5),
            sent(2, "在"),
            sent(2, "在的"),
            sent(2, "@阿强 早", quoting, at_segment, {"type": "text", "data": {"text": " 早"}}),
            say(20, ME, "已关闭", id="live-9", origin=Origin.SYSTEM, sender_name=""),
        ]
    )  # fmt: skip
    account = [
        say(0, FRIEND, "在吗", id="1", seq=5),
        say(3, ME, "在", id="2", seq=6),
        say(9, ME, "在的 ", id="3", seq=7),
        say(15, ME, "@强哥 早", id="4", seq=8, mentions=(FRIEND,)),
        say(21, ME, "已关闭", id="5", seq=9),
        say(30, ME, "在", id="6", seq=10),
        say(31, ME, "我自己说的", id="7", seq=11),
    ]
    taken = Intake(archive, "import:ntqq:nt_msg.db").take(account)
    assert (taken.added, taken.same) == (2, 5)
    assert [m.text for m in archive.history(GROUP) if m.origin is Origin.HUMAN] == ["在吗", "在", "我自己说的"]
    again = Intake(archive, "import:ntqq:nt_msg.db").take(account)
    assert (again.added, again.same) == (0, 0)


def test_a_message_taken_for_the_twins_with_its_own_number_is_known_by_it(archive: Archive) -> None:
    backfilled = say(0, ME, "@旧名 早", id="b1", seq=7, origin=Origin.TWIN)
    Intake(archive, "backfill").take([backfilled])
    account = [replace(backfilled, id="1", text="@新名 早", origin=Origin.HUMAN), say(0, FRIEND, "早", id="2", seq=8)]
    taken = Intake(archive, "import:ntqq:nt_msg.db").take(account)
    assert (taken.added, taken.same) == (1, 1)
    assert texts(archive) == [("@旧名 早", "twin"), ("早", "human")]


@pytest.mark.parametrize(("seconds", "known"), [(-59, True), (599, True), (-70, False), (700, False)])
def test_how_far_from_its_row_what_the_twin_sent_can_lie(archive: Archive, seconds: float, known: bool) -> None:
    archive.append([sent(1000, "早点睡")])
    assert Intake(archive, "b").take([say(1000 + seconds, ME, "早点睡", id="1")]).same == int(known)


def test_a_history_imported_whole_is_remembered(archive: Archive) -> None:
    intake = Intake(archive, "a")
    assert intake.imported("d") is None
    intake.finished("d", {"messages": 3})
    intake.finished("d", {"messages": 4})
    found = intake.imported("d")
    assert found is not None
    assert found[1] == {"messages": 3}
    assert abs((datetime.now(UTC) - found[0]).total_seconds()) < 60


def test_a_locked_store_is_told_and_nothing_of_the_batch_is_in(tmp_path: Path) -> None:
    store = Archive(f"sqlite:///{tmp_path / 'a.db'}")
    holder = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    intake, said = Intake(store, "a"), [say(i, FRIEND, str(i)) for i in range(3)]
    with pytest.raises(ArchiveBusy, match=r"a\.db' is busy"):
        intake.take(said)
    holder.close()
    assert intake.take(said).added == 3
    store.close()
