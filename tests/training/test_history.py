"""training/history.py over several sources: what two of them tell of is stored once, what was imported is known."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import exports
import ntqq
import pytest
from pydantic import SecretStr

from bench import ntqq as qq
from bot import forgetting
from bot.archive import Archive
from bot.errors import ImportFault
from bot.intake import Intake
from bot.message import Message, Origin, Scene
from bot.optouts import Why
from training import history
from training.importers import ntqq as ntqq_importer
from training.importers.source import Reading, Told

GROUP, PRIVATE = Scene("group", str(qq.FIRST_GROUP)), Scene("private", str(qq.FIRST_FRIEND))
ROOT = Path(__file__).parents[2]


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    store = Archive(f"sqlite:///{tmp_path / 'archive.db'}")
    yield store
    store.close()


def napcat(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The same rows as NapCat's events: its own ids, the chat's number beside them in groups."""
    lines = []
    for row in rows:
        private = row["40010"] == 1
        where = {"message_type": "private"} if private else {"message_type": "group", "group_id": qq.FIRST_GROUP}
        own = row["40033"] == qq.ME
        lines.append(
            {
                "post_type": "message_sent" if own else "message", "self_id": qq.ME, "user_id": row["40033"], **where,
                "message_id": row["40001"] * 7919 % (1 << 31), "time": row["40050"], "message": row["words"],
                "sender": {"nickname": "甲"}, **({} if private else {"real_seq": str(row["40003"])}),
                **({"target_id": qq.FIRST_FRIEND} if own and private else {}),
            }
        )  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def rows(numbers: range) -> list[dict[str, Any]]:
    """Group and private rows in turn, two in every second; every fifth says the same as the one before."""
    made = []
    for n in numbers:
        words = f"第{n - (n % 20 == 19)}句"
        build = ntqq.chat if n % 2 else ntqq.say
        sender = qq.ME if n % 4 == 3 else qq.FIRST_FRIEND
        row = build(n, words, c40050=qq.START_S + n // 2, c40033=sender, c40013=int(sender == qq.ME))
        made.append({**row, "words": words})
    return made


def database(path: Path, of: list[dict[str, Any]]) -> Path:
    return qq.write(path, (r for r in of if r["40010"] == 2), (r for r in of if r["40010"] == 1))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["events first", "database first"])
def test_a_history_told_by_events_and_by_the_database_is_stored_once(
    tmp_path: Path, archive: Archive, order: tuple[int, int]
) -> None:
    paths = [
        napcat(tmp_path / "events.jsonl", rows(range(1, 101))), database(tmp_path / "nt_msg.db", rows(range(41, 141))),
    ]  # fmt: skip
    results = [history.load(paths[i], archive) for i in order]
    assert [(r.added, r.same) for r in results] == [(100, 0), (40, 60)]
    assert len(archive.history(GROUP)) + len(archive.history(PRIVATE)) == 140
    shown = history.summary(results[1], UTC)
    assert shown["known_from_elsewhere"] == 60
    assert "60 known from other sources" in history.in_words(shown, "x", dry_run=False)


def test_a_chat_that_bears_a_files_name_is_the_scene_it_is_said_to_be(tmp_path: Path, archive: Archive) -> None:
    told = [r for r in rows(range(1, 101)) if r["40010"] == 1]
    history.load(napcat(tmp_path / "events.jsonl", told), archive)
    log = tmp_path / "阿泽.txt"
    when = [datetime.fromtimestamp(r["40050"], Told().zone).strftime("%Y-%m-%d %H:%M:%S") for r in told]
    log.write_text("".join(f"[{t}] {r['40033']}: {r['words']}\n" for t, r in zip(when, told, strict=True)), "utf-8")

    unsaid = history.load(log, None)
    assert list(unsaid.scenes) == [Scene("group", "阿泽")]
    words = history.in_words(history.summary(unsaid, UTC), log.name, dry_run=True)
    assert "only their name is known: group:阿泽; what other sources tell" in words
    assert "--scene private:NUMBER" in words

    said = history.load(log, archive, told=Told(scene=PRIVATE))
    assert (said.added, said.same, said.messages) == (0, 50, 50)
    assert "only their name" not in history.in_words(history.summary(said, UTC), log.name, dry_run=False)
    assert [s.scene for s in archive.scenes()] == [PRIVATE]
    assert history.load(log, archive, told=Told(scene=PRIVATE)).before is not None
    assert history.load(log, archive, told=Told(scene=GROUP)).added == 50, "another scene is another history"


FACES = {
    "早": ["早", "早"], "嗯[微笑]": ["嗯[表情]", "嗯/微笑"], "[贴贴]": ["[表情]", "[表情]"],
    "[动画表情]": ["[图片]", "[图片]"], "[图片]": ["[图片]", "[图片]"], "[语音]": ["[语音]", "[语音]"],
}  # fmt: skip
"""What is said in one second, and as the five-column CSV and QQ's TXT have it."""


@pytest.mark.parametrize("order", [1, -1], ids=["database first", "export first"])
@pytest.mark.parametrize("form", ["txt", "csv"])
def test_a_group_that_an_export_without_names_of_faces_tells_too_is_stored_once(
    tmp_path: Path, archive: Archive, form: str, order: int
) -> None:
    elements = [
        [qq.text("早")], [qq.text("嗯"), qq.face(14, "微笑")], [qq.market_face("[贴贴]")],
        [qq.picture("[动画表情]", sticker=True)], [qq.picture()], [qq.OTHERS["[语音]"]],
    ]  # fmt: skip
    named = [ntqq.say(n, "", c40050=qq.START_S, body=qq.body(*e)) for n, e in enumerate(elements, 1)]
    path, export = database(tmp_path / "nt_msg.db", named), tmp_path / f"group.{form}"
    if form == "csv":
        when = datetime.fromtimestamp(qq.START_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        lines = [f"{qq.FIRST_GROUP},{when},甲,{qq.FIRST_FRIEND},\"['{csv}']\"" for csv, _ in FACES.values()]
    else:
        when = datetime.fromtimestamp(qq.START_S, Told().zone).strftime("%Y-%m-%d %H:%M:%S")
        lines = [f"{when} 甲({qq.FIRST_FRIEND})\n{txt}\n" for _, txt in FACES.values()]
    export.write_text("\n".join(lines) + "\n", "utf-8")
    found = [history.load(file, archive, told=Told(scene=GROUP)) for file in [path, export][::order]]
    assert {result.source.name for result in found} == {"ntqq", "five-csv" if form == "csv" else "qq-txt"}
    assert [(result.added, result.same) for result in found] == [(6, 0), (0, 6)]
    if order == 1:
        assert [m.text for m in archive.history(GROUP)] == list(FACES)


def test_of_a_file_of_several_chats_only_the_first_is_the_scene_it_is_said_to_be(tmp_path: Path) -> None:
    path = napcat(tmp_path / "events.jsonl", rows(range(1, 11)))
    mine = Scene("private", "7")
    result = history.load(path, None, told=Told(scene=mine))
    assert dict(result.scenes) == {mine: 5}
    assert dict(result.reading.skipped) == {"another chat than the first, which --scene private:7 is": 5}


def test_who_speaks_is_told_with_the_ids_that_a_persona_is_made_of() -> None:
    people = {str(n): {"name": f"人{n}" if n else "", "messages": 20 - n} for n in range(9)}
    empty = {"format": "x", "messages": 1, "added": 1, "known_from_elsewhere": 0, "imported_before": None, "recalls": 0}
    empty |= {"scenes": {}, "scenes_by_name": [], "span": [], "skipped": {}, "me_too": {}}
    shown = {**empty, "people": people, "me": "0", "my_messages": 20}
    words = history.in_words(shown, "x", dry_run=False)
    assert "  people: 0 (20), 1 人1 (19), " in words
    assert "7 人7 (13), …\n" in words
    assert "人8" not in words
    assert "persona new NAME --people 0, then" in words
    words = history.in_words(shown, "x", dry_run=False, personas={"me": ("7", shown["me"]), "other": ("8",)})
    assert words.endswith("\n  next: twin night --persona me")
    words = history.in_words({**shown, "me": "2"}, "x", dry_run=False)
    assert "persona new NAME --people 2 --display-name '人2', then" in words, "else its prompt calls it NAME"


def test_the_largest_scenes_are_told_with_kind_name_and_messages(tmp_path: Path, archive: Archive) -> None:
    path = tmp_path / "h.txt"
    path.write_bytes(exports.QQ_TXT)
    words = history.in_words(history.summary(history.load(path, None), UTC), path.name, dry_run=True)
    assert "\n  2 scenes: group 面包店 (5), private 阿泽 (2); 2023-11-1" in words
    assert "阿泽 (1), 小满 (1)\n" in words, "a name that is the id stands there once"
    (tmp_path / "h.json").write_bytes(exports.QCE)
    for before in (False, True):
        result = history.load(tmp_path / "h.json", archive)
        assert (result.before is not None) == before
        words = history.in_words(history.summary(result, UTC), "h.json", dry_run=False)
        assert "\n  1 scene: group 900100 面包店 (12); " in words
    chats = [ntqq.chat(100 * friend + n, f"{n}", c40030=friend) for friend in range(1, 11) for n in range(friend)]
    path = qq.write(tmp_path / "nt_msg.db", [], chats)
    words = history.in_words(history.summary(history.load(path, None), UTC), path.name, dry_run=True)
    assert "\n  10 scenes: private 10 (10), private 9 (9), " in words
    assert "private 3 (3), and 2 more; " in words


def test_of_a_history_without_scenes_none_are_counted() -> None:
    shown = history.summary(history.ImportResult(history.SOURCES[0], Reading()), UTC)
    assert "scene" not in history.in_words(shown, "x", dry_run=True)


@pytest.mark.parametrize(("me", "people"), [(None, "小满,100100"), ("100100", "100100,小满")])
def test_a_name_and_a_number_that_bears_it_are_both_proposed(tmp_path: Path, me: str | None, people: str) -> None:
    path = tmp_path / "h.txt"
    path.write_bytes(exports.QQ_TXT)
    shown = history.summary(history.load(path, None, told=Told(me=me)), UTC)
    words = history.in_words(shown, path.name, dry_run=False)
    mine, other = people.split(",")
    assert f"you are {mine} with {shown['my_messages']} message" in words
    assert f", and {other}, who bears the same name, with {shown['me_too'][other]} message" in words
    quoted = f"'{people}'"
    assert f"persona new NAME --people {quoted} --display-name '小满', then" in words


def test_two_numbers_of_one_name_may_be_two_people(tmp_path: Path) -> None:
    path = tmp_path / "h.txt"
    path.write_bytes(exports.QQ_TXT.replace("老李<li@example.org>".encode(), "小满(100300)".encode()))
    shown = history.summary(history.load(path, None), UTC)
    assert (shown["me"], shown["me_too"]) == ("小满", {})


def test_who_is_not_told_to_be_me_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    path.write_bytes(exports.FIVE_CSV)
    words = history.in_words(history.summary(history.load(path, None), UTC), path.name, dry_run=False)
    assert "which of these people you are is not told: say it with --me NUMBER" in words
    assert "twin persona new NAME --people NUMBER, then" in words
    assert "None" not in words


def test_a_file_that_ends_before_its_first_message_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "h.json"
    path.write_bytes(exports.QCE[:120])
    with pytest.raises(ImportFault, match=r"1 × the file ends in the middle \(h\.json\); export it again$"):
        history.load(path, None)


def test_what_the_twin_said_stays_the_twins_when_its_accounts_history_comes(tmp_path: Path, archive: Archive) -> None:
    when = datetime.fromtimestamp(qq.START_S + 10, UTC)
    words = {"type": "text", "data": {"text": "我是孪生"}}
    archive.append([Message("-5", PRIVATE, str(qq.ME), "我", when, "我是孪生", Origin.TWIN, segments=(words,))])
    mine = {"c40033": qq.ME, "c40013": 1}
    path = qq.write(tmp_path / "nt_msg.db", [], [ntqq.chat(12, "我是孪生", **mine), ntqq.chat(40, "我是我", **mine)])
    assert (history.load(path, archive).added, archive.count([str(qq.ME)])) == (1, 1)
    assert [(m.text, m.origin) for m in archive.history(PRIVATE)] == [
        ("我是孪生", Origin.TWIN), ("我是我", Origin.HUMAN),
    ]  # fmt: skip


def test_an_unchanged_history_is_known_and_a_changed_one_read(tmp_path: Path, archive: Archive) -> None:
    path = database(tmp_path / "nt_msg.db", rows(range(1, 21)))
    first, second = history.load(path, archive), history.load(path, archive)
    assert (first.before, second.added) == (None, 0)
    assert second.before is not None
    assert (second.messages, second.scenes, second.span) == (first.messages, first.scenes, first.span)
    assert second.reading.owners == first.reading.owners
    path.unlink()
    third = history.load(database(path, rows(range(1, 31))), archive)
    assert (third.before, third.added) == (None, 10)


def test_names_that_came_to_lie_beside_a_database_are_read(tmp_path: Path, archive: Archive) -> None:
    path = database(tmp_path / "nt_msg.db", [ntqq.say(1, "早", c40090="", c40093="") | {"words": ""}])
    key = Told(key=SecretStr("k" * 16))
    assert [history.load(path, archive).before is None for _ in range(2)] == [True, False]
    ntqq.profile_info(tmp_path / "profile_info.db", {1: "甲"})
    assert [history.load(path, archive).before is None for _ in range(2)] == [True, False]
    ntqq.group_info(tmp_path / "group_info.db", {qq.FIRST_GROUP: "同学"}, {})
    assert [history.load(path, archive).before is None for _ in range(2)] == [True, False]
    (tmp_path / "group_info.db-wal").write_bytes(b"1")
    assert [history.load(path, archive).before is None for _ in range(2)] == [True, False]
    assert [history.load(path, archive, told=key).before is None for _ in range(2)] == [True, False]
    assert [m.text for m in archive.history(GROUP)] == ["早"]


def phones(of: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows as another device has them: ids of its own."""
    return [{**r, "40001": 7_700_000_000_000_000_000 + r["40001"]} for r in of]


def test_the_databases_of_two_devices_bear_one_name_and_tell_one_history(tmp_path: Path, archive: Archive) -> None:
    for device in ("pc", "phone"):
        (tmp_path / device).mkdir()
    said = rows(range(1, 41))
    history.load(database(tmp_path / "pc" / "nt_msg.db", said), archive)
    phone = database(tmp_path / "phone" / "nt_msg.db", phones(rows(range(1, 61))))
    result = history.load(phone, archive)
    assert (result.messages, result.added, result.same) == (60, 20, 40)
    (tmp_path / "moved").mkdir()
    moved = phone.rename(tmp_path / "moved" / "nt_msg.db")
    moved.write_bytes(moved.read_bytes() + b"\0" * 4096)  # no longer the file that the ledger knows
    again = history.load(moved, archive)
    assert (again.before, again.added, again.same) == (None, 0, 0)


def test_what_an_archive_holds_from_before_sources_named_their_place_is_not_added_again(
    tmp_path: Path, archive: Archive
) -> None:
    path = database(tmp_path / "nt_msg.db", rows(range(1, 41)))
    held = [item for item in ntqq_importer.items(path, Reading()) if isinstance(item, Message)]
    Intake(archive, "import:ntqq:nt_msg.db").take(held)
    result = history.load(path, archive)
    assert (result.messages, result.added, result.same) == (40, 0, 0)


@pytest.mark.parametrize("batch", [5000, 2])
def test_a_newer_copy_elsewhere_brings_what_was_said_again_within_the_second(
    tmp_path: Path, archive: Archive, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(history, "BATCH", batch)
    laughs = [ntqq.chat(n, "哈哈", c40050=qq.START_S) for n in range(1, 4)]
    for name, of in (("old", laughs[:2]), ("new", laughs)):
        (tmp_path / name).mkdir()
        result = history.load(database(tmp_path / name / "nt_msg.db", of), archive)
    assert (result.added, result.same) == (1, 0)
    assert len(archive.history(PRIVATE)) == 3


_CHILD = """
import sys
from pathlib import Path
from bot.archive import Archive
from training import history
history.BATCH = 50
history.load(Path(sys.argv[2]), Archive(sys.argv[1]), lambda done, size: print(done, flush=True))
"""


def test_an_import_killed_half_way_goes_on_where_it_was(tmp_path: Path) -> None:
    path = database(tmp_path / "nt_msg.db", rows(range(1, 4001)))
    url = f"sqlite:///{tmp_path / 'archive.db'}"
    command = [sys.executable, "-c", _CHILD, url, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout is not None
        for _ in range(5):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    with sqlite3.connect(tmp_path / "archive.db") as store:
        (stored,) = store.execute("SELECT count(*) FROM messages").fetchone()
    store.close()
    assert stored >= 200, "the batch before the one that is read is in"
    archive = Archive(url)
    result = history.load(path, archive)
    assert (result.before, result.added) == (None, 4000 - stored)
    assert len(archive.history(GROUP)) == len(archive.history(PRIVATE)) == 2000
    archive.close()


def test_a_large_import_is_fast_and_small(tmp_path: Path, archive: Archive) -> None:
    talk = list(qq.people_talking(20_000))
    path = database(tmp_path / "nt_msg.db", talk)
    started = time.process_time()
    result = history.load(path, archive)
    # 0.4 s on an idle machine, after the goal; this asserts only that nothing is quadratic.
    assert time.process_time() - started < 8
    assert result.added == 20_000
    assert archive.scenes()[0].messages > 500


def test_people_who_left_are_counted_and_not_brought_back_by_an_old_history(tmp_path: Path, archive: Archive) -> None:
    friend = str(qq.FIRST_FRIEND)
    archive.optouts.note(str(qq.ME), "out", "self", datetime.now(UTC))
    forgetting.from_archive(archive, friend, datetime.now(UTC))
    told = [{**r, "40033": qq.ME} if n % 6 == 1 else r for n, r in enumerate(rows(range(1, 41)))]
    path = napcat(tmp_path / "events.jsonl", told)
    result = history.load(path, archive)
    group = [r for r in told if r["40010"] == 2]
    mine = sum(r["40033"] == qq.ME for r in group)
    assert 0 < mine < len(group)
    # Private chats are with the friend: nothing of them is kept, not even what the account said there.
    assert dict(result.reading.skipped) == {Why.FORGOTTEN: len(told) - mine, Why.OUT: mine}
    assert result.added == len(group)
    whole = archive.history(GROUP, recalled=True)
    assert {(m.sender_id, m.sender_name, m.text, m.recalled) for m in whole} == {
        ("", "", "", True), (str(qq.ME), "", "", True),
    }  # fmt: skip
    assert archive.history(PRIVATE, recalled=True) == []
    words = history.in_words(history.summary(result, UTC), path.name, dry_run=False)
    assert f"left out {len(told) - mine}: by somebody, or in a private chat with somebody, who asked to be" in words
    assert "(events.jsonl:1, " in words
    with archive.engine.connect() as connection:
        noted = str(connection.exec_driver_sql("SELECT summary FROM imports").scalar_one())
    assert friend not in noted
    assert history.load(path, archive).before is not None
