"""training/importers/ntqq*.py: every shape of nt_msg.db, every kind of element, and whatever else a file can hold."""

import importlib.util
import json
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ntqq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from killing import killed_at
from pydantic import SecretStr
from typer.testing import CliRunner

from bench import fuzz_import
from bench import ntqq as qq
from bot import events
from bot.__main__ import app
from bot.archive import Archive
from bot.errors import ImportFault
from bot.message import Message, Scene
from bot.segments import market_face, to_text
from training import history
from training.importers import ntqq as importer
from training.importers import ntqq_body, ntqq_text, ntqq_wire
from training.importers.source import Reading, Told, head

GROUP, PRIVATE = Scene("group", str(qq.FIRST_GROUP)), Scene("private", str(qq.FIRST_FRIEND))
GOLDEN = bytes.fromhex("82f61321c8fc15a1d0e6a4d2b8b8806ad0fc1501ea821609e5919ce5919ce5919cf0821600")
"""A body out of a real database, as published."""
KEY = "a'b\"c~{}|;--9xYz"
CIPHER = pytest.mark.skipif(importlib.util.find_spec("sqlcipher3") is None, reason="sqlcipher3 (extra ntqq) is missing")
QQ: dict[str, Any] = {"page_bytes": 4096, "rounds": 4000, "hmac": "SHA1", "named": True}

ROOT = Path(__file__).parents[2]


def row_id(number: int) -> int:
    """The id of a row that `ntqq.say` makes."""
    return int(ntqq.say(number, "")["40001"])


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    store = Archive(f"sqlite:///{tmp_path / 'archive' / 'archive.db'}")
    yield store
    store.close()


def read(path: Path, told: Told = Told()) -> tuple[list[Message], Reading]:  # noqa: B008 - frozen
    reading = Reading(told)
    found = [m for m in importer.items(path, reading) if isinstance(m, Message)]
    return found, reading


def one(tmp_path: Path, *elements: qq.Fields, **more: Any) -> Message:
    path = tmp_path / f"{random.random()}.db"
    (found,), _ = read(qq.write(path, [ntqq.say(1, "", body=qq.body(*elements), **more)]))
    return found


# -- bodies ---------------------------------------------------------------------------------------


def test_a_real_body_reads_as_published() -> None:
    (part,) = ntqq_wire.elements(GOLDEN)
    assert (part.kind, ntqq_wire.said(part.text), part.at_kind) == (1, "呜呜呜", 0)
    fields = [(45001, 7638353204859217953), (45002, 1), (45101, "呜呜呜"), (45102, 0)]
    assert qq.body(fields) == GOLDEN


@pytest.mark.parametrize("expected", qq.OTHERS)
def test_every_kind_of_element_reads_as_it_does_live(tmp_path: Path, expected: str) -> None:
    assert one(tmp_path, qq.OTHERS[expected]).text == expected


@pytest.mark.parametrize(
    "elements",
    [
        (qq.text("  早\r\n上\r好\n "),),
        (qq.text("一"), qq.text("二\n")),
        (qq.text("\n[微笑] @甲 &#91;CQ:at,qq=all&#93;"),),
        (qq.text(""), qq.text("x")),
    ],
)
def test_text_alone_reads_as_segments_of_it_do(elements: tuple[qq.Fields, ...]) -> None:
    parts = ntqq_wire.elements(qq.body(*elements))
    segments = [{"type": "text", "data": {"text": ntqq_wire.said(p.text)}} for p in parts]
    assert ntqq_body.told(parts, lambda _: None).text == to_text(segments, lambda _: None).text


def test_a_mixed_message_keeps_its_order_and_whom_it_mentions(tmp_path: Path) -> None:
    said = one(
        tmp_path, qq.at("@小 明 ", 20002, "u_20002"), qq.text("看"), qq.face(178, "/斜眼笑"), qq.picture(),
        qq.at("@全体成员", 0, ""), qq.at("@只有uid", 3, "u_20003"), qq.market_face("[贴贴]"),
    )  # fmt: skip
    assert said.text == "@小 明 看[斜眼笑][图片]@全体成员@只有uid[贴贴]"
    assert said.mentions == ("20002", "all", "3")
    found = market_face(said.segments, "[贴贴]")
    assert found is not None
    assert found["data"]["emoji_id"] == "ab" * 16


def test_a_mention_of_an_nt_uid_is_of_the_number_it_maps_to(tmp_path: Path) -> None:
    by_uid = qq.element(1, (45101, "@小红"), (45102, 2), (45105, "u_20005"))
    unknown = qq.element(1, (45101, "@路人"), (45102, 2), (45105, "u_nobody"))
    said = one(tmp_path, by_uid, unknown)
    assert (said.text, said.mentions) == ("@小红@路人", ("20005",))


def test_a_field_of_another_wire_type_is_absent_and_the_rest_is_read() -> None:
    wrong = qq.element(1, (45101, "早"), (45102, "not a number"), (45105, 7))
    assert ntqq_body.told(ntqq_wire.elements(qq.body(wrong)), lambda _: None).text == "早"


def test_of_a_body_that_breaks_off_stands_what_came_before() -> None:
    whole = qq.body(qq.text("第一句"), qq.picture(), qq.text("最后一句"))
    texts = [ntqq_body.told(ntqq_wire.elements(whole[:n]), lambda _: None).text for n in range(len(whole) + 1)]
    assert texts[-1] == "第一句[图片]最后一句"
    first = texts.index("第一句")
    assert all(t.startswith("第一句") for t in texts[first:])
    assert len(texts) > 100


@given(st.binary(max_size=200))
def test_no_bytes_raise(raw: bytes) -> None:
    for body in (raw, qq.encoded([(40800, raw)]), qq.encoded([(40900, qq.encoded([(40800, raw)]))])):
        fuzz_import.decode(body)


def test_thousands_of_mutated_bodies_raise_nothing() -> None:
    swept = 0
    for body in fuzz_import.bodies(8000, seed=1):
        fuzz_import.decode(body)
        swept += 1
    assert swept == 8000


def test_ten_million_bytes_of_nesting_cost_no_stack(tmp_path: Path) -> None:
    nested, size = b"", 0
    for _ in range(3000):
        nested = qq.encoded([(47423, nested)]) if len(nested) < 1 << 20 else nested
        size += 1
    fuzz_import.decode(qq.encoded([(40800, nested)]))
    fuzz_import.decode(b"\x82\xf6\x13\x03" * 2_500_000)
    deep = qq.element(10, (47901, '{"a":' * 100_000 + "1" + "}" * 100_000))
    assert one(tmp_path, qq.text("看"), deep).text in ("看[未知]", "看[卡片]")
    assert size == 3000


# -- rows -----------------------------------------------------------------------------------------


def test_what_a_message_carries(tmp_path: Path) -> None:
    rows = [
        ntqq.say(1, "早", c40090="群名片(123456)", c40003=77),
        ntqq.say(2, "早", c40090="旧<a@b.cn>", c40033=qq.ME, c40013=1),
    ]
    found, reading = read(qq.write(tmp_path / "nt_msg.db", rows, [ntqq.chat(3, "在吗", c40003=9)]))
    assert [(m.id, m.scene, m.sender_id, m.sender_name, m.seq) for m in found] == [
        ("1", GROUP, str(qq.FIRST_FRIEND), "群名片", 77),
        ("2", GROUP, str(qq.ME), "旧", 2),
        ("3", PRIVATE, str(qq.FIRST_FRIEND), "甲", None),
    ]
    assert found[0].time.timestamp() == qq.START_S + 1
    assert reading.owners == {str(qq.ME): 1}


LEFT_OUT: dict[str, dict[str, Any]] = {
    "a gray tip": {"c40011": 5, "c40012": 12},
    "an empty message": {"c40011": 1},
    "a call": {"c40011": 19},
    "a message that was not sent": {"c40041": 0},
    "a chat of type 103, not between people": {"c40010": 103},
    "a system message": {"c40033": 10000},
    "a sender without a number": {"c40033": 0, "c40020": "u_nobody"},
    "a message without a time": {"c40050": 0},
    "a message without a body that can be read": {"body": b"\xff\xff\xff"},
    "a chat without a number": {"c40021": "x", "c40027": 0, "c40030": 0},
}


@pytest.mark.parametrize("reason", LEFT_OUT)
def test_what_nobody_said_is_left_out_and_counted_with_its_place(tmp_path: Path, reason: str) -> None:
    rows = [ntqq.say(1, "前"), ntqq.say(2, "x", **LEFT_OUT[reason]), ntqq.say(3, "后")]
    found, reading = read(qq.write(tmp_path / "nt_msg.db", rows))
    assert [m.text for m in found] == ["前", "后"]
    assert reading.places == {reason: ["group_msg_table row 2"]}


def test_a_recalled_row_takes_back_what_was_told_of_it_before(tmp_path: Path, archive: Archive) -> None:
    def load(name: str, *rows: dict[str, Any]) -> history.ImportResult:
        (tmp_path / name).mkdir()
        return history.load(qq.write(tmp_path / name / "nt_msg.db", rows), archive)

    load("before", ntqq.say(1, "秘密"), ntqq.say(2, "早"))
    live = Message(
        "31bit", GROUP, str(qq.FIRST_FRIEND), "甲", datetime.fromtimestamp(qq.START_S + 3, UTC), "另一个", seq=3
    )
    archive.append([live])
    gone = [ntqq.say(n, "", c40011=5, c40012=4, body=qq.body(qq.element(8, (45003, 1)))) for n in (1, 3)]
    result = load("after", gone[0], ntqq.say(2, "早"), gone[1], ntqq.say(4, "晚"))
    assert (result.recalls, result.added, dict(result.reading.skipped)) == (2, 1, {})
    assert [m.text for m in archive.history(GROUP)] == ["早", "晚"]
    assert "秘密" not in repr(archive.history(GROUP, recalled=True))
    load("old", ntqq.say(1, "秘密"), ntqq.say(3, "另一个"))
    assert [m.text for m in archive.history(GROUP)] == ["早", "晚"], "an older copy does not bring it back"


POKE = {"c40011": 5, "c40012": 12}


def tip(*items: dict[str, Any]) -> bytes:
    return qq.body(qq.element(8, (45003, 17), (48271, json.dumps({"items": items}, ensure_ascii=False))))


def poker(uin: int, name: str = "") -> dict[str, Any]:
    return {"type": "qq", "uid": f"u_{uin}", "nm": name}


def test_a_poke_reads_as_a_live_one_and_is_the_same(tmp_path: Path, archive: Archive) -> None:
    other = qq.FIRST_FRIEND + 1
    nor = {"type": "nor", "txt": "戳了戳"}
    rows = [
        ntqq.say(1, "早"), ntqq.say(2, "我", c40033=qq.ME, c40020=f"u_{qq.ME}", c40013=1),
        ntqq.say(3, "", **POKE, body=tip(poker(qq.FIRST_FRIEND, "甲"), {"type": "img"}, nor, poker(other, "乙"))),
        ntqq.say(4, "", **POKE, body=tip(poker(other, "乙"), nor, poker(qq.ME))),
        ntqq.say(5, "", **POKE, body=tip(poker(other), nor)),
        ntqq.say(6, "", **POKE, body=qq.body(qq.element(8, (48271, '{"items": [1, {"type": "qq", "uid": 5}]}')))),
        ntqq.say(7, "", **POKE, body=qq.body(qq.element(8, (48271, "[" * 100_000)))),
        ntqq.say(8, "", **POKE, body=tip(poker(qq.FIRST_FRIEND), nor, {"type": "qq", "uid": "u_stranger"})),
    ]  # fmt: skip
    event = {
        "post_type": "notice", "notice_type": "notify", "sub_type": "poke", "group_id": int(GROUP.id),
        "user_id": qq.FIRST_FRIEND, "target_id": other, "self_id": qq.ME, "time": qq.START_S + 3,
    }  # fmt: skip
    live = events.read(event, {str(other): "乙"}.get)
    assert isinstance(live, Message)
    archive.append([live])
    path = qq.write(tmp_path / "nt_msg.db", rows)
    found, reading = read(path)
    pokes = [m for m in found if m.text.startswith("[戳一戳]")]
    assert [(m.sender_id, m.sender_name, m.text, m.mentions) for m in pokes] == [
        (str(qq.FIRST_FRIEND), "甲", "[戳一戳]@乙", (str(other),)), (str(other), "乙", "[戳一戳]", (str(qq.ME),)),
    ]  # fmt: skip
    assert (pokes[0].id, pokes[0].text, pokes[0].time) == (live.id, live.text, live.time)
    assert reading.skipped == {"a gray tip": 4}
    assert history.load(path, archive).added == 3


@pytest.mark.parametrize("more", [{"c40041": None}, {"c40033": None}, {"c40030": None}, {"c40003": 2**63 - 1}])
def test_what_older_rows_lack_is_found_elsewhere(tmp_path: Path, more: dict[str, Any]) -> None:
    said = one(tmp_path, qq.text("早"), **more)
    assert (said.scene, said.sender_id, said.text) == (GROUP, str(qq.FIRST_FRIEND), "早")


def test_columns_an_older_qq_does_not_have_are_done_without(tmp_path: Path) -> None:
    missing = frozenset({"40013", "40041", "40090", "40093", "40850", "40900", "40005", "40062", "40083", "40010"})
    found, reading = read(qq.write(tmp_path / "nt_msg.db", [ntqq.say(1, "早")], without=missing))
    assert ([m.text for m in found], dict(reading.skipped)) == (["早"], {})


@pytest.mark.parametrize(
    ("time", "second"),
    [(1_700_000_001, 1_700_000_001), (1_700_000_001_250, 1_700_000_001.25), (1_700_000_001_000_000, 1_700_000_001)],
)
def test_times_are_read_in_seconds_milliseconds_and_microseconds(tmp_path: Path, time: int, second: float) -> None:
    assert one(tmp_path, qq.text("早"), c40050=time).time.timestamp() == second


def test_ids_beyond_sixty_three_bits_stand_as_they_are(tmp_path: Path) -> None:
    big = [2**63, 2**64 - 1, str(2**63 + 5), 2**64, "x"]
    rows = [{**ntqq.say(n, str(n)), "40001": value, "40003": 2**63} for n, value in enumerate(big)]
    path = ntqq.exported(tmp_path / "group_msg_table.json", rows)
    found, reading = read(path)
    assert [(m.id, m.seq) for m in found] == [(str(2**63), None), (str(2**64 - 1), None), (str(2**63 + 5), None)]
    assert reading.skipped == {"an id that is no whole number of 64 bits": 2}
    negative, _ = read(qq.write(tmp_path / "nt_msg.db", [ntqq.say(-5, "负", c40050=qq.START_S)]))
    assert [m.id for m in negative] == [str(2**64 - 5)]


def test_a_message_of_a_megabyte_is_a_message(tmp_path: Path, archive: Archive) -> None:
    path = qq.write(tmp_path / "nt_msg.db", [ntqq.say(1, "长" * 400_000), ntqq.say(2, "短")])
    assert history.load(path, archive).added == 2
    assert [len(m.text) for m in archive.history(GROUP)] == [400_000, 1]


# -- quotes ---------------------------------------------------------------------------------------


def quoting(number: int, seq: int, uin: int, second: int, **more: Any) -> dict[str, Any]:
    parts = qq.body(qq.reply(seq, uin, qq.START_S + second, qq.text("旧话")), qq.text("回"))
    return ntqq.say(number, "", body=parts, c40011=9, **more)


def test_a_quote_in_a_group_is_found_by_number_time_and_sender(tmp_path: Path) -> None:
    rows = [
        ntqq.say(1, "甲", c40003=11),
        ntqq.say(2, "乙", c40003=12, c40033=20002),
        quoting(3, 12, 20002, 2),  # by the number the quote names
        quoting(4, 0, 20002, 2, c40850=12),  # by the row's
        quoting(5, 11, 20002, 2),  # the number is another person's: by time and sender
        quoting(6, 0, qq.FIRST_FRIEND, 1),
        quoting(7, 999, 20009, 1),  # nobody's
    ]
    found, _ = read(qq.write(tmp_path / "nt_msg.db", rows))
    assert [m.reply_to for m in found[2:]] == ["2", "2", "2", "1", None]
    assert all(m.text == "回" for m in found[2:])
    assert found[-1].segments[0]["data"]["text"] == "旧话"


def test_a_quote_in_a_private_chat_is_found_by_the_peers_counter(tmp_path: Path) -> None:
    rows = [
        ntqq.chat(1, "甲", c40005=500), ntqq.chat(40, "乙", c40005=500, c40033=qq.ME, c40013=1),
        ntqq.chat(50, "", c40850=500, body=quoting(50, 3, qq.ME, 40)["40800"]),
    ]  # fmt: skip
    found, _ = read(qq.write(tmp_path / "nt_msg.db", [], rows))
    assert [m.reply_to for m in found] == [None, None, "40"]


def test_the_words_of_a_quoted_message_that_is_not_there_are_kept_from_the_cache(tmp_path: Path) -> None:
    cache = qq.encoded([(40900, qq.encoded([(40001, 5), (40800, qq.encoded(qq.text("缓存里的话")))]))])
    row = quoting(1, 5, 20002, -900, c40900=cache)
    (said,), _ = read(qq.write(tmp_path / "nt_msg.db", [row]))
    assert said.reply_to is None
    assert said.segments[0]["data"] == {"qq": "20002", "time": qq.START_S - 900, "seq": 5, "text": "缓存里的话"}


# -- files ----------------------------------------------------------------------------------------

PEOPLE = [ntqq.say(n, f"第{n}句", c40013=n % 2, c40033=qq.ME if n % 2 else 20002) for n in range(1, 30)]
CHATS = [ntqq.chat(n, f"私{n}'\n", body=qq.body(qq.text("it's\n"), qq.picture())) for n in range(100, 120)]


def test_every_shape_of_a_database_reads_the_same(tmp_path: Path) -> None:
    plain = qq.write(tmp_path / "nt_msg.db", PEOPLE, CHATS)
    expected, _ = read(plain)
    assert len(expected) == 49
    dump = ntqq.dumped(plain, tmp_path / "dump.sql")
    groups = ntqq.exported(tmp_path / "a.json", PEOPLE)
    chats = ntqq.exported(tmp_path / "b.json", CHATS)
    (tmp_path / "folder").mkdir()
    folder = qq.write(tmp_path / "folder" / "nt_msg.db", PEOPLE, CHATS).parent
    for paths in ([dump], [groups, chats], [folder]):
        assert all(history.recognised(p) is importer.SOURCE for p in paths)
        found = [m for p in paths for m in read(p)[0]]
        assert sorted(found, key=lambda m: int(m.id)) == sorted(expected, key=lambda m: int(m.id))


def test_names_come_from_the_databases_beside(tmp_path: Path) -> None:
    ntqq.profile_info(tmp_path / "profile_info.db", {20002: "资料里的名字"})
    ntqq.group_info(tmp_path / "group_info.db", {qq.FIRST_GROUP: "测试群"}, {(qq.FIRST_GROUP, 20003): "群里的名字"})
    rows = [ntqq.say(n, "早", c40033=20001 + n, c40090=None, c40093="") for n in (1, 2, 3)]
    found, reading = read(qq.write(tmp_path / "nt_msg.db", rows))
    assert [m.sender_name for m in found] == ["资料里的名字", "群里的名字", ""]
    assert {m.scene_name for m in found} == {"测试群"}
    (tmp_path / "profile_info.db").write_bytes(b"no database")
    found, reading = read(tmp_path / "nt_msg.db")
    assert len(found) == 3
    assert any(why.startswith("names: 'profile_info.db'") for why in reading.skipped)


def test_nothing_is_written_beside_the_file_and_its_log_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "qq"
    folder.mkdir()
    path = qq.write(folder / "nt_msg.db", [ntqq.say(1, "前")])
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("PRAGMA wal_autocheckpoint=0")
    columns, values = zip(*ntqq.say(2, "日志里的").items(), strict=True)
    names = ",".join(f"[{c}]" for c in columns)
    writer.execute(f"INSERT INTO group_msg_table({names}) VALUES({','.join('?' * len(values))})", values)
    (folder / "nt_msg.db-shm").unlink()
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    found, _ = read(path)
    assert [m.text for m in found] == ["前", "日志里的"]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    writer.close()


def test_a_database_of_a_log_that_is_gone_is_read_without_making_one(tmp_path: Path) -> None:
    folder = tmp_path / "qq"
    folder.mkdir()
    path = qq.write(folder / "nt_msg.db", [ntqq.say(1, "前")])
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA journal_mode=WAL")
    database.close()
    assert [m.text for m in read(path)[0]] == ["前"]
    assert [p.name for p in folder.iterdir()] == ["nt_msg.db"]


def test_a_truncated_database_gives_what_can_still_be_read(tmp_path: Path) -> None:
    rows = [ntqq.say(n, f"第{n}句" + "长" * 300) for n in range(1, 400)]
    path = qq.write(tmp_path / "nt_msg.db", rows)
    whole = path.read_bytes()
    got = []
    for share in (0.3, 0.6, 0.9, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        found, reading = read(path)
        got.append(len(found))
        assert any(why.startswith("damaged pages") for why in reading.skipped) == (len(found) < 399)
        assert [m.text[:5] for m in found] == [f"第{m.id}句{'长' * 5}"[:5] for m in found]
    assert got == sorted(got)
    assert got[-1] > 390


def test_behind_damaged_pages_reading_goes_on(tmp_path: Path) -> None:
    rows = [ntqq.say(n, f"第{n}句" + "长" * 300) for n in range(1, 400)]
    path = qq.write(tmp_path / "nt_msg.db", rows)
    whole = bytearray(path.read_bytes())
    middle = whole.index("第200句".encode()) // 4096 * 4096
    whole[middle : middle + 4096] = b"\xee" * 4096
    path.write_bytes(whole)
    found, reading = read(path)
    ids = [int(m.id) for m in found]
    assert ids == sorted(set(ids))
    assert {1, 399} <= set(ids)
    assert len(ids) > 380
    assert any(why.startswith("damaged pages") for why in reading.skipped)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01])
def test_what_is_too_short_to_be_a_database_is_named(tmp_path: Path, share: float) -> None:
    path = qq.write(tmp_path / "nt_msg.db", PEOPLE)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ImportFault, match=r"nt_msg\.db"):
        history.load(path, None, source=importer.SOURCE)


def test_a_locked_database_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = qq.write(tmp_path / "nt_msg.db", PEOPLE)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("PRAGMA locking_mode=EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ImportFault, match=r"'nt_msg\.db' is locked by another program: close QQ"):
        history.recognised(path)
    holder.close()
    assert history.recognised(path) is importer.SOURCE


def test_another_database_is_not_taken_for_one(tmp_path: Path) -> None:
    ntqq.profile_info(tmp_path / "other.db", {1: "x"})
    with pytest.raises(ImportFault, match=r"neither c2c_msg_table nor group_msg_table: of QQ's files nt_msg\.db"):
        history.recognised(tmp_path / "other.db")
    short = qq.write(tmp_path / "nt_msg.db", PEOPLE)
    short.write_bytes(short.read_bytes()[:3000])
    with pytest.raises(ImportFault, match=r"nt_msg\.db' .*copy it again with QQ closed"):
        history.recognised(short)
    with pytest.raises(ImportFault, match="neither c2c_msg_table nor group_msg_table"):
        read(tmp_path / "other.db")


def test_an_empty_file_is_said_to_be_empty(tmp_path: Path) -> None:
    (tmp_path / "h.json").touch()
    with pytest.raises(ImportFault, match=r"h\.json' is empty"):
        history.recognised(tmp_path / "h.json")


def test_a_dump_takes_nothing_but_its_own_tables(tmp_path: Path) -> None:
    plain = qq.write(tmp_path / "nt_msg.db", PEOPLE)
    dump = ntqq.dumped(plain, tmp_path / "dump.sql")
    outside = tmp_path / "outside.db"
    bad = [
        f"ATTACH DATABASE '{outside}' AS x;",
        "INSERT INTO group_msg_table SELECT load_extension('x');",
        f"INSERT INTO group_msg_table([40001]) VALUES(1); ATTACH DATABASE '{outside}' AS y;",
        "INSERT INTO group_msg_table VALUES(1, 'half",
    ]
    dump.write_text(dump.read_text("utf-8") + "\n".join(bad), "utf-8")
    found, reading = read(dump)
    assert len(found) == len(PEOPLE)
    assert not outside.exists()
    assert reading.skipped["SQL that breaks off"] == 1
    assert sum(n for why, n in reading.skipped.items() if why.startswith("SQL that cannot be run")) == 2


def literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"X'{value.hex()}'"
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"


def dump_of_one_insert(path: Path, count: int, *, one_line: bool) -> Path:
    """A dump with every row in one INSERT, some of whose texts look like the end of a row."""
    rows = [ntqq.say(n, f"第{n}句" * 40, c40090=("甲),\n(it's", "乙(", "丙")[n % 3]) for n in range(1, count + 1)]
    names = ",".join(f'"{c}"' for c in rows[0])
    # A row over several lines, of which one ends as a row does.
    values = (f"({','.join(map(literal, r.values()))})".replace("'丙',", "lower('丙'),\n") for r in rows)
    columns = ",".join(f'"{c}"' + " INTEGER PRIMARY KEY" * (c == "40001") for c in rows[0])
    sql = f'CREATE TABLE "group_msg_table"({columns});\nINSERT INTO "group_msg_table" ({names}) VALUES {{}};\nCOMMIT;\n'
    rest = ",\n".join(values)
    path.write_text(sql.format(rest.replace("\n", "") if one_line else rest), "utf-8")
    return path


@pytest.mark.parametrize("one_line", [False, True])
def test_an_insert_of_thousands_of_rows_is_run_in_pieces_and_none_is_lost(tmp_path: Path, one_line: bool) -> None:
    pieces = []
    for count in (4000, 8000):
        path = dump_of_one_insert(tmp_path / f"{count}.sql", count, one_line=one_line)
        found, reading = read(path)
        assert ([m.id for m in found], dict(reading.skipped)) == ([str(row_id(n)) for n in range(1, count + 1)], {})
        assert {m.sender_name for m in found} == {"甲),(it's" if one_line else "甲),\n(it's", "乙(", "丙"}
        inserts = [s for _, s in ntqq_text._statements(path, Reading()) if s.startswith("INSERT")]
        assert sum(map(len, inserts)) < path.stat().st_size * 1.01
        assert max(map(len, inserts)) < 1.1 * ntqq_text._CHUNK_CHARS
        pieces.append(len(inserts))
    assert pieces[0] > 2
    assert abs(pieces[1] - 2 * pieces[0]) <= 1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_dump_is_read_in_the_encoding_of_its_mark(tmp_path: Path, encoding: str) -> None:
    plain = qq.write(tmp_path / "nt_msg.db", PEOPLE)
    dump = ntqq.dumped(plain, tmp_path / "dump.sql")
    dump.write_bytes(dump.read_text("utf-8").encode(encoding))
    assert history.recognised(dump) is importer.SOURCE
    assert read(dump)[0] == read(plain)[0]


_SMALL_DISK = """
import resource, sys
from pathlib import Path
from pydantic import SecretStr
from bot.errors import ImportFault
from training import history
from training.importers.source import Told
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    result = history.load(Path(sys.argv[1]), None, told=Told(key=SecretStr(sys.argv[2])))
except ImportFault as e:
    print(e)
else:
    print("read", result.messages, dict(result.reading.skipped))
"""


def logged(path: Path, statement: str, values: Sequence[Any]) -> sqlite3.Connection:
    """Put a row into a database's log, which stays while the connection does."""
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("PRAGMA wal_autocheckpoint=0")
    writer.execute(statement, values)
    return writer


@pytest.mark.parametrize("kind", ["dump", "log", "log beside", pytest.param("encrypted", marks=CIPHER)])
def test_a_temporary_folder_without_room_is_named_with_what_is_needed(tmp_path: Path, kind: str) -> None:
    folder, spare = tmp_path / "qq", tmp_path / "spare"
    folder.mkdir()
    spare.mkdir()
    path = qq.write(folder / "nt_msg.db", [ntqq.say(n, "话" * 100) for n in range(1, 2000)])
    needing, writer = path, None
    if kind == "dump":
        needing = path = ntqq.dumped(path, tmp_path / "dump.sql")
    elif kind == "log":
        writer = logged(path, "DELETE FROM group_msg_table WHERE [40001] = ?", [row_id(1)])
    elif kind == "log beside":
        needing = folder / "profile_info.db"
        ntqq.profile_info(needing, dict.fromkeys(range(3000), "名" * 30))
        writer = logged(needing, "INSERT INTO profile_info_v6 VALUES(?,?,?)", ["u", 1, "甲"])
    else:
        needing = path = ntqq.encrypted(path, tmp_path / "nt_msg.db", KEY, **QQ)
    size = sum(p.stat().st_size for p in needing.parent.glob(f"{needing.name}*") if not p.name.endswith("-shm"))
    command = [sys.executable, "-c", _SMALL_DISK, str(path), KEY]
    environment = {**os.environ, "TMPDIR": str(spare)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    megabytes = -(-size // 10**6)
    assert done.stdout.startswith(
        f"the temporary folder {str(spare)!r} cannot take what reading {needing.name!r} needs, about {megabytes} MB ("
    ), done.stdout + done.stderr
    assert "or name another folder in TMPDIR" in done.stdout
    assert list(spare.iterdir()) == []
    if writer is not None:
        writer.close()


_READS_A_DUMP = """
import os, sys
from pathlib import Path
from training.importers import ntqq_text
from training.importers.source import Reading, Told
with ntqq_text.of_dump(Path(sys.argv[1]), Reading(Told())):
    os.getppid()
"""


def test_a_copy_of_chats_that_a_killed_import_left_is_removed_by_the_next_of_anything(tmp_path: Path) -> None:
    spare = tmp_path / "spare"
    spare.mkdir()
    dump = ntqq.dumped(qq.write(tmp_path / "nt_msg.db", [ntqq.say(1, "话")]), tmp_path / "dump.sql")
    (tmp_path / "other.jsonl").write_text("{}\n", "utf-8")
    (tmp_path / "bot.toml").touch()
    twin = [sys.executable, "-m", "bot", "import", "--config", str(tmp_path / "bot.toml"), "--dry-run"]
    for path in (dump, tmp_path / "other.jsonl"):
        killed_at("getppid", _READS_A_DUMP, dump, TMPDIR=str(spare))
        assert len(list(spare.iterdir())) == 1
        environment = {**os.environ, "TMPDIR": str(spare)}
        subprocess.run([*twin, str(path)], capture_output=True, cwd=ROOT, env=environment, check=False)
        assert list(spare.iterdir()) == []


def test_broken_objects_of_an_export_are_counted_and_the_others_read(tmp_path: Path) -> None:
    text = ntqq.exported(tmp_path / "x.json", PEOPLE).read_text("utf-8")
    objects = text[1:-1].split("\n    },")
    objects[3] = objects[3].replace('"40033":', '"40033" 1 2')
    objects[5] = '\n    {"40800": "!!!", "40050": 5'
    objects[7] = '\n    {"deep": ' + "[" * 200_000 + "]" * 200_000
    (tmp_path / "x.json").write_text("[" + "\n    },".join(objects)[: -len("}\n") - 40], "utf-8")
    assert history.recognised(tmp_path / "x.json") is importer.SOURCE
    found, reading = read(tmp_path / "x.json")
    assert len(found) == len(PEOPLE) - 4
    assert (reading.skipped["broken JSON"], reading.skipped["the file ends in the middle"]) == (1, 1)
    assert reading.skipped["nested too deeply"] == 1
    assert reading.places["broken JSON"][0] == "x.json object 4"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_an_export_is_read_in_the_encoding_of_its_mark(tmp_path: Path, encoding: str) -> None:
    path = ntqq.exported(tmp_path / "x.json", PEOPLE)
    plain, _ = read(path)
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    path.write_bytes((mark + path.read_text("utf-8")).encode(encoding))
    assert history.recognised(path) is importer.SOURCE
    assert read(path)[0] == plain


def test_an_export_without_ids_gets_ids_that_stay(tmp_path: Path, archive: Archive) -> None:
    rows = [{k: v for k, v in r.items() if k in ("40021", "40050", "40090", "40033", "40800")} for r in PEOPLE]
    path = ntqq.exported(tmp_path / "x.json", [*rows, rows[-1]])
    again = ntqq.exported(tmp_path / "y.json", [*rows, rows[-1]])
    assert [history.load(p, archive).added for p in (path, again)] == [30, 0]


def test_an_export_larger_than_a_piece_of_reading_loses_nothing(tmp_path: Path) -> None:
    rows = [ntqq.say(n, "长" * (n * 997)) for n in range(1, 60)]
    path = ntqq.exported(tmp_path / "x.json", rows)
    assert path.stat().st_size > 3 << 20
    found, reading = read(path)
    assert [len(m.text) for m in found] == [n * 997 for n in range(1, 60)]
    assert not reading.skipped


# -- encrypted ------------------------------------------------------------------------------------


@CIPHER
@pytest.mark.parametrize(
    "made",
    [
        QQ,
        QQ | {"named": False},
        QQ | {"hmac": "SHA512"},
        QQ | {"hmac": "SHA256", "named": False},
        QQ | {"page_bytes": 1024},
        QQ | {"rounds": 256_000, "hmac": "SHA512"},
    ],
    ids=["qq", "unnamed", "sha512", "sha256", "page", "cipher4"],
)
def test_an_encrypted_database_opens_with_its_key_whatever_its_settings(tmp_path: Path, made: dict[str, Any]) -> None:
    (tmp_path / "qq").mkdir()
    plain = qq.write(tmp_path / "plain.db", PEOPLE, CHATS)
    locked = ntqq.encrypted(plain, tmp_path / "qq" / "nt_msg.db", KEY, **made)
    assert history.recognised(locked) is importer.SOURCE
    assert read(locked, Told(key=SecretStr(KEY)))[0] == read(plain)[0]
    assert [p.name for p in (tmp_path / "qq").iterdir()] == ["nt_msg.db"]


@CIPHER
def test_of_half_an_encrypted_database_is_read_what_is_there(tmp_path: Path) -> None:
    rows = [ntqq.say(n, f"第{n}句" + "长" * 300) for n in range(1, 400)]
    locked = ntqq.encrypted(qq.write(tmp_path / "p.db", rows), tmp_path / "nt_msg.db", KEY, **QQ)
    locked.write_bytes(locked.read_bytes()[: locked.stat().st_size * 6 // 10])
    found, reading = read(locked, Told(key=SecretStr(KEY)))
    assert len(found) > 100
    assert any(why.startswith("damaged pages") for why in reading.skipped)


@CIPHER
@pytest.mark.parametrize("hole", [(0.5, 5000), (0.1, 5000), (0.9, 20_000)])
def test_a_hole_in_an_encrypted_database_costs_what_was_in_it(tmp_path: Path, hole: tuple[float, int]) -> None:
    """SQLCipher's connection refuses every page once one has failed."""
    groups = [ntqq.say(n, f"第{n}句" + "长" * 100) for n in range(1, 2001)]
    chats = [ntqq.chat(n, f"第{n}句" + "长" * 100) for n in range(3001, 4001)]
    locked = ntqq.encrypted(qq.write(tmp_path / "p.db", groups, chats), tmp_path / "nt_msg.db", KEY, **QQ)
    whole, (share, size) = bytearray(locked.read_bytes()), hole
    start = int(len(whole) * share)
    whole[start : start + size] = bytes(size)
    locked.write_bytes(whole)
    found, reading = read(locked, Told(key=SecretStr(KEY)))
    ids = [int(m.id) for m in found]
    assert len(ids) == len(set(ids))
    assert 2900 < len(ids) < 3000
    assert {1, 2000, 3001, 4000} <= set(ids)
    assert all(why.startswith("damaged pages") for why in reading.skipped)


def test_a_table_broken_from_its_first_row_is_broken_at_its_beginning(tmp_path: Path) -> None:
    path = qq.write(tmp_path / "nt_msg.db", [ntqq.say(n, f"第{n}句" + "长" * 300) for n in range(1, 400)])
    whole = bytearray(path.read_bytes())
    first = whole.index("第1句".encode()) // 4096 * 4096
    whole[first : first + 4096] = b"\xee" * 4096
    path.write_bytes(whole)
    found, reading = read(path)
    assert len(found) > 380
    assert [places for why, places in reading.places.items() if why.startswith("damaged pages")] == [
        ["group_msg_table at its beginning"]
    ]
    words = history.in_words(history.summary(history.load(path, None), UTC), path.name, dry_run=True)
    assert "  left out an unknown number of messages, in 1 place: damaged pages (" in words


def worded(path: Path, ids: Sequence[int], broken: Iterable[int]) -> Path:
    """Messages of several pages, of which the `broken` ones (from 1) have one that leads to a page there is not."""
    rows = [ntqq.say(i, "长" * 2000 + f"第{n}句" + "长" * 2000) for n, i in enumerate(ids, 1)]
    whole = bytearray(qq.write(path, rows).read_bytes())
    for n in broken:
        page = whole.index(f"第{n}句".encode()) // 4096 * 4096
        whole[page : page + 4] = b"\xff" * 4
    path.write_bytes(whole)
    return path


@pytest.mark.parametrize("step", [1, 100_001])
@pytest.mark.parametrize("broken", [[1], [200], [398], [1, 2, 50, 51, 52, 250, 398], list(range(100, 300, 2))])
def test_broken_words_cost_their_own_message_alone(tmp_path: Path, broken: list[int], step: int) -> None:
    ids = [step * n for n in range(1, 400)]
    found, reading = read(worded(tmp_path / "nt_msg.db", ids, broken))
    assert {*ids} - {int(m.id) for m in found} == {step * n for n in broken}
    assert sum(n for why, n in reading.skipped.items() if why.startswith("damaged pages")) == len(broken)


def test_where_words_are_broken_everywhere_the_import_comes_to_an_end(tmp_path: Path) -> None:
    """Row by row it would be days: each is opened anew, and an encrypted file takes a second for that."""
    ids = [100_001 * n for n in range(1, 900)]
    found, reading = read(worded(tmp_path / "nt_msg.db", ids, range(1, 900)))
    assert not found
    assert 256 < sum(n for why, n in reading.skipped.items() if why.startswith("damaged pages")) <= 256 + 70


@CIPHER
def test_a_wrong_key_is_named(tmp_path: Path) -> None:
    locked = ntqq.encrypted(qq.write(tmp_path / "p.db", PEOPLE), tmp_path / "nt_msg.db", KEY, **QQ)
    with pytest.raises(ImportFault, match=r"'nt_msg\.db' does not open with this key") as caught:
        read(locked, Told(key=SecretStr("another key'----")))
    assert "another key" not in str(caught.value)


@CIPHER
def test_names_that_a_wrong_key_did_not_open_are_read_with_the_right_one(tmp_path: Path, archive: Archive) -> None:
    path = qq.write(tmp_path / "nt_msg.db", [ntqq.say(1, "早", c40090="", c40093="")])
    ntqq.profile_info(tmp_path / "plain.db", {PEOPLE[0]["40033"]: "甲"})
    ntqq.encrypted(tmp_path / "plain.db", tmp_path / "profile_info.db", KEY, **QQ)
    wrong, right, again = (history.load(path, archive, told=Told(key=SecretStr(k))) for k in ("wrong", KEY, KEY))
    assert ([r.before is None for r in (wrong, right, again)], list(right.reading.skipped)) == ([True, True, False], [])
    assert "'profile_info.db' does not open with this key" in next(iter(wrong.reading.skipped))


def test_an_encrypted_database_without_a_key_says_how_to_give_it(tmp_path: Path) -> None:
    path = tmp_path / "nt_msg.db"
    path.write_bytes(ntqq.NT_HEADER.ljust(1024, b"\0") + os.urandom(8192))
    assert history.recognised(path) is importer.SOURCE
    with pytest.raises(ImportFault, match="TWIN_IMPORT_KEY"):
        read(path)


@CIPHER
def test_the_command_line_takes_the_key_from_the_environment(tmp_path: Path) -> None:
    config = tmp_path / "bot.toml"
    config.write_text(f"[paths]\ndata = {json.dumps(str(tmp_path / 'data'))}\n", "utf-8")
    locked = ntqq.encrypted(qq.write(tmp_path / "p.db", PEOPLE), tmp_path / "nt_msg.db", KEY, **QQ)
    command = ["import", str(locked), "--config", str(config), "--json"]
    refused = CliRunner().invoke(app, command, env={"TWIN_IMPORT_KEY": None})
    assert "TWIN_IMPORT_KEY" in str(refused.exception)
    done = CliRunner().invoke(app, command, env={"TWIN_IMPORT_KEY": KEY})
    assert done.exception is None
    shown = json.loads(done.output)
    assert (shown["added"], shown["me"]) == (len(PEOPLE), str(qq.ME))
    assert KEY not in done.output


def test_the_made_up_history_holds_every_kind(tmp_path: Path) -> None:
    rows = list(qq.people_talking(3000))
    path = qq.write(tmp_path / "nt_msg.db", rows)
    found, reading = read(path)
    kinds = {kind for kind in qq.OTHERS if any(m.text.startswith(kind) for m in found)}
    assert kinds == set(qq.OTHERS)
    assert sum(m.reply_to is not None for m in found) > 0
    assert len(found) + sum(reading.skipped.values()) == 3000
    assert head(path).startswith(b"SQLite format 3")
