"""bot/forgetting.py on real files: what somebody said is gone to the last byte, and everybody else's is not."""

import json
import os
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from chats import ACCOUNT, FRIEND, GROUP, ME, at, say

from bot import config, corrections, forgetting
from bot.archive import Archive, Decision
from bot.config import Settings
from bot.corrections import How
from bot.errors import ArchiveBusy, ArchiveError
from bot.events import POKE_ID, Recall
from bot.forgetting import Forgotten
from bot.intake import Intake, imports_table, same_table, without_file_name
from bot.message import Message, Origin, Scene
from bot.optouts import Why
from bot.rows import decisions_table, messages_table, scene_log_table
from bot.stickers import Stickers

POSTGRES = os.environ.get("TWIN_TEST_POSTGRES")
WHO, NAME, CARD, SHARED = "987654321", "林小夏", "夏夏", "小夏的名片"
WORDS = "只有她说过的暗号蓝鲸"
CHAT = Scene("private", WHO)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "archive.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def archive(request: pytest.FixtureRequest, file: Path) -> Iterator[Archive]:
    if request.param == "postgresql" and not POSTGRES:
        pytest.skip("TWIN_TEST_POSTGRES names no database")
    opened = Archive(POSTGRES if request.param == "postgresql" and POSTGRES else f"sqlite:///{file}")
    yield opened
    if request.param == "postgresql":
        with opened.engine.begin() as connection:
            for table in ("messages", "same_messages", "imports", "decisions", "scene_log", "optouts"):
                connection.exec_driver_sql(f"DELETE FROM {table}")
    opened.close()


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "data": {"text": words}}


def theirs(seconds: float, words: str = WORDS, scene: Scene = GROUP, **more: Any) -> Message:
    fields = {"id": f"t{scene.kind[0]}{seconds:g}", "sender_name": NAME, "segments": (text(words),), **more}
    return say(seconds, WHO, words, scene, **fields)


def mine(seconds: float, words: str, scene: Scene = GROUP, **more: Any) -> Message:
    return say(seconds, ME, words, scene, **{"id": f"m{scene.kind[0]}{seconds:g}", "segments": (text(words),), **more})


def fill(archive: Archive) -> None:
    """A group and a private chat with her in every table, and namesakes there and elsewhere."""
    at_her = {"type": "at", "data": {"qq": WHO, "name": NAME}}
    quote = {"type": "reply", "data": {"id": "tg1", "text": WORDS}}
    elsewhere = Scene("group", "20002")
    archive.append([
        theirs(1), theirs(2, "第二句", sender_name=CARD), mine(3, "收到"),
        mine(4, f"@{NAME} 你好", mentions=(WHO,), segments=(at_her, text(" 你好"))),
        mine(5, f"@{CARD} 看这里"), mine(6, "嗯", reply_to="tg1", segments=(quote, text("嗯"))),
        theirs(7, "/about", origin=Origin.SYSTEM), say(8, ACCOUNT, "好的", id="b8"),
        say(9.5, ME, f"/optout {WHO} @{NAME}", id="s10", mentions=(WHO,), segments=(at_her,), origin=Origin.SYSTEM),
        say(9, ACCOUNT, f"没发出去，场景 private:{WHO}", id="s9", sender_name="", origin=Origin.SYSTEM),
        say(10, ME, f"[戳一戳]@{NAME}", id=f"{POKE_ID}1-{ME}-{WHO}", mentions=(WHO,)),
        theirs(11, scene=CHAT), mine(12, "只对她说的", CHAT),
        mine(13, f"{NAME}今天来吗"),
        theirs(2.5, "第三句", sender_name=SHARED), say(16, FRIEND, "我也叫小夏", id="n16", sender_name=SHARED),
        mine(17, f"@{SHARED} 说的是谁"),
        say(14, FRIEND, "我也叫夏夏", elsewhere, id="n14", sender_name=CARD),
        mine(15, f"@{CARD} 你是另一个", elsewhere),
    ])  # fmt: skip
    archive.decide(Decision(GROUP, "tg2", at(8), "xiaoman", None, "spoke", {"p_silent": 0.5}))
    archive.decide(Decision(GROUP, f"{POKE_ID}1-{ME}-{WHO}", at(10), "xiaoman", None, "silent"))
    archive.decide(Decision(CHAT, "tp11", at(12), "xiaoman", None, "silent"))
    for scene, kind, value in [
        (CHAT, "state", "on"), (GROUP, "state", "on"), (GROUP, "window:xiaoman", f"{POKE_ID}1-{ME}-{WHO}"),
    ]:  # fmt: skip
        archive.note(scene, kind, value, at(0))
    bubble = archive.get(GROUP, "b8")
    assert bubble is not None
    corrections.correct(archive, bubble, How.HUSH, (), by=ME, told="c", persona="xiaoman", now=at(20))
    intake = Intake(archive, "import:chatlab:history.json")
    counted = {
        "senders": {WHO: 3, ME: 2}, "owners": {ME: 2}, "names": {WHO: NAME, ME: "小满"},
        "scenes": {str(CHAT): 2, str(GROUP): 3}, "messages": 5,
    }  # fmt: skip
    intake.finished("digest", counted)


def forget(archive: Archive, seconds: float = 500) -> Forgotten:
    return replace(forgetting.from_archive(archive, WHO, at(seconds)), corrections=corrections.forget(archive, WHO))


def spelled(words: str) -> list[bytes]:
    """A text as it may lie in a database file: as it is, and as JSON writes it."""
    return [words.encode(), json.dumps(words)[1:-1].encode()]


def bytes_of(file: Path) -> bytes:
    return b"".join(p.read_bytes() for p in sorted(file.parent.glob(f"{file.name}*")))


def test_no_byte_of_somebody_forgotten_is_left_in_the_database(file: Path) -> None:
    archive = Archive(f"sqlite:///{file}")
    fill(archive)
    archive.append([theirs(100 + n, f"{WORDS}{n}" * 40) for n in range(200)])
    # An older release let deleted words stay in the pages.
    old = sqlite3.connect(file, isolation_level=None)
    old.execute("PRAGMA secure_delete=OFF")
    old.execute("CREATE TABLE gone AS SELECT * FROM messages")
    old.execute("DROP TABLE gone")
    old.close()
    gone = (WORDS, NAME, WHO, "第二句", "只对她说的")
    assert all(any(s in bytes_of(file) for s in spelled(words)) for words in gone)
    found = forget(archive)
    archive.compact()
    left = {words for words in gone for s in spelled(words) if s in bytes_of(file)}
    assert left == {NAME}, "in what others typed about her"
    assert bytes_of(file).count(NAME.encode()) == 1
    assert (file.with_name(f"{file.name}-wal")).stat().st_size == 0
    assert found.messages == 205
    archive.close()


def test_deleted_words_are_zeros_even_before_the_file_is_written_anew(file: Path) -> None:
    archive = Archive(f"sqlite:///{file}")
    fill(archive)
    forget(archive)
    archive.close()  # SQLite writes its log back
    assert not any(s in bytes_of(file) for s in spelled(WORDS))


def test_everybody_elses_words_stay_without_the_mentions(archive: Archive) -> None:
    fill(archive)
    found = forget(archive)
    kept = [(m.id, m.text) for m in archive.history(GROUP)]
    assert kept == [
        ("mg3", "收到"), ("mg4", "@某人 你好"), ("mg5", "@某人 看这里"), ("mg6", "嗯"), ("b8", "好的"),
        ("mg13", f"{NAME}今天来吗"), ("n16", "我也叫小夏"), ("mg17", f"@{SHARED} 说的是谁"),
    ]  # fmt: skip
    mentioned, quoting = archive.get(GROUP, "mg4"), archive.get(GROUP, "mg6")
    assert mentioned is not None
    assert quoting is not None
    assert (mentioned.mentions, list(mentioned.segments)) == ((), [text("@某人"), text(" 你好")])
    assert list(quoting.segments) == [{"type": "reply", "data": {"id": "tg1"}}, text("嗯")]
    assert [m.text for m in archive.history(Scene("group", "20002"))] == ["我也叫夏夏", f"@{CARD} 你是另一个"]
    assert (found.messages, found.private, found.mentions, found.corrections) == (5, 2, 5, 1)
    assert set(found.scenes) == {str(GROUP), str(CHAT)}


def test_their_rows_keep_the_place_and_say_neither_who_nor_what(archive: Archive) -> None:
    fill(archive)
    forget(archive)
    whole = {m.id: m for m in archive.history(GROUP, recalled=True)}
    for key, seconds in (("tg1", 1), ("tg2", 2)):
        blank = Message(key, GROUP, "", "", at(seconds), "", recalled=True, scene_name="测试群")
        assert whole[key] == blank
    assert archive.get(GROUP, "tg7") is None, "a command is no part of a conversation"
    assert archive.history(CHAT, recalled=True) == []
    assert archive.decisions(CHAT, 9) == []
    assert [d.message_id for d in archive.decisions(GROUP, 9)] == ["", "tg2"]
    assert archive.timeline(CHAT, "state") == []
    assert archive.timeline(GROUP, "window:xiaoman") == []
    assert len(archive.timeline(GROUP, "state")) == 1
    assert corrections.current(archive) == []
    imported = Intake(archive, "x").imported("digest")
    assert imported is not None
    assert imported[1] == {
        "senders": {ME: 2}, "owners": {ME: 2}, "names": {ME: "小满"}, "scenes": {str(GROUP): 3}, "messages": 5,
    }  # fmt: skip
    for key, who in (("s9", ACCOUNT), ("s10", ME)):
        system = archive.get(GROUP, key)
        assert system is not None
        assert (system.sender_id, system.text, system.segments) == (who, "", ())


def test_forgetting_twice_is_the_same(archive: Archive) -> None:
    fill(archive)
    forget(archive)
    before = archive.history(GROUP, recalled=True)
    again = forget(archive, 501)
    assert (again.messages, again.private, again.mentions, again.scenes) == (0, 0, 0, ())
    archive.compact()
    assert archive.history(GROUP, recalled=True) == before


def test_an_old_history_does_not_bring_them_back(archive: Archive) -> None:
    fill(archive)
    forget(archive)
    old = [
        theirs(31, "以前的话", id="o1"), mine(32, f"@{NAME} 是吗", id="o2"), theirs(33, "私下", CHAT, id="o3"),
        mine(34, "私下回", CHAT, id="o4"), say(35, FRIEND, "早", id="o5"),
    ]  # fmt: skip
    intake = Intake(archive, "old")
    taken = intake.take(old)
    assert [(m.id, why) for m, why in taken.withheld] == [
        ("o1", Why.FORGOTTEN), ("o3", Why.FORGOTTEN), ("o4", Why.FORGOTTEN),
    ]  # fmt: skip
    assert taken.added == 3
    assert intake.take_back([Recall(CHAT, "tp11", "", at(40))]) == 0
    assert archive.history(CHAT, recalled=True) == []
    assert not archive.recall(CHAT, "tp11", at(40))
    with archive.engine.connect() as connection:
        chat = connection.exec_driver_sql(f"SELECT count(*) FROM messages WHERE scene = '{CHAT}'").scalar_one()
    assert chat == 0, "not even a recall says that there was a chat"
    told = {m.id: m for m in archive.history(GROUP, recalled=True)}
    assert (told["o1"].sender_id, told["o1"].text, told["o1"].sender_name) == ("", "", "")
    assert told["o2"].text == "@某人 是吗"
    assert told["o5"].text == "早"


def numbers_left(archive: Archive) -> list[str]:
    """Every cell of the archive that says her number."""
    tables = (messages_table, decisions_table, scene_log_table, same_table, imports_table)
    with archive.engine.connect() as connection:
        rows = [row for table in tables for row in connection.execute(sa.select(table)).all()]
    return [str(cell) for row in rows for cell in row if WHO in str(cell)]


def test_what_is_still_under_way_when_they_are_forgotten_leaves_no_number(archive: Archive) -> None:
    fill(archive)
    forget(archive)
    said, poke = f"{POKE_ID}{10**18}-{ACCOUNT}-{WHO}", f"{POKE_ID}600-{ME}-{WHO}"
    archive.append([
        say(600, ACCOUNT, "在路上的一句", CHAT, id="late", origin=Origin.TWIN),
        say(600, ACCOUNT, "好", CHAT, id="told", sender_name="", origin=Origin.SYSTEM),
        say(600, ACCOUNT, "[戳一戳]", id=said, origin=Origin.TWIN),
        say(600, ACCOUNT, "群里的一句", id="here", origin=Origin.TWIN),
    ])  # fmt: skip
    archive.decide(Decision(CHAT, "tp11", at(600), "xiaoman", None, "spoke"))
    archive.decide(Decision(GROUP, poke, at(600), "xiaoman", None, "spoke"))
    archive.note(CHAT, "state", "on", at(600))
    assert numbers_left(archive) == []
    assert archive.history(CHAT, recalled=True) == []
    assert archive.history(GROUP)[-1].id == "here"
    assert (archive.decisions(CHAT, 9), archive.timeline(CHAT, "state")) == ([], [])
    assert [d.message_id for d in archive.decisions(GROUP, 1)] == [""]
    archive.optouts.note(WHO, "in", "self", at(700))
    archive.append([say(800, ACCOUNT, "又来了", CHAT, id="again", origin=Origin.TWIN)])
    archive.note(CHAT, "state", "on", at(800))
    assert [m.id for m in archive.history(CHAT)] == ["again"]
    assert len(archive.timeline(CHAT, "state")) == 1


@pytest.mark.parametrize("named", [f"friend_{WHO}.json", f"导出:{NAME}.txt"], ids=["number", "name"])
def test_names_of_imported_files_do_not_say_whose_chat_it_was(archive: Archive, named: str) -> None:
    source, other = f"import:ntqq:{named}", "import:chatlab:group.json"
    Intake(archive, source).take([theirs(1), mine(3, "收到")])
    Intake(archive, other).take([theirs(1, id="c1"), mine(3, "收到", id="c3"), mine(200, "晚安", id="c200")])
    Intake(archive, source).take([mine(200, "晚安", id="p200")])
    Intake(archive, source).finished("digest", {"messages": 3})
    forget(archive)
    with archive.engine.connect() as connection:
        sources = [set(connection.scalars(sa.select(t.c.source))) for t in (messages_table, same_table, imports_table)]
    bare = without_file_name(source)
    assert sources == [{bare, other}, {bare, other}, {bare}]
    assert re.fullmatch(r"import:ntqq:[0-9a-f]{12}", bare)


def test_nor_do_those_of_files_imported_later(archive: Archive) -> None:
    forget(archive)
    for number in (WHO, f"{WHO}1"):
        Intake(archive, f"import:ntqq:friend_{number}.json").finished(number, {})
    with archive.engine.connect() as connection:
        sources = list(connection.scalars(sa.select(imports_table.c.source).order_by(imports_table.c.pk)))
    assert sources == [without_file_name(f"import:ntqq:friend_{WHO}.json"), f"import:ntqq:friend_{WHO}1.json"]


def test_the_account_s_own_person_is_forgotten_and_the_twin_s_words_are_not(archive: Archive) -> None:
    """The bot runs on the person's own account: their number is the sender of the twin's bubbles, too."""
    lines = [
        theirs(1), theirs(2, "分身的话", id="b", origin=Origin.TWIN, sender_name="小满"),
        theirs(3, "/forgetme", id="c", origin=Origin.SYSTEM),
        theirs(4, "好", id="a", origin=Origin.SYSTEM, sender_name=""),
    ]  # fmt: skip
    archive.append(lines)
    forget(archive, 10)
    assert [(m.id, m.origin, m.text) for m in archive.history(GROUP)] == [("b", Origin.TWIN, "分身的话")]
    assert archive.get(GROUP, "c") is None
    assert archive.get(GROUP, "a") is not None


def test_what_waits_in_memory_is_forgotten_too(file: Path) -> None:
    archive = Archive(f"sqlite:///{file}")
    forget(archive)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    archive.append([theirs(1), theirs(2, scene=CHAT), mine(3, "回", CHAT), mine(4, "好")])
    archive.note(CHAT, "state", "on", at(5))
    archive.note(GROUP, "state", "on", at(5))
    archive.reconsider()
    other.execute("ROLLBACK")
    other.close()
    assert archive.flush() == 2
    assert [(m.sender_id, m.text) for m in archive.history(GROUP, recalled=True)] == [("", ""), (ME, "好")]
    assert [s.scene for s in archive.scenes()] == [GROUP]
    assert (archive.timeline(CHAT, "state"), len(archive.timeline(GROUP, "state"))) == ([], 1)
    archive.close()


def test_what_waits_while_another_process_forgets_somebody_is_written_without_them(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive(f"sqlite:///{file}")
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    archive.append([theirs(1), theirs(2, scene=CHAT)])
    assert archive.waiting == 2
    other.execute("ROLLBACK")
    other.close()
    process = Archive(f"sqlite:///{file}")
    forgetting.from_archive(process, WHO, at(500), "owner")
    process.close()
    monkeypatch.setattr("bot.optouts.RELOAD_S", 0.0)
    assert archive.flush() == 1
    assert [(m.sender_id, m.text) for m in archive.history(GROUP, recalled=True)] == [("", "")]
    assert [s.scene for s in archive.scenes()] == [GROUP]
    archive.close()


def test_a_held_archive_says_busy_and_loses_nothing(file: Path) -> None:
    archive = Archive(f"sqlite:///{file}")
    fill(archive)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ArchiveBusy):
        forgetting.from_archive(archive, WHO, at(500))
    with pytest.raises(ArchiveBusy):
        archive.compact()
    other.execute("ROLLBACK")
    other.close()
    assert archive.optouts.why(WHO) is None
    assert archive.name_of(WHO) is not None
    assert forget(archive).messages == 5
    archive.close()


def test_a_recalled_message_is_overwritten_too(file: Path) -> None:
    archive = Archive(f"sqlite:///{file}")
    archive.append([theirs(1)])
    archive.recall(GROUP, "tg1", at(2))
    archive.close()
    assert not any(s in bytes_of(file) for s in spelled(WORDS))


# -- beside the archive ---------------------------------------------------------------------------


GIF = b"GIF89a" + b"x" * 40


def test_excerpts_of_chats_go_and_versions_are_named(tmp_path: Path) -> None:
    settings = Settings(paths=config.Paths(data=tmp_path))
    run, version = (
        tmp_path / "runs" / "xiaoman" / "20260101-000000",
        tmp_path / "personas" / "xiaoman" / "versions" / "v1",
    )
    for folder in (tmp_path / "blind", run, version):
        folder.mkdir(parents=True)
    said = [run / f"said-{voice}.json" for voice in ("shown", "person", "likeness-q8")]
    for excerpt in (tmp_path / "blind" / "0123456789ab.json", run / "samples.md", *said):
        excerpt.write_text(WORDS, "utf-8")
    (run / "train.json").write_text("{}")
    with sqlite3.connect(tmp_path / "cleaning.db") as made:
        made.execute("CREATE TABLE verdicts (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
        made.executemany("INSERT INTO verdicts VALUES (?, ?)", [("a", json.dumps(WORDS)), ("b", "4"), ("c", "[1, 2]")])
    made.close()
    found = forgetting.from_files(settings)
    assert (found.files, found.written) == (5, 1)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == [
        "cleaning.db", "runs/xiaoman/20260101-000000/train.json",
    ]  # fmt: skip
    assert not any(s in (tmp_path / "cleaning.db").read_bytes() for s in spelled(WORDS))
    assert forgetting.left(settings) == {"versions": [version], "runs": [run]}


def test_an_excerpt_that_cannot_be_removed_is_named_and_the_others_go(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "xiaoman" / "20260101-000000"
    stuck = tmp_path / "blind" / "aaaaaaaaaaaa.json"
    stuck.mkdir(parents=True)  # no file: it cannot be unlinked, whoever runs this
    run.mkdir(parents=True)
    (run / "samples.md").write_text(WORDS, "utf-8")
    with pytest.raises(ArchiveError, match=r"aaaaaaaaaaaa\.json.* cannot be removed"):
        forgetting.from_files(Settings(paths=config.Paths(data=tmp_path)))
    assert not (run / "samples.md").exists()


@pytest.mark.parametrize("enabled", [True, False])
def test_stickers_of_theirs_go_but_for_those_others_sent_too(tmp_path: Path, enabled: bool) -> None:
    library = Stickers(tmp_path, config.Stickers(enabled=True))
    now = datetime.now(UTC)
    for content, senders in ((GIF, (WHO,)), (GIF + b"2", (WHO, ME)), (GIF + b"3", (ME,))):
        for sender in senders:
            library.add(content, "a" * 32, "", sender, now)
    assert Stickers(tmp_path, config.Stickers(enabled=enabled)).forget(WHO) == 1
    index = json.loads((tmp_path / "index.json").read_text("utf-8"))
    assert [row["senders"] for row in index] == [[ME], [ME]]
    assert len(list(tmp_path.glob("*.gif"))) == 2
