"""Absurd values in every format that can hold them: counted or taken, and the good messages beside them go in."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exports
import pytest

from bot.message import Message
from training import history
from training.importers.source import Reading

MEGABYTE = "好" * 400_000 + "abc" * 50_000
TIMES = {
    0: "a time before 1999 or after 2100", -5: "a time before 1999 or after 2100", "": "a time that is none",
    None: "a time that is none", "明天": "a time that is none", 10**300: "a time that is none",
    9_000_000_000: "a time before 1999 or after 2100", True: "a time that is none",
}  # fmt: skip
Made = Callable[[int, str, dict[str, Any]], dict[str, Any]]


def _qce(number: int, text: str, more: dict[str, Any]) -> dict[str, Any]:
    row = exports.qce_row(number, ("text", {"text": text}))
    return _renamed(row, more, {"time": ("timestamp", "time"), "id": ("id",)})


def _weq(number: int, text: str, more: dict[str, Any]) -> dict[str, Any]:
    row = exports.weq_row(number, ("text", {"textContent": text}))
    return _renamed(row, more, {"time": ("sendTime",), "id": ("msgId",)})


def _weflow(number: int, text: str, more: dict[str, Any]) -> dict[str, Any]:
    return _renamed(exports.weflow_row(number, "文本消息", text), more, {"time": ("createTime",), "id": ("serverId",)})


def _chatlog(number: int, text: str, more: dict[str, Any]) -> dict[str, Any]:
    return _renamed(exports.chatlog_row(number, 1, text), more, {"time": ("time",), "id": ("seq",)})


def _telegram(number: int, text: str, more: dict[str, Any]) -> dict[str, Any]:
    row = exports.telegram_row(number, text)
    return _renamed(row, more, {"time": ("date_unixtime", "date"), "id": ("id",)})


def _chatlab(number: int, text: str, more: dict[str, Any]) -> dict[str, Any]:
    row = exports.chatlab_row(number, 0, text)
    return _renamed(row, more, {"time": ("timestamp",), "id": ("platformMessageId",)})


def _renamed(row: dict[str, Any], more: dict[str, Any], names: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    return row | {theirs: value for key, value in more.items() for theirs in names[key]}


FORMATS: dict[str, tuple[Made, dict[str, Any] | None]] = {
    "qce": (_qce, exports.QCE_HEAD),
    "weq": (_weq, {"meta": exports.WEQ_META}),
    "weflow": (_weflow, {"weflow": {}, "session": {"wxid": "wxid_aze"}}),
    "chatlog": (_chatlog, None),
    "telegram": (_telegram, {"name": "阿泽", "type": "personal_chat", "id": 20}),
    "chatlab": (_chatlab, {"chatlab": exports.CHATLAB_MARK, "meta": exports.CHATLAB_META}),
}
each = pytest.mark.parametrize("name", FORMATS)


def read(path: Path, name: str, *rows: tuple[str, dict[str, Any]], raw: bytes = b"") -> tuple[list[Message], Reading]:
    """Messages of a file of such rows between a first and a last good one; `raw` goes in as it is before the last."""
    make, around = FORMATS[name]
    made = [make(1, "一", {}), *(make(n, text, more) for n, (text, more) in enumerate(rows, 2)), make(30, "末", {})]
    pieces = [json.dumps(m, ensure_ascii=False).encode() for m in made]
    if raw:
        pieces.insert(-1, raw)
    array = b"[" + b",\n".join(pieces) + b"]"
    if around is not None:
        array = json.dumps(around, ensure_ascii=False).encode()[:-1] + b',"messages":' + array + b"}"
    path.write_bytes(array)
    source = history.recognised(path)
    assert source.name == name
    reading = Reading()
    return [m for m in source.read(path, reading) if isinstance(m, Message)], reading


@each
@pytest.mark.parametrize(("time", "why"), TIMES.items(), ids=lambda v: str(v)[:12])
def test_a_time_of_nowhere_is_counted_out(tmp_path: Path, name: str, time: Any, why: str) -> None:
    found, reading = read(tmp_path / "h.json", name, ("无时", {"time": time}))
    assert [m.text for m in found] == ["一", "末"]
    assert dict(reading.skipped) == {why: 1}
    assert reading.places == {why: ["h.json message 2"]}


@each
@pytest.mark.parametrize("factor", [1, 1000, 1_000_000, 1_000_000_000])
def test_seconds_milliseconds_and_finer_are_told_apart(tmp_path: Path, name: str, factor: int) -> None:
    found, _ = read(tmp_path / "h.json", name, ("时", {"time": (exports.BASE_S + 2) * factor}))
    assert [m.time.timestamp() for m in found[:2]] == [exports.BASE_S + 1, exports.BASE_S + 2]


@each
def test_ids_beyond_64_bits_are_text_all_the_way(tmp_path: Path, name: str) -> None:
    found, reading = read(tmp_path / "h.json", name, ("大", {"id": 2**63}), ("更大", {"id": str(2**80)}))
    assert [m.id for m in found[1:3]] == [str(2**63), str(2**80)]
    assert not reading.skipped


@each
def test_a_message_of_a_megabyte_is_one_message(tmp_path: Path, name: str) -> None:
    found, reading = read(tmp_path / "h.json", name, (MEGABYTE, {}))
    assert [len(m.text) for m in found] == [1, len(MEGABYTE), 1]
    assert not reading.skipped


@each
@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"broken": tru, "x": 1}', "broken JSON"),
        (b'{"id": 1 "missing": "comma"', "broken JSON"),
        (b'{"id": ' + b"9" * 5000 + b"}", "broken JSON"),
        (b'{"open": "never closed}', "broken JSON"),
        (b"null", "a record of another shape"),
        (b'"text"', "a record of another shape"),
        (b"[]", "a record of another shape"),
    ],
    ids=["arrays", "objects", "open", "literal", "comma", "digits", "quote", "null", "text", "array"],
)
def test_a_broken_record_costs_no_other(tmp_path: Path, name: str, raw: bytes, why: str) -> None:
    found, reading = read(tmp_path / "h.json", name, ("二", {}), raw=raw)
    assert [m.text for m in found] == ["一", "二", "末"]
    assert dict(reading.skipped) == {why: 1}


@each
def test_halves_of_surrogate_pairs_and_control_characters_are_taken(tmp_path: Path, name: str) -> None:
    make, _ = FORMATS[name]
    raw = json.dumps(make(2, "半\ud800\x01", {})).replace("\\u0001", "\x01").encode()
    found, reading = read(tmp_path / "h.json", name, raw=raw)
    assert [m.text for m in found] == ["一", "半?\x01", "末"]
    assert not reading.skipped


def peak_bytes(path: Path) -> int:
    """The most memory that reading a file took."""
    source = history.recognised(path)
    tracemalloc.start()
    try:
        assert sum(1 for _ in source.read(path, Reading())) > 100
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@each
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    peaks = []
    for rows in (400, 2400):
        read(tmp_path / "h.json", name, *[("好" * 1000, {"id": n, "time": exports.BASE_S + n}) for n in range(2, rows)])
        assert (tmp_path / "h.json").stat().st_size > rows * 3000
        peaks.append(peak_bytes(tmp_path / "h.json"))
    assert peaks[1] < peaks[0] * 1.5


CSVS = {
    "five-csv": "900100,{time},阿泽,100200,\"['{text}']\"\n",
    "wechat-csv": '1,{id},文本,0,wxid_aze,wxid_aze,"{text}",,{time}\n',
    "weq": '{time},1002,u_1002,"{text}",{id},1\n',
}
HEADS = {
    "five-csv": "", "wechat-csv": "id,MsgSvrID,type_name,is_sender,talker,room_name,msg,src,CreateTime\n",
    "weq": "时间,发送者QQ,发送者ID,内容,消息ID,序号\n",
}  # fmt: skip


def table(path: Path, name: str, *texts: str, encoding: str = "utf-8") -> tuple[list[str], Reading]:
    line = CSVS[name]
    time = "2023-11-15T06:13:{:02}Z" if name == "five-csv" else "2023-11-15 06:13:{:02}"
    body = "".join(line.format(time=time.format(n), id=9000 + n, text=t) for n, t in enumerate(texts))
    path.write_bytes((HEADS[name] + body).encode(encoding))
    source = history.recognised(path)
    assert source.name == name
    reading = Reading()
    return [m.text for m in source.read(path, reading) if isinstance(m, Message)], reading


@pytest.mark.parametrize("name", CSVS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_a_table_is_read_in_every_encoding(tmp_path: Path, name: str, encoding: str) -> None:
    assert table(tmp_path / "h.csv", name, "早上好", "吃了吗", encoding=encoding)[0] == ["早上好", "吃了吗"]


@pytest.mark.parametrize("name", CSVS)
def test_a_field_of_a_megabyte_is_read(tmp_path: Path, name: str) -> None:
    texts, reading = table(tmp_path / "h.csv", name, "一", MEGABYTE, "末")
    assert [len(t) for t in texts] == [1, len(MEGABYTE), 1]
    assert not reading.skipped


@pytest.mark.parametrize("name", CSVS)
def test_memory_does_not_grow_with_a_table(tmp_path: Path, name: str) -> None:
    peaks = []
    for rows in (400, 2400):
        path = tmp_path / "h.csv"
        table(path, name, "好" * 1000)
        with path.open("ab") as more:
            head, line = (HEADS[name].encode(), path.read_bytes().removeprefix(HEADS[name].encode()))
            more.write(line * rows)
        assert path.stat().st_size > len(head) + rows * 3000
        peaks.append(peak_bytes(path))
    assert peaks[1] < peaks[0] * 1.5


@pytest.mark.parametrize("name", CSVS)
def test_a_wrong_quote_costs_its_own_record_at_most(tmp_path: Path, name: str) -> None:
    texts, reading = table(tmp_path / "h.csv", name, "一", 'x",y,"z', "三", '"', "末")
    assert [t for t in texts if t in ("一", "三", "末")] == ["一", "三", "末"]
    assert len(texts) + sum(reading.skipped.values()) == 5
    assert all(where in ("h.csv:2", "h.csv:4", "h.csv:3", "h.csv:5") for p in reading.places.values() for where in p)
