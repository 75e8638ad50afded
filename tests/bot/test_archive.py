"""bot/archive.py on a real SQLite file: stored once, in order, and nothing recorded is lost."""

import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config as AlembicConfig
from chats import FRIEND, GROUP, ME, OTHER, PRIVATE, START, at, say

import bot.archive
from bot.archive import WAITING_MAX, Archive, Decision
from bot.errors import ArchiveError
from bot.message import Origin, Scene
from bot.optouts import OptOuts


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "archive.db"


@pytest.fixture
def archive(file: Path) -> Iterator[Archive]:
    opened = Archive(f"sqlite:///{file}")
    yield opened
    opened.close()


@pytest.fixture
def lock(archive: Archive, file: Path) -> Iterator[sqlite3.Connection]:
    """Another process in the middle of writing: `BEGIN IMMEDIATE` until it rolls back."""
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield other
    other.close()


def texts(archive: Archive, limit: int = 100) -> list[str]:
    return [m.text for m in archive.window(GROUP, limit)]


# -- messages -------------------------------------------------------------------------------------


def test_a_message_comes_back_as_it_was_stored(archive: Archive) -> None:
    said = say(
        0.25, FRIEND, "嗨↵你好", reply_to="7", mentions=("10001", "all"), seq=12, origin=Origin.TWIN,
        segments=({"type": "text", "data": {"text": "嗨\n你好", "x": [1, None]}},),
    )  # fmt: skip
    assert archive.append([said]) == 1
    assert archive.get(GROUP, said.id) == said
    assert archive.window(GROUP, 10) == [replace(said, segments=())], "a look has no use for them"
    assert archive.window(GROUP, 10, segments_of="嗨") == [said]
    assert archive.window(GROUP, 10, segments_of="再见") == [replace(said, segments=())]


def test_appending_twice_adds_nothing(archive: Archive) -> None:
    said = [say(i, FRIEND, str(i)) for i in range(5)]
    assert [archive.append(said), archive.append(said), archive.append([*said, *said])] == [5, 0, 0]
    assert texts(archive) == ["0", "1", "2", "3", "4"]


def test_twins_in_one_batch_are_stored_once(archive: Archive) -> None:
    said = say(0, FRIEND, "嗨")
    assert archive.append([said, said]) == 1


def test_a_replay_is_told_from_a_new_message(archive: Archive, lock: sqlite3.Connection) -> None:
    said = say(0, FRIEND, "在吗")
    assert archive.add(said), "the store is locked: it waits"
    assert not archive.add(said), "it waits already"
    lock.rollback()
    assert archive.add(say(1, FRIEND, "人呢")), "what waited is not counted with it"
    assert not archive.add(said)
    assert archive.add(replace(said, time=at(3600))), "the same id much later is another message"
    archive.recall(GROUP, said.id, at(2))
    assert not archive.add(said), "it was taken back"
    assert texts(archive) == ["人呢", "在吗"]


def test_what_was_just_stored_is_given_as_it_stands_now(archive: Archive, file: Path) -> None:
    said = [say(i, FRIEND, text) for i, text in enumerate(("语音", "撤回的", "别人删的"))]
    for message in said:
        archive.add(message)
    with sqlite3.connect(file) as other:
        other.execute("UPDATE messages SET text = '改了'")
    assert [archive.get(GROUP, m.id) for m in said] == said, "it is not read back"
    archive.retell(GROUP, said[0].id, "[语音:晚点到]")
    archive.recall(GROUP, said[1].id, at(5))
    found = [archive.get(GROUP, m.id) for m in said]
    assert [m and (m.text, m.recalled) for m in found] == [("[语音:晚点到]", False), ("", True), ("别人删的", False)]
    with archive.engine.begin() as connection:  # as `twin forget` does beside a daemon
        OptOuts(archive.engine).forget(connection, FRIEND, "owner", at(9))
        connection.execute(sa.text("DELETE FROM messages"))
    archive.optouts.reload()
    assert archive.get(GROUP, said[2].id) is None


def test_of_the_second_of_a_wish_what_was_stored_was_said_before_it(archive: Archive) -> None:
    archive.append(
        [say(0, FRIEND, "先说的"), say(0.5, FRIEND, "同一秒之后"), say(2, OTHER, "别人"), say(3, FRIEND, "后说的")]
    )
    archive.withhold(FRIEND, at(0), None)
    assert texts(archive) == ["先说的", "别人"]


def test_one_id_in_two_scenes_is_two_messages(archive: Archive) -> None:
    assert archive.append([say(0, FRIEND, "群", id="1"), say(0, FRIEND, "私", PRIVATE, id="1")]) == 2


def test_an_id_met_again_much_later_is_another_message(archive: Archive) -> None:
    first, second = say(0, FRIEND, "旧", id="7"), say(86400, OTHER, "新", id="7")
    assert archive.append([first]) + archive.append([second]) == 2
    assert archive.append([first, second]) == 0
    assert texts(archive) == ["旧", "新"]
    assert archive.get(GROUP, "7") == first


def test_what_a_client_names_by_an_id_met_before_is_the_newest_of_them(archive: Archive) -> None:
    old, new = say(0, FRIEND, "旧", id="7"), say(86400, OTHER, "[语音]", id="7")
    for other in ("70", "7a", "6", "%"):
        archive.append([say(90000, FRIEND, other, id=other)])
    assert archive.stored_as(GROUP, "7") == "7", "nothing is stored under it yet"
    assert archive.add(old)
    assert archive.stored_as(GROUP, "7") == "7"
    assert archive.add(new)
    stored = archive.stored_as(GROUP, "7")
    assert stored == f"7@{new.time.timestamp():.0f}"
    heard = archive.get(GROUP, "7")
    assert heard is not None
    assert (heard.id, heard.text) == (stored, "[语音]"), "whoever listens is told what was just said"
    archive.retell(GROUP, "7", "[语音]到哪了")
    heard = archive.get(GROUP, "7")
    assert heard is not None
    assert heard.text == "[语音]到哪了"
    archive.recall(GROUP, stored, at(86410))
    assert texts(archive) == ["旧", "70", "7a", "6", "%"]
    assert archive.stored_as(GROUP, "%") == "%"


def test_the_order_is_time_then_the_chats_number_then_arrival(archive: Archive) -> None:
    said = [
        say(1, FRIEND, "三", id="c", seq=12), say(1, FRIEND, "二", id="b", seq=11),
        say(0, FRIEND, "一", id="a", seq=99),        say(2, FRIEND, "四", id="d"), say(2, FRIEND, "五", id="e"),
    ]  # fmt: skip
    for message in said:
        archive.append([message])
    assert texts(archive) == ["一", "二", "三", "四", "五"]
    assert [m.text for m in archive.history(GROUP)] == texts(archive)


def test_the_order_does_not_depend_on_arrival_where_numbers_are_known(archive: Archive) -> None:
    said = [say(i // 3, FRIEND, str(i), id=f"m{i}", seq=1000 + i) for i in range(60)]
    random.Random(0).shuffle(said)
    archive.append(said)
    assert texts(archive) == [str(i) for i in range(60)]


def test_the_window_holds_the_newest_and_begins_after_a_moment(archive: Archive) -> None:
    archive.append([say(i, FRIEND, str(i)) for i in range(10)])
    assert texts(archive, 3) == ["7", "8", "9"]
    assert [m.text for m in archive.window(GROUP, 100, after=at(6))] == ["7", "8", "9"]


def test_system_messages_are_kept_and_not_shown(archive: Archive) -> None:
    archive.append([say(0, FRIEND, "/about", id="1", origin=Origin.SYSTEM)])
    assert texts(archive) == []
    assert archive.history(GROUP) == []
    stored = archive.get(GROUP, "1")
    assert stored is not None
    assert stored.text == "/about"


def test_history_ends_where_it_is_told(archive: Archive) -> None:
    archive.append([say(i, FRIEND, str(i)) for i in range(4)])
    assert [m.text for m in archive.history(GROUP, until=at(1))] == ["0", "1"]


# -- recalls --------------------------------------------------------------------------------------


def test_a_recalled_message_loses_its_words_and_is_not_shown(archive: Archive, file: Path) -> None:
    archive.append([say(0, FRIEND, "秘密", id="1"), say(1, FRIEND, "嗨")])
    assert archive.recall(GROUP, "1", at(5)) is True
    assert texts(archive) == ["嗨"]
    stored = archive.get(GROUP, "1")
    assert stored is not None
    assert (stored.recalled, stored.text, stored.segments) == (True, "", ())
    assert "秘密" not in str(sqlite3.connect(file).execute("SELECT * FROM messages").fetchall())


def test_a_backfill_does_not_bring_recalled_words_back(archive: Archive) -> None:
    said = say(0, FRIEND, "秘密", id="1")
    archive.append([said])
    archive.recall(GROUP, "1", at(5))
    assert archive.append([said]) == 0
    assert texts(archive) == []


def test_a_recall_of_something_never_seen_keeps_its_words_out(archive: Archive) -> None:
    assert archive.recall(GROUP, "1", at(500)) is False
    archive.append([say(0, FRIEND, "秘密", id="1")])
    assert texts(archive) == []


def test_a_recall_in_another_scene_changes_nothing(archive: Archive) -> None:
    archive.append([say(0, FRIEND, "嗨", id="1")])
    archive.recall(PRIVATE, "1", at(5))
    assert texts(archive) == ["嗨"]


# -- a store that cannot be written ---------------------------------------------------------------


def test_a_locked_store_makes_messages_wait_and_the_window_shows_them(
    archive: Archive, lock: sqlite3.Connection
) -> None:
    lock.execute("ROLLBACK")
    archive.append([say(0, FRIEND, "前")])
    lock.execute("BEGIN IMMEDIATE")
    assert archive.append([say(2, FRIEND, "后", id="z")]) == 0
    assert archive.append([say(1, FRIEND, "中")]) == 0
    assert archive.waiting == 2
    assert texts(archive) == ["前", "中", "后"]
    found = archive.get(GROUP, "z")
    assert found is not None
    assert found.text == "后"
    lock.execute("ROLLBACK")
    assert archive.append([say(3, FRIEND, "末")]) == 3
    assert archive.waiting == 0
    assert texts(archive) == ["前", "中", "后", "末"]


def test_a_message_heard_twice_while_locked_is_stored_once(archive: Archive, lock: sqlite3.Connection) -> None:
    said = say(0, FRIEND, "嗨")
    archive.append([said])
    archive.append([said])
    lock.execute("ROLLBACK")
    assert archive.flush() == 1
    assert archive.lost == 0


def test_a_recall_while_locked_is_not_forgotten(archive: Archive, lock: sqlite3.Connection, file: Path) -> None:
    lock.execute("ROLLBACK")
    archive.append([say(0, FRIEND, "早说的", id="1")])
    lock.execute("BEGIN IMMEDIATE")
    archive.append([say(1, FRIEND, "刚说的", id="2")])
    assert archive.recall(GROUP, "1", at(2)) is True
    assert archive.recall(GROUP, "2", at(2)) is True
    assert archive.recall(GROUP, "3", at(2)) is False
    assert texts(archive) == []
    gone = archive.get(GROUP, "2")
    assert gone is not None
    assert (gone.recalled, gone.text) == (True, "")
    lock.execute("ROLLBACK")
    archive.append([say(0, FRIEND, "没见过的", id="3")])
    assert texts(archive) == []
    rows = sqlite3.connect(file).execute("SELECT message_id, recalled, text FROM messages ORDER BY message_id")
    assert rows.fetchall() == [("1", 1, ""), ("2", 1, ""), ("3", 1, "")]


def test_what_is_noted_and_decided_while_locked_is_not_forgotten(archive: Archive, lock: sqlite3.Connection) -> None:
    lock.execute("ROLLBACK")
    archive.note(GROUP, "state", "on", at(0))
    archive.decide(Decision(GROUP, "1", at(1), "xiaoman", None, "silent"))
    lock.execute("BEGIN IMMEDIATE")
    archive.note(GROUP, "state", "held", at(2))
    archive.note(PRIVATE, "state", "off", at(2))
    archive.decide(Decision(GROUP, "2", at(3), "xiaoman", "v1", "spoke", {"draw": 0.5}))
    for place in ("memory", "store"):
        assert archive.latest(GROUP, "state") == ("held", at(2))
        assert [value for _, value in archive.timeline(GROUP, "state")] == ["on", "held"]
        assert [d.outcome for d in archive.decisions(GROUP, 9)] == ["spoke", "silent"]
        assert archive.decisions(GROUP)[0].why == {"draw": 0.5}
        assert archive.behind == (place == "memory")
        if lock.in_transaction:
            lock.execute("ROLLBACK")
            archive.flush()


def test_a_full_disk_makes_messages_wait_until_there_is_room(file: Path) -> None:
    archive = Archive(f"sqlite:///{file}")
    bound: list[int] = []

    @sa.event.listens_for(archive._engine, "checkout")
    def _bounded(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute(f"PRAGMA max_page_count={bound[0] if bound else 1_000_000}")

    archive.append([say(0, FRIEND, "前")])
    bound.append(sqlite3.connect(file).execute("PRAGMA page_count").fetchone()[0])
    for i in range(1, 4):
        archive.append([say(i, FRIEND, str(i) + "长" * 3000)])
    assert archive.waiting >= 2
    assert [t[0] for t in texts(archive)] == ["前", "1", "2", "3"]
    bound.clear()
    archive.flush()
    assert (archive.waiting, archive.lost) == (0, 0)
    assert [t[0] for t in texts(archive)] == ["前", "1", "2", "3"]
    archive.close()


def test_what_waits_is_bounded_and_the_loss_counted(archive: Archive, lock: sqlite3.Connection) -> None:
    archive.append([say(i, FRIEND, str(i)) for i in range(WAITING_MAX + 2)])
    assert (archive.waiting, archive.lost) == (WAITING_MAX, 2)
    assert archive.window(GROUP, WAITING_MAX + 2)[0].text == "2"


def test_one_message_the_store_can_never_hold_does_not_hold_up_the_others(archive: Archive) -> None:
    said = [say(0, FRIEND, "前"), say(1, FRIEND, "坏", seq=2**70), say(2, FRIEND, "后"), say(3, FRIEND, "半\ud83d")]
    assert archive.append(said) == 2
    assert (archive.waiting, archive.lost) == (0, 2)
    assert texts(archive) == ["前", "后"]
    assert archive.append([say(4, FRIEND, "再")]) == 1


@pytest.mark.parametrize("depth", [150, 980, 100_000])
def test_segments_nested_too_deeply_are_left_out_and_the_message_is_kept(archive: Archive, depth: int) -> None:
    deep: list[object] = []
    for _ in range(depth):
        deep = [deep]
    said = [say(0, FRIEND, "前"), say(1, FRIEND, "深", segments=({"type": "x", "data": {"x": deep}},))]
    assert archive.append([*said, say(2, FRIEND, "后")]) == 3
    assert (archive.waiting, archive.lost) == (0, 0)
    assert texts(archive) == ["前", "深", "后"]
    assert archive.window(GROUP, 3)[1].segments == ()
    assert archive.append([say(3, FRIEND, "再")]) == 1


def test_a_recall_the_store_can_never_hold_does_not_hold_up_the_others(archive: Archive) -> None:
    said = say(0, FRIEND, "嗨")
    archive.append([said])
    assert not archive.recall(GROUP, "半\ud83d", START)
    assert archive.recall(GROUP, said.id, START)
    assert not archive.behind
    assert texts(archive) == []


def test_a_store_that_cannot_be_read_gives_no_name_and_keeps_a_recall(archive: Archive, file: Path) -> None:
    said = say(0, FRIEND, "嗨")
    archive.append([said])
    archive.close()  # Its idle connection would not let another process have the file alone; it opens again.
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ArchiveError, match="cannot be read"):
        archive.get(GROUP, said.id)
    assert archive.name_of(FRIEND) is None
    archive.recall(GROUP, said.id, START)
    assert archive.behind
    other.close()
    archive.flush()
    assert not archive.behind
    assert texts(archive) == []
    assert archive.name_of(FRIEND) is not None


def test_what_still_waits_is_written_when_closing(file: Path) -> None:
    archive = Archive(f"sqlite:///{file}")
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    archive.append([say(0, FRIEND, "嗨")])
    other.execute("ROLLBACK")
    other.close()
    archive.close()
    again = Archive(f"sqlite:///{file}")
    assert texts(again) == ["嗨"]
    again.close()


_CHILD = """
import sys
from datetime import UTC, datetime
from bot.archive import Archive
from bot.message import Message, Scene
archive, scene = Archive(sys.argv[1]), Scene("group", "20001")
for i in range(100000):
    archive.append([Message(str(i), scene, "1", "x", datetime.fromtimestamp(1795329019 + i, UTC), str(i))])
    print(i, flush=True)
"""


def test_kill_9_loses_no_recorded_message(file: Path) -> None:
    command = [sys.executable, "-c", _CHILD, f"sqlite:///{file}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as child:
        assert child.stdout is not None
        recorded = [line for line, _ in zip(child.stdout, range(50), strict=False)]
        child.send_signal(signal.SIGKILL)
        recorded += [line for line in child.stdout.read().splitlines() if line]
    archive = Archive(f"sqlite:///{file}")
    stored = {m.text for m in archive.window(GROUP, 100_000)}
    assert len(recorded) >= 50
    assert {line.strip() for line in recorded} <= stored
    assert archive.append([say(0, FRIEND, "还能写")]) == 1
    archive.close()


def test_a_file_that_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "archive.db").write_text("not a database at all, " * 100)
    with pytest.raises(ArchiveError, match=r"archive\.db' cannot be opened"):
        Archive(f"sqlite:///{tmp_path / 'archive.db'}")


def test_an_archive_of_a_newer_version_is_left_as_it_is(archive: Archive, file: Path) -> None:
    archive.append([say(0, FRIEND, "嗨")])
    archive.close()
    with sqlite3.connect(file) as store:
        store.execute("UPDATE alembic_version SET version_num = '9999'")
    before = file.read_bytes()
    said = r"archive\.db' has a schema .*'9999'.* a newer qqtwin made it; update"
    with pytest.raises(ArchiveError, match=said) as refused:
        Archive(f"sqlite:///{file}")
    assert "\n" not in str(refused.value)
    assert file.read_bytes() == before


def test_an_archive_of_the_first_version_is_brought_up_with_what_it_holds(file: Path) -> None:
    file.parent.mkdir()
    migrations = AlembicConfig()
    migrations.set_main_option("script_location", str(Path(bot.archive.__file__).parent / "migrations"))
    with sa.create_engine(f"sqlite:///{file}").begin() as connection:
        migrations.attributes["connection"] = connection
        command.upgrade(migrations, "0001")
        row = {
            "scene": str(GROUP), "message_id": "m1", "sender_id": FRIEND, "sender_name": "阿强",
            "time_ms": 1772424000000, "text": "嗨", "origin": "human", "mentions": "[]", "recalled": False,
            "segments": "[]", "scene_name": "", "source": "live",
        }  # fmt: skip
        names, marks = ", ".join(row), ", ".join(f":{name}" for name in row)
        connection.execute(sa.text(f"INSERT INTO messages ({names}) VALUES ({marks})"), row)
    opened = Archive(f"sqlite:///{file}")
    assert [(m.id, m.text) for m in opened.window(GROUP, 10)] == [("m1", "嗨")]
    assert opened.append([say(1, FRIEND, "在吗")]) == 1
    opened.optouts.note(FRIEND, "out", "self", at(2))
    assert opened.optouts.is_out(FRIEND)
    opened.close()


def test_a_password_in_the_url_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArchiveError) as caught:
        Archive("sqlite://user:s3cret@host/nowhere/a.db")
    assert "s3cret" not in str(caught.value)


# -- looking things up ----------------------------------------------------------------------------


def test_names_speakers_and_counts(archive: Archive) -> None:
    archive.append(
        [
            say(0, FRIEND, "一", sender_name="旧名"), say(5, FRIEND, "二", sender_name="新名"),
            say(6, FRIEND, "三", PRIVATE, sender_name="昵称"), say(7, OTHER, "四", sender_name="新名"),
            say(8, ME, "五"), say(9, ME, "六", origin=Origin.TWIN),
        ]
    )  # fmt: skip
    assert archive.name_of(FRIEND) == "昵称"
    assert archive.name_of(FRIEND, GROUP) == "新名"
    assert archive.name_of("nobody") is None
    assert archive.speakers(GROUP) == {"旧名": {FRIEND}, "新名": {FRIEND, OTHER}, "小满": {ME}}
    assert archive.last_spoke(GROUP, [ME], before=at(9)) == at(8)
    assert archive.last_spoke(GROUP, [ME], before=at(8)) is None
    assert (archive.count([ME]), archive.count([FRIEND]), archive.count([FRIEND], after=at(5))) == (1, 3, 1)


def test_scenes_are_listed_by_size(archive: Archive) -> None:
    archive.append([say(0, FRIEND, "一"), say(9, FRIEND, "二"), say(3, FRIEND, "三", PRIVATE)])
    first, second = archive.scenes()
    assert (first.scene, first.name, first.messages, first.first, first.last) == (GROUP, "测试群", 2, START, at(9))
    assert (second.scene, second.messages) == (PRIVATE, 1)


# -- decisions and the scene log ------------------------------------------------------------------


def test_decisions_come_back_newest_first(archive: Archive) -> None:
    why = {"p_speak": 0.25, "terms": {"intercept": -3.0}}
    first = Decision(GROUP, "1", at(0), "xiaoman", None, "silent", why)
    second = replace(first, message_id="2", time=at(1), version="20261122-0400", outcome="spoke")
    for decision in (first, second, replace(second, scene=PRIVATE)):
        archive.decide(decision)
    assert archive.decisions(GROUP, 5) == [second, first]
    assert archive.decisions(GROUP) == [second]


def test_the_scene_log_tells_what_was_going_on_when(archive: Archive) -> None:
    for seconds, kind, value in [(0, "state", "on"), (5, "state", "held"), (6, "persona", "x"), (9, "state", "off")]:
        archive.note(GROUP, kind, value, at(seconds))
    assert archive.timeline(GROUP, "state") == [(at(0), "on"), (at(5), "held"), (at(9), "off")]
    assert archive.timeline(GROUP, "state", limit=1) == [(at(9), "off")]
    assert archive.latest(GROUP, "persona") == ("x", at(6))
    assert archive.latest(PRIVATE, "state") is None


def test_of_two_notes_of_one_moment_the_later_written_counts(archive: Archive) -> None:
    archive.note(GROUP, "state", "on", at(0))
    archive.note(GROUP, "state", "off", at(0))
    assert archive.latest(GROUP, "state") == ("off", at(0))


def test_everything_is_there_after_a_restart(archive: Archive, file: Path) -> None:
    archive.append([say(0, FRIEND, "嗨")])
    archive.note(GROUP, "state", "on", START + timedelta(milliseconds=7))
    archive.close()
    again = Archive(f"sqlite:///{file}")
    assert texts(again) == ["嗨"]
    assert again.latest(GROUP, "state") == ("on", START + timedelta(milliseconds=7))
    again.close()


def test_the_accounts_own_recall_is_found_in_the_chat_it_was_said_in(archive: Archive) -> None:
    other = Scene("private", "10002")
    archive.append([say(0, ME, "说错了", PRIVATE, id="7"), say(0, FRIEND, "嗯", other, id="7")])
    notice = Scene("private", ME)
    assert archive.scene_of_recall(notice, "7") == PRIVATE
    assert archive.recall(notice, "7", at(5)) is True
    assert [m.text for m in archive.history(PRIVATE)] == []
    assert [m.text for m in archive.history(other)] == ["嗯"], "an equal id in another chat stands"
    assert archive.scene_of_recall(notice, "8") == notice
    archive.append([say(5, FRIEND, "早", PRIVATE, id="9"), say(86400, ME, "又错了", PRIVATE, id="9")])
    assert archive.scene_of_recall(notice, "9") == PRIVATE, "though its id was met before"


def test_a_checkpoint_writes_sqlites_log_back_into_the_file(archive: Archive, file: Path) -> None:
    words = "写回文件里去的一句话".encode()
    archive.append([say(0, FRIEND, words.decode())])
    assert words not in file.read_bytes(), "it stands in the log alone"
    archive.checkpoint()
    assert words in file.read_bytes()


def test_what_another_process_notes_is_read_some_seconds_later(
    archive: Archive, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.note(GROUP, "bias", "1", at(0))
    assert archive.latest(GROUP, "bias") == ("1", at(0))
    other = Archive(f"sqlite:///{file}")
    other.note(GROUP, "bias", "2", at(5))
    other.close()
    later = time.monotonic() + 3
    monkeypatch.setattr("bot.archive.clock.monotonic", lambda: later)
    assert archive.latest(GROUP, "bias") == ("2", at(5))
    archive.note(GROUP, "bias", "3", at(6))
    assert archive.latest(GROUP, "bias") == ("3", at(6)), "its own are read at once"
