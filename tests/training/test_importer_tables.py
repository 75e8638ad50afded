"""training/importers/fivecsv.py, wechat.py and weq.py: what each column and element becomes."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import exports
import pytest

from bot.errors import ImportFault
from bot.message import Message, Scene
from bot.stickers import named
from training import folders, history
from training.importers.fivecsv import pieces
from training.importers.record import SECONDS_REMEMBERED, Ids
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


def test_seconds_out_of_order_cost_no_message(tmp_path: Path) -> None:
    said = [("好", 1), ("a", 2), ("好", 1), ("b", 3), ("好", 1)]
    rows = "".join(f"{i},0,文本,0,wx1,wx1,{t},,2024-10-04 11:42:0{s}\n" for i, (t, s) in enumerate(said)).encode()
    header = b"id,MsgSvrID,type_name,is_sender,talker,room_name,msg,src,CreateTime\n"
    found, _ = read(tmp_path / "h.csv", header + rows)
    assert len({m.id for m in found}) == 5
    in_order, _ = read(tmp_path / "sorted.csv", header + b"".join(sorted(rows.splitlines(True), key=lambda r: r[-3:])))
    assert {m.id for m in in_order} == {m.id for m in found}, "another export's order gives the same ids"


def test_of_what_ids_are_made_of_little_is_remembered() -> None:
    ids, scene = Ids(), Scene("group", "1")
    made = {ids.of(scene, datetime.fromtimestamp(n, UTC), "2", "好") for n in range(3 * SECONDS_REMEMBERED)}
    assert (len(made), len(ids._seen)) == (3 * SECONDS_REMEMBERED, SECONDS_REMEMBERED)


def test_a_second_that_is_written_to_again_and_again_is_still_remembered() -> None:
    ids, scene = Ids(), Scene("group", "1")
    first = []
    for n in range(2 * SECONDS_REMEMBERED):
        ids.of(scene, datetime.fromtimestamp(1 + n, UTC), "2", "好")
        if n % 100 == 0:
            first.append(ids.of(scene, datetime.fromtimestamp(0, UTC), "2", "好"))
    assert len(set(first)) == len(first) == 2 * SECONDS_REMEMBERED / 100


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


def wechat_rows(*said: tuple[int, int, str], room: str = "") -> bytes:
    """Rows of (number, is_sender, talker)."""
    rows = (f"{n},{9000 + n},文本,{own},{who},{room},第{n}句,,{exports.clock(n)}\n" for n, own, who in said)
    return ("id,MsgSvrID,type_name,is_sender,talker,room_name,msg,src,CreateTime\n" + "".join(rows)).encode()


def test_a_folder_of_wechat_contacts_is_read_contact_by_contact(tmp_path: Path) -> None:
    files = {
        "阿泽/阿泽_0_5000.csv": wechat_rows((1, 0, "wxid_aze"), (2, 1, "me")),
        "面包店/面包店_10000_15000.csv": wechat_rows((9, 0, "c")),
        "面包店/面包店_0_5000.csv": wechat_rows((3, 0, "a"), (4, 1, "me")),
        "面包店/面包店_5000_10000.csv": wechat_rows((5, 1, "me"), (6, 0, "b"), (7, 1, "me")),
        "桃桃/没有人说话.csv": wechat_rows((8, 1, "me"), room="wxid_taotao"),
        "桃桃/账本.csv": "日期,金额\n".encode("utf-8-sig"),
        "桃桃/image/1.jpg": b"\xff\xd8",
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    source = history.recognised(tmp_path)
    assert source.name == "wechat-csv"
    reading = Reading()
    found = [m for m in source.read(tmp_path, reading) if isinstance(m, Message)]
    assert [(str(m.scene), m.text) for m in found] == [
        ("private:wxid_taotao", "第8句"),
        ("private:wxid_aze", "第1句"), ("private:wxid_aze", "第2句"),
        *(("group:面包店", f"第{n}句") for n in (3, 4, 5, 6, 7, 9)),
    ]  # fmt: skip
    assert not reading.skipped
    parts, left = folders.found(tmp_path)
    assert [(part.path, part.source) for part in parts] == [(tmp_path, source)]
    assert left.places == {"of no format known here": ["桃桃/账本.csv", "桃桃/image/1.jpg"]}
    assert reading.owners == {"me": 5}
    assert reading.size == sum(len(c) for name, c in files.items() if name.endswith("csv") and "账本" not in name)
    alone = history.recognised(tmp_path / "面包店")
    assert {m.scene for m in alone.read(tmp_path / "面包店", Reading()) if isinstance(m, Message)} == {
        Scene("group", "面包店")
    }


def test_a_folder_of_other_files_is_of_no_known_format(tmp_path: Path) -> None:
    (tmp_path / "账本.csv").write_text("日期,金额\n", "utf-8")
    with pytest.raises(ImportFault, match="no format known"):
        history.recognised(tmp_path)


@pytest.mark.parametrize("jsonl", [False, True])
def test_a_private_chat_of_weq_is_the_member_who_is_not_its_owner(tmp_path: Path, jsonl: bool) -> None:
    members = [{"uid": f"u_{n}", "platformId": n, "accountName": n} for n in ("1001", "1002")]
    if jsonl:
        lines = [{"_type": "header", "meta": exports.WEQ_META}, *({"_type": "member"} | m for m in members)]
        content = exports.rows(*lines, *exports.WEQ_ROWS)
    else:
        content = exports.document({"meta": exports.WEQ_META, "members": members, "messages": exports.WEQ_ROWS})
    found, reading = read(tmp_path / "阿泽.json", content)
    assert {m.scene for m in found} == {Scene("private", "1002")}
    assert [m.text for m in found] == exports.WEQ_TEXTS
    assert dict(reading.owners) == {"1001": 1}


def test_what_a_weq_log_wrote_out_of_a_forward_is_nobodys_words(tmp_path: Path) -> None:
    lines = [
        f"[{exports.clock(1)}] 1002: [合并转发]", "　桃桃: 不是我说的", "第二行", "　桃桃: 还有",
        f"[{exports.clock(2)}] 1002: 看[表情]", "",
    ]  # fmt: skip
    found, _ = read(tmp_path / "h.txt", "\n".join(lines).encode())
    assert [m.text for m in found] == ["[聊天记录]", "看[动画表情]"]


def test_number_zero_of_weq_is_nobodys(tmp_path: Path) -> None:
    row = exports.weq_row(1, ("text", {"textContent": "早"}))
    found, _ = read(tmp_path / "h.json", exports.document([{**row, "senderUin": "0"}]))
    table = f"{exports.clock(1)},0,u_7,早,76301,1"
    found += read(tmp_path / "h.csv", f"时间,发送者QQ,发送者ID,内容,消息ID,序号\n{table}\n".encode())[0]
    assert [m.sender_id for m in found] == ["u_1002", "u_7"]


def test_what_weq_says_of_a_message(tmp_path: Path) -> None:
    rows = [
        exports.weq_row(1, ("shareLocation", {}), ("emojiBounce", {})) | {"groupNickname": "泽"},
        exports.weq_row(
            2, ("reply", {"replyOrigMsgIdRef": "76301", "origMsgId": "9"}), ("text", {"textContent": "好"})
        ),
    ]
    found, _ = read(tmp_path / "h.json", exports.document(rows))
    assert [(m.text, m.sender_name, m.reply_to) for m in found] == [
        ("[位置][表情]", "泽", None), ("好", "阿泽", "76301"),
    ]  # fmt: skip
    log = f"[{exports.clock(1)}] 1002: [群提示]\n[{exports.clock(2)}] 1002: 好\n"
    found, reading = read(tmp_path / "h.txt", log.encode())
    assert ([m.text for m in found], dict(reading.skipped)) == (["好"], {"a system row": 1})


def test_a_private_weq_chat_with_several_others_keeps_the_first(tmp_path: Path) -> None:
    members = [{"platformId": n} for n in ("1002", "1001", "1003")]
    content = exports.document({"meta": exports.WEQ_META, "members": members, "messages": exports.WEQ_ROWS})
    assert {m.scene for m in read(tmp_path / "h.json", content)[0]} == {Scene("private", "1002")}


MD5 = "2fba99613c5656a48d0cb2801b20af1d"


@pytest.mark.parametrize(("data", "text"), [
    ({"subType": 1, "md5": MD5, "fileName": "x.gif"}, "[动画表情:开心]"),
    ({"subType": 7, "fileName": f"{MD5.upper()}.gif"}, "[动画表情:开心]"),
    ({"summary": ["", "[动画表情]"], "md5": MD5}, "[动画表情:开心]"),
    ({"subType": 1}, "[动画表情]"), ({"subType": 0, "md5": MD5, "summary": []}, "[图片]"),
    ({"summary": "x", "md5": MD5}, "[图片]"),
])  # fmt: skip
def test_a_picture_of_weq_reads_as_the_databases_and_a_sticker_is_named_by_its_hash(
    tmp_path: Path, data: dict[str, Any], text: str
) -> None:
    found, _ = read(tmp_path / "weq.json", exports.document([exports.weq_row(1, ("pic", data))]))
    assert [named(m, {MD5: "开心"}).text for m in found] == [text]


def test_a_market_face_of_weq_has_its_name(tmp_path: Path) -> None:
    rows = [exports.weq_row(1, ("mface", {"emojiDesc": "[贴贴]"})), exports.weq_row(2, ("mface", {}))]
    found, _ = read(tmp_path / "weq.json", exports.document(rows))
    assert [m.text for m in found] == ["[贴贴]", "[动画表情]"]
