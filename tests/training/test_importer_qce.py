"""training/importers/qce.py and qcetxt.py: every kind of message of QQChatExporter as live ones are stored."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import exports
import pytest

from bot.archive import Archive
from bot.config import Conversation
from bot.errors import ImportFault
from bot.message import Message, Scene
from bot.stickers import named
from training import history
from training.corpus import build
from training.importers import qce, qcetxt
from training.importers.qcemessage import RECENT, Chat
from training.importers.source import Reading

GROUP = Scene("group", "900100")


def read(path: Path, content: bytes | None = None) -> tuple[list[Message], Reading]:
    if content is not None:
        path.write_bytes(content)
    reading = Reading()
    return [m for m in history.recognised(path).read(path, reading) if isinstance(m, Message)], reading


def test_v6_reads_as_live_messages_do(tmp_path: Path) -> None:
    found, reading = read(tmp_path / "h.json", exports.QCE)
    assert [m.text for m in found] == exports.QCE_TEXTS
    assert {m.scene for m in found} == {GROUP}
    assert dict(reading.skipped) == {"a call": 1, "a recalled message": 1, "a system row": 1, "an empty message": 1}
    first, second, third = found[:3]
    assert (first.id, first.seq, first.sender_id, first.sender_name) == ("7630000000000000001", 1001, "1002", "阿泽")
    assert first.time == datetime.fromtimestamp(exports.BASE_S + 1, UTC)
    assert (second.sender_id, second.reply_to) == ("1001", first.id)
    assert (third.mentions, found[10].mentions) == (("1001",), ("all",))
    assert reading.owners.most_common(1) == [("1001", 2)]
    assert found[4].segments[0]["data"] == {"summary": "[贴贴]", "emoji_id": "ab", "emoji_package_id": 7, "key": "k"}


def test_v5_is_read_from_its_rendered_text(tmp_path: Path) -> None:
    found, _ = read(tmp_path / "h.json", exports.document(exports.QCE_HEAD | {"messages": exports.QCE_V5_ROWS}))
    assert [m.text for m in found] == exports.QCE_V5_TEXTS
    assert (found[3].reply_to, found[4].mentions) == (found[0].id, ("u_me",))


def test_v3_is_read_and_a_private_chat_without_a_number_has_its_others(tmp_path: Path) -> None:
    found, reading = read(tmp_path / "h.json", exports.QCE_V3)
    assert [(m.id, m.sender_id, m.text) for m in found] == [
        ("m1", "1002", "早"), ("m2", "1001", "[图片]"), ("m5", "1002", "[聊天记录]"),
    ]  # fmt: skip
    assert {m.scene for m in found} == {Scene("private", "1002")}
    assert reading.owners == {"1001": 1}


SYSTEM_ROW = exports.qce_row(1, ("text", {"text": "你们是好友"}), who="u_sys", system=True)
TALK = [
    SYSTEM_ROW,
    exports.qce_row(2, ("text", {"text": "早"}), who="u_me"),
    exports.qce_row(3, ("text", {"text": "早"})),
]
PEERS: dict[str, tuple[dict[str, Any], str]] = {
    "by its inner id": ({"peerUid": "u_2"}, "1002"),
    "number zero": ({"peerUid": "u_2", "peerUin": "0"}, "1002"),
    "who is not me, by inner id": ({"selfUid": "u_me"}, "1002"),
    "who is not me, by number": ({"selfUin": "1001"}, "1002"),
    "told": ({"peerUin": "77", "selfUid": "u_me"}, "77"),
    "the inner id is a number": ({"peerUid": "88", "selfUid": "u_me"}, "88"),
    "nobody of that inner id": ({"peerUid": "u_9", "selfUid": "u_me"}, "u_9"),
    "who I am is not told": ({}, "阿泽"),
}


@pytest.mark.parametrize(("told", "number"), PEERS.values(), ids=PEERS)
@pytest.mark.parametrize("chunks", [False, True], ids=["document", "chunks"])
def test_a_private_chat_has_the_number_its_messages_tell(
    tmp_path: Path, told: dict[str, Any], number: str, chunks: bool
) -> None:
    info = {"name": "阿泽", "type": "private", **told}
    if not chunks:
        found, reading = read(
            tmp_path / "h.json", exports.document({"metadata": {}, "chatInfo": info, "messages": TALK})
        )
    else:
        for n, row in enumerate(TALK):
            (tmp_path / f"c{n}.jsonl").write_bytes(exports.rows(row))
        listed = {"chunks": [{"fileName": f"c{n}.jsonl"} for n in range(len(TALK))]}
        (tmp_path / "manifest.json").write_bytes(exports.document({"chatInfo": info, "chunked": listed}))
        found, reading = read(tmp_path)
        mine, _ = read(tmp_path / "c1.jsonl")
        assert {m.scene.id for m in mine} == {number}, "a chunk alone is of the same chat"
    assert {m.scene for m in found} == {Scene("private", number)}
    assert ([m.text for m in found], dict(reading.skipped)) == (["早", "早"], {"a system row": 1})


@pytest.mark.parametrize("info", [{"selfUid": "u_me"}, {"selfUid": "u_me", "peerUid": "u_2"}, {"selfUin": "1001"}])
def test_my_own_number_is_never_the_others(tmp_path: Path, info: dict[str, Any]) -> None:
    mine = exports.qce_row(1, ("text", {"text": "早"}), who="u_me")
    unknown = exports.qce_row(2, ("text", {"text": "在"}), who="u_me")
    unknown["sender"]["uid"] = ""
    document = {"metadata": {}, "chatInfo": {"name": "阿泽", "type": "private", **info}, "messages": [mine, unknown]}
    found, _ = read(tmp_path / "h.json", exports.document(document))
    assert {m.scene.id for m in found} == {info.get("peerUid", "阿泽")}


def test_broken_rows_before_the_others_first_word_are_counted_once(tmp_path: Path) -> None:
    info = {"name": "阿泽", "type": "private", "peerUid": "u_2"}
    rows = [None, {"sender": "x"}, {"sender": {"uid": 3, "uin": []}}, *TALK]
    found, reading = read(tmp_path / "h.json", exports.document({"metadata": {}, "chatInfo": info, "messages": rows}))
    assert {m.scene.id for m in found} == {"1002"}
    assert sum(reading.skipped.values()) == 4


MD5 = "2fba99613c5656a48d0cb2801b20af1d"
STICKERS: dict[str, tuple[dict[str, Any], str]] = {
    "its hash": ({"md5": MD5.upper(), "filename": "a.gif"}, "[动画表情:开心]"),
    "its name": ({"filename": f"{MD5.upper()}.gif"}, "[动画表情:开心]"),
    "neither": ({"filename": "a.gif"}, "[动画表情]"),
}


@pytest.mark.parametrize(("data", "text"), STICKERS.values(), ids=STICKERS)
def test_a_sticker_is_named_by_its_hash(tmp_path: Path, data: dict[str, Any], text: str) -> None:
    sticker, photo = ("image", {"subType": "sticker", **data}), ("image", {"subType": "photo", "md5": MD5})
    v6 = exports.qce_row(1, ("text", {"text": "看"}), photo, sticker)
    v5 = exports.qce_v5_row(2, "看[图片: b.png][图片: a.gif]", photo, sticker)
    typed = exports.qce_v5_row(3, "[动画表情][图片: a.gif]", sticker)
    found, _ = read(tmp_path / "h.json", exports.document(exports.QCE_HEAD | {"messages": [v6, v5, typed]}))
    assert [m.text for m in found] == ["看[图片][动画表情]", "看[图片][动画表情]", "[动画表情][动画表情]"]
    shown = [named(m, {MD5: "开心"}).text for m in found]
    assert shown == [f"看[图片]{text}", f"看[图片]{text}", "[动画表情][动画表情]"], "typed and sent are not told apart"


STICKER_FILES = {
    "qce": exports.QCE_HEAD
    | {"messages": [exports.qce_row(1, ("image", {"subType": "sticker", "md5": MD5}), who="u_me")]},
    "weq": {"meta": exports.WEQ_META, "members": []}
    | {"messages": [exports.weq_row(1, ("pic", {"subType": 1, "md5": MD5}), uin="1001")]},
}


@pytest.mark.parametrize("content", STICKER_FILES.values(), ids=STICKER_FILES)
def test_a_corpus_of_what_was_imported_names_the_librarys_stickers(tmp_path: Path, content: dict[str, Any]) -> None:
    (tmp_path / "h.json").write_bytes(exports.document(content))
    archive = Archive(f"sqlite:///{tmp_path / 'archive.db'}")
    history.load(tmp_path / "h.json", archive)
    texts = []
    for library in ({MD5: "开心"}, {}):
        (part,) = build(archive, ["1001"], ["小满"], Conversation(), stickers=library).scenes
        texts.append(part.exchanges[0].said[0].text)
    archive.close()
    assert texts == ["[动画表情:开心]", "[动画表情]"]


@pytest.mark.parametrize("newer", [True, False], ids=["c000001.jsonl", "chunk_0001.jsonl"])
def test_a_chunked_export_is_read_from_its_folder_its_manifest_or_a_chunk(tmp_path: Path, newer: bool) -> None:
    folder = chunked(tmp_path, newer)
    for path in (folder, folder / "manifest.json"):
        found, reading = read(path)
        assert [m.text for m in found] == exports.QCE_TEXTS
        assert {m.scene for m in found} == {GROUP}
        missing = "chunks/c000003.jsonl" if newer else "chunk_0003.jsonl"
        assert reading.places["a chunk that is missing"] == [
            f"manifest.json: {missing}",
            "manifest.json: ../../x.jsonl",
        ]
    found, _ = read(next(folder.rglob("*1.jsonl")))
    assert [m.text for m in found] == exports.QCE_TEXTS[:3]
    assert {m.scene for m in found} == {GROUP}


@pytest.mark.parametrize("newer", [False, True])
def test_a_chunk_that_comes_later_is_read_by_the_same_manifest(tmp_path: Path, newer: bool) -> None:
    folder = chunked(tmp_path, newer)
    late = next(folder.rglob("*2.jsonl"))
    aside = late.rename(tmp_path / "aside")
    archive = Archive(f"sqlite:///{tmp_path / 'archive.db'}")
    manifest = folder / "manifest.json"
    assert history.load(manifest, archive).added == 3
    assert history.load(manifest, archive).before is not None
    aside.rename(late)
    assert history.load(manifest, archive).added == len(exports.QCE_TEXTS) - 3
    archive.close()


def chunked(tmp_path: Path, newer: bool) -> Path:
    folder = tmp_path / "面包店_chunked_jsonl"
    (folder / "chunks").mkdir(parents=True)
    names = ["chunks/c00000{}.jsonl" if newer else "chunk_000{}.jsonl"] * 3
    names = [name.format(n) for n, name in enumerate(names, 1)]
    (folder / names[0]).write_bytes(exports.rows(*exports.QCE_ROWS[:3]))
    (folder / names[1]).write_bytes(exports.rows(*exports.QCE_ROWS[3:]))
    (tmp_path.parent / "x.jsonl").write_bytes(exports.rows(*exports.QCE_ROWS))
    rows: list[dict[str, Any]] = [
        {"relativePath": n, "fileName": Path(n).name} if newer else {"file": n, "messages": 3} for n in names
    ]
    rows.append({"relativePath": "../../x.jsonl"})
    told = {"format": "chunked-jsonl", "chunksDir": "chunks" if newer else "", "chunks": rows}
    (folder / "manifest.json").write_text(json.dumps(exports.QCE_HEAD | {"chunked": told}), "utf-8")
    return folder


def test_a_broken_manifest_is_a_fault_that_names_the_remedy(tmp_path: Path) -> None:
    folder = chunked(tmp_path, newer=True)
    manifest = folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-40])
    with pytest.raises(ImportFault, match=r"manifest.json' is broken: export again, or import the files"):
        history.load(folder, None, source=qce.SOURCE)


def test_a_snapshot_without_ids_gets_ids_that_last(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "id"} for row in exports.QCE_ROWS]
    whole, _ = read(tmp_path / "h.json", exports.document(exports.QCE_HEAD | {"messages": rows}))
    later, _ = read(tmp_path / "h.json", exports.document(exports.QCE_HEAD | {"messages": rows[2:]}))
    assert [m.id for m in whole[2:]] == [m.id for m in later]


def test_its_txt_is_read_with_quotes_and_without_the_lists_of_files(tmp_path: Path) -> None:
    found, reading = read(tmp_path / "h.txt", exports.QCE_TXT)
    assert [(m.sender_id, m.text) for m in found] == [
        ("阿泽", "早 [微笑]↵第二行:"), ("小满", "好"), ("小满", "[图片]"), ("阿泽", "[语音]"),
    ]  # fmt: skip
    assert {m.scene for m in found} == {Scene("group", "面包店")}
    assert found[1].reply_to == found[0].id
    assert found[0].time == datetime.fromtimestamp(exports.BASE_S + 1, UTC)
    assert dict(reading.skipped) == {"a system row": 1}


def test_a_txt_of_nothing_but_its_head_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "h.txt"
    path.write_bytes(exports.QCE_TXT[:300])
    assert qcetxt.sniff(path, path.read_bytes())
    with pytest.raises(ImportFault, match=r"'h.txt' holds no message of QQChatExporter TXT"):
        history.load(path, None)


def test_number_zero_is_nobodys_and_the_inner_id_stands_for_who_has_no_other(tmp_path: Path) -> None:
    rows = [exports.qce_row(1, ("text", {"text": "早"})), exports.qce_row(2, ("text", {"text": "好"}), who="u_me")]
    rows.append(exports.qce_row(3, ("text", {"text": "在"}), who="u_3"))
    for row, uin in zip(rows, ("1002", "0", 0), strict=True):
        row["sender"]["uin"] = uin
    rows.append(exports.qce_row(4, ("text", {"text": "啊"})))
    rows[3]["sender"]["uin"] = "0"
    found, _ = read(tmp_path / "h.json", exports.document(exports.QCE_HEAD | {"messages": rows}))
    assert [m.sender_id for m in found] == ["1002", "u_me", "u_3", "1002"]


def test_a_private_chat_known_by_its_inner_id_alone_is_told(tmp_path: Path) -> None:
    info = {"name": "阿泽", "type": "private", "selfUid": "u_me", "peerUid": "u_2", "peerUin": "0"}
    path = tmp_path / "h.json"
    rows = [exports.qce_row(1, ("text", {"text": "在吗"}), who="u_me")]
    path.write_bytes(exports.document(exports.QCE_HEAD | {"chatInfo": info, "messages": rows}))
    shown = history.summary(history.load(path, None), UTC)
    assert shown["scenes_by_name"] == ["private:u_2"]


def test_what_nobody_said_is_a_system_row(tmp_path: Path) -> None:
    row = exports.qce_row(1, ("text", {"text": "你们是好友"})) | {"sender": {"uid": "未知", "name": "系统消息"}}
    rows = [row, exports.qce_row(2, ("text", {"text": "早"}))]
    found, reading = read(tmp_path / "h.json", exports.document(exports.QCE_HEAD | {"messages": rows}))
    assert ([m.text for m in found], dict(reading.skipped)) == (["早"], {"a system row": 1})


def test_of_two_of_one_second_the_resolved_one_is_quoted(tmp_path: Path) -> None:
    quote = {"messageId": "1", "referencedMessageId": "r", "senderUin": "1002", "timestamp": exports.BASE_S + 1}
    rows = [exports.qce_row(1, ("text", {"text": words})) | {"id": words} for words in ("一", "二")]
    rows.append(exports.qce_row(2, ("reply", quote), ("text", {"text": "好"})))
    found, _ = read(tmp_path / "h.json", exports.document(exports.QCE_HEAD | {"messages": rows}))
    assert found[2].reply_to == "r"
    found, _ = read(tmp_path / "one.json", exports.document(exports.QCE_HEAD | {"messages": rows[1:]}))
    assert found[1].reply_to == "二"


def test_of_what_is_quoted_so_many_messages_are_remembered() -> None:
    chat = Chat(exports.QCE_INFO, "h", Reading())
    quote = {"senderUin": "1002", "timestamp": exports.BASE_S, "referencedMessageId": "r"}
    first, *_ = [chat.message(exports.qce_row(n, ("text", {"text": "话"}))) for n in range(RECENT)]
    quoting = [exports.qce_row(RECENT + n, ("reply", quote), ("text", {"text": "好"})) for n in range(2)]
    assert [chat.message(row).reply_to for row in quoting] == [first.id, "r"], "the first quote pushes it out"
