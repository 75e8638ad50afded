"""bot/events.py against frames as NapCat 4.18 writes them, and against broken ones."""

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.events import BanKind, MalformedEvent, Mute, Online, Recall, message, read
from bot.message import Message, Origin, Scene

FRAMES = [
    json.loads(line)["frame"]
    for line in (Path(__file__).parents[1] / "data" / "napcat_frames.jsonl").read_text("utf-8").splitlines()
]
GROUP = Scene("group", "20001")


def frame(**wanted: Any) -> dict[str, Any]:
    return next(dict(f) for f in FRAMES if all(f.get(k) == v for k, v in wanted.items()))


def told(**wanted: Any) -> Message | Recall | Mute | Online | None:
    return read(frame(**wanted), {"3889000770": "小明"}.get)


def test_every_frame_of_napcat_is_a_message_or_poke_a_recall_a_mute_or_nothing() -> None:
    found = [read(f) for f in FRAMES if "post_type" in f]
    kinds = [type(x).__name__ for x in found]
    assert len(found) == 18
    assert {k: kinds.count(k) for k in set(kinds)} == {"Message": 8, "Recall": 2, "Mute": 1, "Online": 6, "NoneType": 1}


def test_a_group_message_is_read_whole() -> None:
    raw = frame(message_id=463570927, post_type="message")
    found = read(raw)
    assert found == Message(
        id="463570927", scene=GROUP, sender_id="10001", sender_name="强哥", text="大家好[微笑]", seq=1000,
        time=datetime.fromtimestamp(1795329019, UTC), scene_name="测试群", segments=tuple(raw["message"]),
    )  # fmt: skip


def test_a_mention_bears_the_name_that_is_known() -> None:
    found = told(message_id=889560678)
    assert isinstance(found, Message)
    assert (found.text, found.mentions, found.sender_name) == ("@小明 在吗", ("3889000770",), "小红")


def test_a_quote_points_at_the_message() -> None:
    found = told(message_id=91322721)
    assert isinstance(found, Message)
    assert (found.reply_to, found.text) == ("463570927", "看这条")


def test_cq_code_typed_by_a_person_stays_text() -> None:
    found = told(message_id=1082110576, post_type="message")
    assert isinstance(found, Message)
    assert (found.scene, found.text) == (Scene("private", "10001"), "私聊 [CQ:at,qq=1] & ,")


def test_the_accounts_own_words_lie_in_the_peers_scene() -> None:
    private, group = told(message_id=150605825), told(message_id=182345446)
    assert isinstance(private, Message)
    assert isinstance(group, Message)
    assert (private.scene, private.sender_id, private.origin) == (Scene("private", "10001"), "3889000770", Origin.HUMAN)
    assert (group.scene, group.seq) == (GROUP, 1004)


def test_a_recall_names_the_message_and_who_took_it_back() -> None:
    when = datetime.fromtimestamp(1795329020, UTC)
    assert told(notice_type="group_recall") == Recall(GROUP, "463570927", "10001", when)
    assert told(notice_type="friend_recall") == Recall(Scene("private", "10001"), "1082110576", "10001", when)


@pytest.mark.parametrize(
    ("fields", "scene", "who", "text"),
    [
        ({"group_id": 20001, "user_id": 10001, "target_id": 389}, GROUP, "10001", "[戳一戳]"),
        ({"group_id": 20001, "user_id": 10001, "target_id": 10002}, GROUP, "10001", "[戳一戳]@小红"),
        ({"user_id": 10001, "sender_id": 10001, "target_id": 389}, Scene("private", "10001"), "10001", "[戳一戳]"),
        ({"user_id": 10001, "sender_id": 389, "target_id": 10001}, Scene("private", "10001"), "389", "[戳一戳]"),
        ({"user_id": 389, "target_id": 10001}, Scene("private", "10001"), "389", "[戳一戳]"),
    ],
    ids=["group", "of another", "NapCat private", "NapCat, ours", "LLBot, ours"],
)
def test_a_poke_is_a_message_that_mentions(fields: dict[str, Any], scene: Scene, who: str, text: str) -> None:
    raw = {"post_type": "notice", "notice_type": "notify", "sub_type": "poke", "self_id": 389, "time": 1795329020}
    found = read(raw | fields, {"10002": "小红"}.get)
    assert isinstance(found, Message)
    assert (found.scene, found.sender_id, found.text) == (scene, who, text)
    assert found.mentions == (str(fields["target_id"]),)
    again = read(raw | fields)
    assert isinstance(again, Message)
    assert again.id == found.id


def test_a_poke_of_nobody_is_malformed() -> None:
    raw = {"post_type": "notice", "notice_type": "notify", "sub_type": "poke", "self_id": 389, "time": 1795329020}
    with pytest.raises(MalformedEvent, match="target_id"):
        read(raw | {"user_id": 10001})


def test_a_page_of_history_reads_like_the_events() -> None:
    page = next(f["data"]["messages"] for f in FRAMES if isinstance(f.get("data"), dict) and "messages" in f["data"])
    assert [(m.id, m.text, m.seq) for m in map(message, page)] == [
        ("91322721", "看这条", 1002),
        ("182345446", "你好", 1004),
    ]


def test_a_private_message_through_a_group_is_private() -> None:
    raw = frame(message_id=1082110576, post_type="message") | {"group_id": 20001, "sub_type": "group"}
    assert message(raw).scene == Scene("private", "10001")


def test_history_without_a_type_is_a_groups_if_it_names_one() -> None:
    raw = frame(message_id=463570927)
    del raw["message_type"], raw["post_type"]
    assert message(raw).scene == GROUP


@pytest.mark.parametrize(
    ("fields", "seq"),
    [
        ({"real_seq": "1000"}, 1000),
        ({"real_seq": None, "message_seq": 77}, 77),
        ({"real_seq": None, "message_seq": 463570927}, None),
        ({"real_seq": "²", "message_seq": None}, None),
        ({"real_seq": "9" * 30, "message_seq": None}, None),
        ({"real_seq": -4, "message_seq": 463570927}, None),
    ],
)
def test_the_chats_own_number_is_found_or_left_out(fields: dict[str, Any], seq: int | None) -> None:
    assert message(frame(message_id=463570927, post_type="message") | fields).seq == seq


def test_names_fall_back_from_card_to_nickname_to_nothing() -> None:
    raw = frame(message_id=889560678)
    assert message(raw | {"sender": {"card": "卡", "nickname": "昵"}}).sender_name == "卡"
    assert message(raw | {"sender": {"card": None, "nickname": "昵"}}).sender_name == "昵"
    assert message(raw | {"sender": None}).sender_name == ""
    assert message(raw | {"sender": {"nickname": "裂\ud83d"}}).sender_name == "裂?"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"message_id": None}, "'message_id' is missing"),
        ({"message_id": ""}, "'message_id' is missing"),
        ({"message_id": True}, "'message_id' is missing"),
        ({"user_id": 0}, "'user_id' is missing"),
        ({"group_id": None}, "'group_id' is missing"),
        ({"time": None}, "'time' is not unix seconds"),
        ({"time": "soon"}, "'time' is not unix seconds"),
        ({"time": float("nan")}, "'time' is not unix seconds"),
        ({"time": 1e300}, "'time' is not unix seconds"),
        ({"message": None}, "'message' is neither"),
        ({"message": {"type": "text"}}, "'message' is neither"),
    ],
)
def test_an_event_without_what_makes_a_message_says_which_field(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(MalformedEvent, match=said):
        read(frame(message_id=463570927, post_type="message") | changes)


def test_a_recall_without_its_message_says_so() -> None:
    with pytest.raises(MalformedEvent, match="'message_id' is missing"):
        read(frame(notice_type="group_recall") | {"message_id": None})


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
values = scalars | st.lists(scalars) | st.dictionaries(st.text(), scalars)


@given(
    st.sampled_from([f for f in FRAMES if "post_type" in f]),
    st.dictionaries(st.sampled_from(sorted({k for f in FRAMES for k in f})), values),
)
def test_a_mangled_frame_is_read_or_refused_by_one_error(good: dict[str, Any], mangled: dict[str, Any]) -> None:
    try:
        found = read(good | mangled)
    except MalformedEvent:
        return
    assert found is None or isinstance(found, Mute | Online) or found.time.tzinfo is UTC


def test_a_ban_says_of_which_kind_it_is_and_when_it_began() -> None:
    event = {"post_type": "notice", "notice_type": "group_ban", "sub_type": "ban", "self_id": 4, "time": 7,
             "group_id": 20001, "user_id": 4, "duration": 600}  # fmt: skip
    changes: list[dict[str, Any]] = [
        {}, {"user_id": 0}, {"user_id": 0, "sub_type": "lift_ban"}, {"duration": -1},
        {"notice_type": "group_decrease", "sub_type": "kick_me"}, {"notice_type": "group_increase"},
    ]  # fmt: skip
    mutes = [mute for change in changes if isinstance(mute := read(event | change), Mute)]
    assert [(m.seconds, m.kind) for m in mutes] == [
        (600, "own"), (math.inf, "all"), (0, "all"), (math.inf, "own"), (math.inf, "gone"), (0, "gone"),
    ]  # fmt: skip
    assert {m.since for m in mutes} == {datetime.fromtimestamp(7, UTC)}
    unknown = read(event | {"time": None})
    assert isinstance(unknown, Mute)
    assert (datetime.now(UTC) - unknown.since).total_seconds() < 60


@pytest.mark.parametrize(
    ("changed", "seconds"),
    [
        ({}, 600), ({"user_id": 0, "duration": -1}, math.inf), ({"user_id": 0, "duration": 0}, math.inf),
        ({"sub_type": "lift_ban", "duration": 0}, 0), ({"sub_type": "lift_ban", "user_id": 0, "duration": 0}, 0),
        ({"user_id": 10001}, None), ({"user_id": 10001, "duration": "x"}, None),
    ],
)  # fmt: skip
def test_a_mute_of_the_account_or_of_all_is_told_apart_from_somebody_elses(
    changed: dict[str, Any], seconds: float | None
) -> None:
    ban = {"post_type": "notice", "notice_type": "group_ban", "sub_type": "ban", "self_id": 3889000770, "time": 1,
           "group_id": 20001, "user_id": 3889000770, "operator_id": 10002, "duration": 600}  # fmt: skip
    kind = BanKind.ALL if changed.get("user_id") == 0 else BanKind.OWN
    began = datetime.fromtimestamp(1, UTC)
    assert read(ban | changed) == (None if seconds is None else Mute("3889000770", GROUP, seconds, kind, began))


def test_a_mute_without_a_length_is_malformed() -> None:
    ban = {
        "post_type": "notice",
        "notice_type": "group_ban",
        "self_id": 1,
        "user_id": 1,
        "group_id": 2,
        "duration": [1],
    }
    with pytest.raises(MalformedEvent, match="duration"):
        read(ban | {"duration": [1]})
