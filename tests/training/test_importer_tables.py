"""training/importers/fivecsv.py, wechat.py and weq.py: what each column and element becomes."""

from datetime import UTC, datetime
from pathlib import Path

import exports
import pytest

from bot.message import Message, Scene
from training import history
from training.importers.fivecsv import pieces
from training.importers.source import Reading


def read(path: Path, content: bytes) -> tuple[list[Message], Reading]:
    path.write_bytes(content)
    reading = Reading()
    return [m for m in history.recognised(path).read(path, reading) if isinstance(m, Message)], reading


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
def test_five_columns(tmp_path: Path, encoding: str) -> None:
    found, reading = read(tmp_path / "h.csv", exports.FIVE_CSV.decode().encode(encoding))
    assert [(m.scene.id, m.sender_id, m.sender_name, m.text) for m in found] == [
        ("900100", "100200", "阿泽", "早"), ("900100", "100100", "小满", "@阿泽 两↵行it's"),
        ("900100", "100300", "", "[表情]"),
        ("900200", "100200", "阿泽", "一二"),
    ]  # fmt: skip
    assert found[0].time == datetime.fromtimestamp(exports.BASE_S + 1, UTC)
    assert dict(reading.skipped) == {"a call": 1, "an empty message": 1}


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("['a', 'b']", ["a", "b"]), (r"['\d', 'b']", [r"\d", "b"]), ("['it's', 'b']", ["it's", "b"]), ("[", [""]),
        ("[]", []),
        ("[1, 'b']", ["b"]), ("[" * 10_000, ["[" * 9_997]),
    ],
)  # fmt: skip
def test_a_python_list_is_read_even_when_it_is_none(content: str, texts: list[str]) -> None:
    assert pieces(content) == texts


def test_wechat_private(tmp_path: Path) -> None:
    found, reading = read(tmp_path / "阿泽.csv", exports.WECHAT_CSV)
    assert [m.text for m in found] == [
        "早[微笑]", '两↵行, "引号"', "[图片]", "[语音]", "[动画表情]", "[文件:账本.xlsx]", "引用的", "没有号",
        "[卡片:一首歌]", "[视频]",
    ]  # fmt: skip
    assert {m.scene for m in found} == {Scene("private", "wxid_aze")}
    assert [m.id for m in found[:2]] == ["8001", "8002"]
    assert found[7].id.startswith("x")
    assert reading.owners == {"wxid_me": 4}
    assert dict(reading.skipped) == {"a system row": 2, "a recalled message": 1, "a call": 1}


def test_wechat_without_a_room_is_the_peers_chat(tmp_path: Path) -> None:
    lines = (
        exports.WECHAT_CSV.decode("utf-8-sig")
        .replace("wxid_aze,wxid_aze", "wxid_aze,")
        .replace("wxid_me,wxid_aze", "wxid_me,")
    )
    found, _ = read(tmp_path / "h.csv", lines.encode())
    assert {m.scene for m in found} == {Scene("private", "wxid_aze")}


def test_wechat_without_the_column_and_with_two_others_is_a_group_named_as_the_file(tmp_path: Path) -> None:
    rows = "id,MsgSvrID,type_name,is_sender,talker,msg,src,CreateTime\n" + "".join(
        f"{n},{n},文本,{own},{who},第{n}句,,{exports.clock(n)}\n"
        for n, own, who in ((1, 0, "a"), (2, 1, "me"), (3, 0, "b"))
    )
    found, _ = read(tmp_path / "面包店.csv", rows.encode("utf-8-sig"))
    assert [(m.scene, m.text) for m in found] == [(Scene("group", "面包店"), f"第{n}句") for n in (1, 2, 3)]


def test_wechat_old_layout(tmp_path: Path) -> None:
    found, reading = read(tmp_path / "h.csv", exports.WECHAT_OLD_CSV)
    assert [(m.scene, m.text) for m in found] == [
        (Scene("group", "77@chatroom"), "早"), (Scene("group", "77@chatroom"), "[文件:账本.xlsx]"),
    ]  # fmt: skip
    assert dict(reading.skipped) == {"a content that is not JSON": 1}


@pytest.mark.parametrize("name", ["weq.json", "weq.jsonl", "阿泽.json"])
def test_weq(tmp_path: Path, name: str) -> None:
    content = {"weq.json": exports.WEQ, "weq.jsonl": exports.WEQ_JSONL}.get(name, exports.document(exports.WEQ_ROWS))
    found, reading = read(tmp_path / name, content)
    assert [m.text for m in found] == exports.WEQ_TEXTS
    assert {m.scene for m in found} == {Scene("group" if name == "阿泽.json" else "private", "阿泽")}
    assert (found[1].sender_id, found[1].reply_to, found[1].seq) == ("1001", "76301", 2)
    assert dict(reading.skipped) == {"a recalled message": 1, "a system row": 1, "a call": 1}
    assert reading.owners == ({} if name == "阿泽.json" else {"1001": 1})


def test_weq_txt_and_csv(tmp_path: Path) -> None:
    found, reading = read(tmp_path / "面包店.txt", exports.WEQ_TXT)
    assert [(m.sender_id, m.text) for m in found] == [
        ("1002", "早[微笑]"), ("1001", "好↵第二行"), ("1002", "[文件:账本.xlsx]"), ("1002", "[聊天记录]"),
    ]  # fmt: skip
    assert dict(reading.skipped) == {"a recalled message": 1}
    found, reading = read(tmp_path / "面包店.csv", exports.WEQ_CSV)
    assert [(m.id, m.seq, m.text) for m in found] == [("76301", 1, "早[微笑]"), ("76302", 2, '两↵行, "引"')]
    assert {m.scene for m in found} == {Scene("group", "面包店")}


def test_lines_behind_a_record_that_begin_like_none_are_counted(tmp_path: Path) -> None:
    lines = exports.FIVE_CSV.decode().splitlines(keepends=True)
    whole, _ = read(tmp_path / "h.csv", exports.FIVE_CSV)
    found, reading = read(tmp_path / "h.csv", "".join([*lines, "900200,yesterday,阿泽,100200,\"['三']\"\n\n"]).encode())
    assert [m.text for m in found] == [m.text for m in whole]
    assert reading.skipped["a CSV line that begins like no record"] == 1
