"""training/importers/weflow.py, chatlog.py, telegram.py, chatlab.py, and OneBot's dumps."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import exports
import pytest

from bot.archive import Archive
from bot.message import Message, Origin, Scene
from training import history
from training.chatlab import export
from training.importers import chatlab
from training.importers.source import HEAD_BYTES, Reading, Told


def read(path: Path, content: bytes) -> tuple[list[Message], Reading]:
    path.write_bytes(content)
    reading = Reading()
    return [m for m in history.recognised(path).read(path, reading) if isinstance(m, Message)], reading


def test_weflow(tmp_path: Path) -> None:
    found, reading = read(tmp_path / "h.json", exports.WEFLOW)
    assert [m.text for m in found] == exports.WEFLOW_TEXTS
    assert {m.scene for m in found} == {Scene("private", "wxid_aze")}
    assert [(m.sender_id, m.sender_name) for m in found[:2]] == [("wxid_aze", "阿泽"), ("wxid_me", "小满")]
    assert (reading.owners, dict(reading.skipped)) == ({"wxid_me": 2}, {"a system row": 1, "a call": 1})


def test_echotrace_is_weflow_without_its_mark_and_rooms_are_groups(tmp_path: Path) -> None:
    content = exports.WEFLOW.replace(b'"weflow"', b'"other"').replace(b'"wxid": "wxid_aze"', b'"wxid": "77@chatroom"')
    found, _ = read(tmp_path / "h.json", content)
    assert {m.scene for m in found} == {Scene("group", "77@chatroom")}


def test_chatlog(tmp_path: Path) -> None:
    found, reading = read(tmp_path / "h.json", exports.CHATLOG)
    assert [m.text for m in found] == exports.CHATLOG_TEXTS
    assert {(m.scene, m.scene_name) for m in found} == {(Scene("group", "77@chatroom"), "面包店")}
    assert found[1].reply_to == found[0].id
    assert found[0].time == datetime.fromtimestamp(exports.BASE_S + 1, UTC)
    assert reading.owners == {"wxid_me": 1}
    assert dict(reading.skipped) == {"a system row": 2, "a recalled message": 1, "a call": 1}


def test_telegram_of_one_chat(tmp_path: Path) -> None:
    found, reading = read(tmp_path / "result.json", exports.TELEGRAM)
    assert [m.text for m in found] == exports.TELEGRAM_TEXTS
    assert {m.scene for m in found} == {Scene("private", "20")}
    assert (found[1].sender_id, found[1].reply_to, found[1].mentions) == ("user10", "2", ("user20",))
    assert found[0].time == datetime.fromtimestamp(exports.BASE_S + 2, UTC)
    assert reading.owners == {"user10": 1}
    assert dict(reading.skipped) == {"a system row": 1, "a call": 1, "an empty message": 1}


def test_telegram_of_a_whole_account(tmp_path: Path) -> None:
    found, reading = read(tmp_path / "result.json", exports.TELEGRAM_ALL)
    assert [m.text for m in found] == [*exports.TELEGRAM_TEXTS, "群里", "在"]
    assert [(m.scene, m.scene_name) for m in found[-2:]] == [(Scene("group", "77"), "面包店")] * 2
    assert reading.owners.most_common(1)[0][0] == "user10"


def test_telegram_is_known_behind_hundreds_of_contacts(tmp_path: Path) -> None:
    contacts = [
        {"first_name": "阿泽", "last_name": "", "phone_number": "", "date": exports.clock(n)} for n in range(900)
    ]
    about = "Here is the data you requested. Remember: Telegram is ad free."
    account = {
        "about": about, "contacts": {"about": "", "list": contacts},
        "chats": {"about": "", "list": [exports.TELEGRAM_CHAT]},
    }  # fmt: skip
    content = exports.document(account, 1)
    assert content.index(b'"chats"') > HEAD_BYTES
    assert [m.text for m in read(tmp_path / "result.json", content)[0]] == exports.TELEGRAM_TEXTS


def test_what_a_deleted_telegram_account_said_is_not_the_words_of_who_forwards_it(tmp_path: Path) -> None:
    said = exports.telegram_row(1, "别人的话", "user10", forwarded_from=None)
    found, _ = read(tmp_path / "result.json", exports.document({**exports.TELEGRAM_CHAT, "messages": [said]}))
    assert [m.text for m in found] == ["[聊天记录]"]


def test_a_private_chatlab_chat_without_owner_is_the_one_who_is_not_me(tmp_path: Path) -> None:
    meta = {"name": "与阿泽的对话", "platform": "qq", "type": "private"}
    path = tmp_path / "h.json"
    path.write_bytes(
        exports.document(
            {"chatlab": exports.CHATLAB_MARK, "meta": meta, "members": exports.CHATLAB_MEMBERS,
             "messages": exports.CHATLAB_ROWS}
        )
    )  # fmt: skip
    scenes = {}
    for me in (None, "1001", "1009"):
        scenes[me] = {m.scene for m in chatlab.items(path, Reading(Told(me=me))) if isinstance(m, Message)}
    named = {Scene("private", "与阿泽的对话")}
    assert scenes == {None: named, "1001": {Scene("private", "1002")}, "1009": named}


@pytest.mark.parametrize("content", [exports.CHATLAB, exports.CHATLAB_JSONL], ids=["json", "jsonl"])
def test_chatlab(tmp_path: Path, content: bytes) -> None:
    found, reading = read(tmp_path / "h.json", content)
    assert [m.text for m in found] == exports.CHATLAB_TEXTS
    assert {m.scene for m in found} == {Scene("private", "1002")}
    assert (found[1].sender_id, found[1].sender_name, found[1].reply_to) == ("1001", "小满", "c1")
    assert reading.owners == {"1001": 1}
    assert dict(reading.skipped) == {"a call": 1, "a system row": 1, "a recalled message": 1, "an empty message": 1}


def test_the_owner_of_a_chatlab_group_is_not_me(tmp_path: Path) -> None:
    meta = {"name": "面包店", "type": "group", "groupId": "900100", "ownerId": "1002"}
    found, reading = read(
        tmp_path / "h.json",
        exports.document(
            {"chatlab": exports.CHATLAB_MARK, "meta": meta, "members": [], "messages": exports.CHATLAB_ROWS[:1]}
        ),
    )
    assert [(m.scene, m.scene_name) for m in found] == [(Scene("group", "900100"), "面包店")]
    assert not reading.owners


def test_what_we_exported_ourselves_comes_back_as_it_was(tmp_path: Path) -> None:
    said = [
        (0, "1001", "早/微笑\n[[x]]", Origin.HUMAN), (0, "twin:1001", "分身说的", Origin.TWIN),
        (24, "1002", "[卡片]", Origin.HUMAN),
        (24, "1002", "[卡片:一首歌]", Origin.HUMAN), (4, "1002", "[文件:账本.xlsx]", Origin.HUMAN),
        (5, "1002", "[动画表情]", Origin.HUMAN),
        (22, "1002", "[戳一戳]", Origin.HUMAN),
    ]  # fmt: skip
    meta = {"name": "面包店", "platform": "qq", "type": "group", "groupId": "900100", "ownerId": "1001"}
    found, reading = read(
        tmp_path / "group-900100.jsonl",
        exports.rows(
            {"_type": "header", "chatlab": exports.CHATLAB_MARK | {"generator": "qqtwin 0.1.0"}, "meta": meta},
            {
                "_type": "member",
                "platformId": "twin:1001",
                "accountName": "小满",
                "roles": [{"id": "bot", "name": "分身"}],
            },
            *(exports.chatlab_row(n, kind, text, who) for n, (kind, who, text, _) in enumerate(said)),
        ),
    )
    assert [(m.sender_id, m.text, m.origin) for m in found] == [
        (who.removeprefix("twin:"), text.replace("\n", "↵"), origin) for _, who, text, origin in said
    ]
    assert reading.owners == {"1001": 1}


@pytest.mark.parametrize("twin", ["1001", "30001"], ids=["my account", "an account of its own"])
def test_a_private_chat_we_exported_is_the_others_and_the_twin_is_nobodys_peer(tmp_path: Path, twin: str) -> None:
    scene, when = Scene("private", "1002"), datetime.fromtimestamp(exports.BASE_S, UTC)
    said = [
        Message("1", scene, twin, "小满", when, "分身先说", Origin.TWIN),
        Message("2", scene, "1001", "小满", when, "我来"),
        Message("3", scene, "1002", "阿泽", when, "好", reply_to="2"),
    ]
    stored = Archive(f"sqlite:///{tmp_path / 'one.db'}")
    stored.append(said)
    ((file, count),) = export(stored, ["1001"], tmp_path, when)
    stored.close()
    assert count == 3
    found, reading = read(file, file.read_bytes())
    assert [(m.id, m.scene, m.sender_id, m.sender_name, m.text, m.origin, m.reply_to) for m in found] == [
        (m.id, m.scene, m.sender_id, m.sender_name, m.text, m.origin, m.reply_to) for m in said
    ]
    assert (reading.owners, dict(reading.skipped)) == ({"1001": 1}, {})


@pytest.mark.parametrize(
    "content", [exports.ONEBOT_ANSWER, exports.ONEBOT_ARRAY, exports.ONEBOT], ids=["answer", "array", "lines"]
)
def test_onebot_dumps_are_read_as_events_are(tmp_path: Path, content: bytes) -> None:
    found, reading = read(tmp_path / "h.json", content)
    assert [(m.id, m.seq, m.text) for m in found] == [(str(n), 5000 + n, f"第{n}句") for n in range(1, 6)]
    assert {m.scene for m in found} == {Scene("group", "900100")}
    assert reading.owners == {"1001": 5}


def test_of_half_an_answer_what_came_before_is_read_and_the_end_is_named(tmp_path: Path) -> None:
    content = exports.ONEBOT_ANSWER[: exports.ONEBOT_ANSWER.index("第4句".encode())]
    found, reading = read(tmp_path / "h.json", content)
    assert [m.id for m in found] == ["1", "2", "3"]
    assert reading.places == {"the file ends in the middle": ["h.json message 3"]}


@pytest.mark.parametrize(
    ("more", "text", "reply_to"),
    [
        ({"reply_to_message_id": 1, "reply_to_peer_id": "channel9"}, "说", None),
        ({"file": "(File not included. Change data exporting settings to download.)"}, "[文件:未命名]说", None),
        ({"contact_information": {"first_name": "桃桃"}}, "[卡片:名片]说", None),
    ],
    ids=["quote of another chat", "file left out", "contact"],
)
def test_what_telegram_says_of_a_message(tmp_path: Path, more: dict[str, Any], text: str, reply_to: str | None) -> None:
    rows = [exports.telegram_row(2, "说", **more), {**exports.telegram_row(3, "没有号"), "id": None}]
    found, reading = read(tmp_path / "r.json", exports.document({**exports.TELEGRAM_CHAT, "messages": rows}))
    assert [(m.text, m.reply_to) for m in found] == [(text, reply_to)]
    assert dict(reading.skipped) == {"a message without an id": 1}


def test_a_telegram_chat_without_a_name_has_not_the_name_of_the_one_before(tmp_path: Path) -> None:
    chats = [
        {"name": "面包店", "type": "private_group", "id": 77, "messages": [exports.telegram_row(1, "一")]},
        {"type": "private_group", "id": 78, "messages": [exports.telegram_row(2, "二")]},
    ]
    found, _ = read(tmp_path / "r.json", exports.document({"about": "", "chats": {"about": "", "list": chats}}, 1))
    assert [(m.scene.id, m.scene_name) for m in found] == [("77", "面包店"), ("78", "")]


def test_chatlabs_names_and_stickers(tmp_path: Path) -> None:
    rows = [
        {k: v for k, v in exports.chatlab_row(1, 0, "早").items() if k != "accountName"},
        exports.chatlab_row(2, 5, "[http://example.org/a.gif]"),
    ]
    head = {"chatlab": exports.CHATLAB_MARK, "meta": exports.CHATLAB_META, "members": exports.CHATLAB_MEMBERS}
    path = tmp_path / "h.json"
    path.write_bytes(exports.document(head | {"messages": rows}))
    found = [m for m in chatlab.items(path, Reading(Told(me="1002"))) if isinstance(m, Message)]
    assert [(m.sender_name, m.text) for m in found] == [("阿泽", "早"), ("阿泽", "[动画表情]")]
    assert {m.scene for m in found} == {Scene("private", "1002")}, "the file's owner goes before who I am said to be"
