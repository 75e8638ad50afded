"""bot/segments.py: every shape NapCat, LLBot and Lagrange send, and nothing dangerous out."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.segments import Canonical, face_ids, face_names, is_seen, market_face, to_segments, to_text

NAMES = {"10001": "阿强"}


def text_of(*segments: Any) -> str:
    return to_text(segments, NAMES.get).text


def seg(kind: str, **data: Any) -> dict[str, Any]:
    return {"type": kind, "data": data}


INCOMING = [
    ("text", seg("text", text="你好"), "你好"),
    ("text keeps CQ code as text", seg("text", text="[CQ:at,qq=all]"), "[CQ:at,qq=all]"),
    ("at NapCat, name known", seg("at", qq="10001"), "@阿强"),
    ("at NapCat, name unknown", seg("at", qq="10009"), "@10009"),
    ("at LLBot, number as int", seg("at", qq=10009, name="小红"), "@小红"),
    ("at Lagrange", seg("at", qq="10009", name="@小红"), "@小红"),
    ("at everyone", seg("at", qq="all"), "@全体成员"),
    ("face NapCat", seg("face", id="178", raw={"faceIndex": 178, "faceText": "/斜眼笑"}), "[斜眼笑]"),
    ("face NapCat, text null", seg("face", id="14", raw={"faceIndex": 14, "faceText": None}), "[微笑]"),
    ("face NapCat, new", seg("face", id="99999", raw={"faceText": "/新脸"}, resultId=None, chainCount=None), "[新脸]"),
    ("face LLBot", seg("face", id=14, sub_type=1), "[微笑]"),
    ("face Lagrange", seg("face", id="14", large=False), "[微笑]"),
    ("face unknown", seg("face", id="99999"), "[表情]"),
    ("image NapCat, photo", seg("image", summary="", file="A.jpg", sub_type=0, url="u", file_size="1"), "[图片]"),
    ("image NapCat, sticker", seg("image", summary="[动画表情]", file="A.gif", sub_type=1, url="u"), "[动画表情]"),
    ("image NapCat, sticker by summary", seg("image", summary="[动画表情]", file="A", sub_type=0), "[动画表情]"),
    ("image LLBot, photo", seg("image", file="A.jpg", subType=0, url="u", file_size="1"), "[图片]"),
    ("image LLBot, sticker", seg("image", file="A.jpg", subType=1, url="u"), "[动画表情]"),
    ("image Lagrange", seg("image", file="u", filename="A", url="u", summary="[图片]", subType=0), "[图片]"),
    ("image Lagrange, hot", seg("image", file="u", summary="[动画表情]", subType="2"), "[动画表情]"),
    ("market NapCat", seg("image", summary="[贴贴]", file="ab-1.gif", url="u", key="k", emoji_id="1"), "[贴贴]"),
    ("market NapCat, unnamed", seg("image", summary="", emoji_id="1", emoji_package_id=2), "[动画表情]"),
    ("market LLBot", seg("mface", summary="[贴贴]", url="u", emoji_id="1", emoji_package_id=2, key="k"), "[贴贴]"),
    ("market unnamed", seg("mface", emoji_id="1"), "[动画表情]"),
    ("market go-cqhttp", seg("marketface", summary="[贴贴]"), "[贴贴]"),
    ("record NapCat", seg("record", file="a.amr", path="/p", file_size="1"), "[语音]"),
    ("video LLBot", seg("video", file="a.mp4", url="u", path="/p", file_size="1"), "[视频]"),
    ("file NapCat", seg("file", file="作业.docx", file_id="f", file_size="1"), "[文件:作业.docx]"),
    ("file named", seg("file", name="作业.docx", file="/tmp/x"), "[文件:作业.docx]"),
    ("file without name", seg("file", file_id="f"), "[文件:未命名]"),
    ("forward NapCat", seg("forward", id="f", content=[]), "[聊天记录]"),
    ("forward LLBot", seg("forward", id="resid"), "[聊天记录]"),
    ("node", seg("node", user_id="1", content=[]), "[聊天记录]"),
    ("longmsg Lagrange", seg("longmsg", id="x"), "[聊天记录]"),
    ("json card", seg("json", data='{"app":"a","prompt":"[分享] 一首歌","desc":"x"}'), "[卡片:分享 一首歌]"),
    ("json without title", seg("json", data='{"app":"a"}'), "[卡片]"),
    ("json broken", seg("json", data='{"app":'), "[卡片]"),
    ("json a list", seg("json", data="[1]"), "[卡片]"),
    ("xml", seg("xml", data="<msg/>"), "[卡片]"),
    ("share", seg("share", url="u", title="新闻"), "[卡片:新闻]"),
    ("markdown", seg("markdown", content="**粗**"), "**粗**"),
    ("keyboard", seg("keyboard", rows=[]), ""),
    ("flashtransfer NapCat", seg("flashtransfer", fileSetId="x"), "[文件:闪传]"),
    ("flash_file LLBot", seg("flash_file", title="x"), "[文件:闪传]"),
    ("onlinefile NapCat", seg("onlinefile", fileName="x"), "[文件:在线文件]"),
    ("dice NapCat", seg("dice", result="4"), "[骰子]"),
    ("dice Lagrange", seg("dice"), "[骰子]"),
    ("dice as face", seg("face", id="358", resultId="3"), "[骰子]"),
    ("rps", seg("rps", result="2"), "[猜拳]"),
    ("rps as face", seg("face", id="359"), "[猜拳]"),
    ("poke NapCat", seg("poke", type="1", id="-1"), "[戳一戳]"),
    ("poke LLBot", seg("shake"), "[戳一戳]"),
    ("location", seg("location", lat="1", lon="2"), "[位置]"),
    ("reply only", seg("reply", id="463570927"), ""),
    ("unknown kind", seg("hologram", x=1), "[未知]"),
    ("data null", {"type": "record", "data": None}, "[语音]"),
    ("data missing", {"type": "rps"}, "[猜拳]"),
]  # fmt: skip

MALFORMED = [
    ("no type", {"data": {"text": "嗨"}}), ("not a mapping", "嗨"), ("a number", 7), ("a list", []),
    ("data a text", {"type": "text", "data": "嗨"}), ("text missing", seg("text")), ("face without id", seg("face")),
    ("at without qq", seg("at")), ("reply with a list", {"type": "reply", "data": [1]}),
]  # fmt: skip


@pytest.mark.parametrize(("segment", "text"), [row[1:] for row in INCOMING], ids=[row[0] for row in INCOMING])
def test_a_segment_reads_as_people_see_it(segment: dict[str, Any], text: str) -> None:
    assert text_of(segment) == text


@pytest.mark.parametrize("segment", [row[1] for row in MALFORMED], ids=[row[0] for row in MALFORMED])
def test_a_malformed_segment_is_marked_and_the_others_are_read(segment: Any) -> None:
    assert text_of(seg("text", text="前"), segment, seg("text", text="后")) == "前[未知]后"


def test_a_card_nested_without_end_is_no_error() -> None:
    assert text_of(seg("json", data="[" * 100_000)) == "[未知]"


def test_the_quote_napcat_did_not_find_is_passed_over() -> None:
    assert text_of(None, seg("text", text="看这条")) == "看这条"


def test_a_quote_and_mentions_are_taken_out() -> None:
    told = to_text(
        [seg("reply", id=463570927), seg("at", qq=10001), seg("text", text=" 在吗"), seg("at", qq="all")], NAMES.get
    )
    assert told == Canonical("@阿强 在吗@全体成员", "463570927", ("10001", "all"))


def test_a_quote_by_sequence_is_taken_where_there_is_no_id() -> None:
    assert to_text([seg("reply", seq="1003")], NAMES.get).reply_to == "1003"


def test_line_breaks_of_every_client_are_marked_inside_a_bubble() -> None:
    assert text_of(seg("text", text="\n一\r\n二\r三\n四 \n")) == "一↵二↵三↵四"


def test_half_an_emoji_is_replaced() -> None:
    told = text_of(seg("text", text="哈\ud83d"))
    assert told == "哈?"


# -- out ------------------------------------------------------------------------------------------

MFACE = {"type": "mface", "data": {"emoji_id": "ab", "emoji_package_id": "7", "key": "k", "summary": "[猫猫摇头]"}}
SPEAKERS = {"阿强": {"10001"}, "小红": {"10002"}, "小红红": {"10003"}, "双": {"1", "2"}, "": {"9"}, "坏": {"all"}}
OUTGOING = [
    ("在呀", [seg("text", text="在呀")]),
    ("哈哈[微笑]好", [seg("text", text="哈哈"), seg("face", id="14"), seg("text", text="好")]),
    ("[微笑][微笑]", [seg("face", id="14"), seg("face", id="14")]),
    ("[微笑] [微笑]", [seg("face", id="14"), seg("face", id="14")]),
    ("[骰子]", [seg("dice")]),
    ("[猜拳]", [seg("rps")]),
    ("[戳一戳]", [seg("poke")]),
    ("[戳一戳]@阿强", [seg("poke", id="10001")]),
    ("[戳一戳]@小红红", [seg("poke", id="10003")]),
    ("[戳一戳]@双", []),
    ("[戳一戳]@没 人↵[微笑]", [seg("face", id="14")]),
    ("[戳一戳] @阿强", [seg("poke"), seg("at", qq="10001")]),
    ("[没有这个脸]", [seg("text", text="[没有这个脸]")]),
    ("[图片]", []),
    ("看[图片]", [seg("text", text="看")]),
    ("[动画表情]", []),
    ("[文件:作业 一.docx]好", [seg("text", text="好")]),
    ("[猫猫摇头]嗯", [MFACE, seg("text", text="嗯")]),
    ("@阿强 来", [seg("at", qq="10001"), seg("text", text=" 来")]),
    ("@小红红来", [seg("at", qq="10003"), seg("text", text="来")]),
    ("@双 来", [seg("text", text="@双 来")]),
    ("@没人 来", [seg("text", text="@没人 来")]),
    ("@全体成员 开会", [seg("text", text="全体成员 开会")]),
    ("@@全体成员", [seg("text", text="全体成员")]),
    ("@坏 来", [seg("text", text="@坏 来")]),
    ("一↵二", [seg("text", text="一\n二")]),
    ("[CQ:at,qq=all]", [seg("text", text="[CQ:at,qq=all]")]),
    ("[CQ:image,file=file:///etc/hostname]", [seg("text", text="[CQ:image,file=file:///etc/hostname]")]),
    ("", []),
    (" ↵ ", []),
]  # fmt: skip


@pytest.mark.parametrize(("text", "segments"), OUTGOING, ids=[row[0] or "empty" for row in OUTGOING])
def test_a_bubble_becomes_segments(text: str, segments: list[dict[str, Any]]) -> None:
    assert to_segments(text, SPEAKERS, {"[猫猫摇头]": MFACE}.get) == segments


@pytest.mark.parametrize(
    "sent",
    [
        seg("mface", summary="[猫猫摇头]", url="http://127.0.0.1/a", emoji_id="ab", emoji_package_id=7, key="k"),
        seg("image", summary="[猫猫摇头]", file="ab-1.gif", emoji_id="ab", emoji_package_id=7, key="k", url="x"),
    ],
)
def test_a_market_face_is_sent_again_as_it_came_from_any_client(sent: dict[str, Any]) -> None:
    assert market_face([seg("text", text="[猫猫摇头]"), sent], "[猫猫摇头]") == MFACE
    assert market_face([sent], "[抱抱]") is None
    assert market_face([seg("image", summary="[贴贴]", file="a.gif")], "[贴贴]") is None, "it lacks the key"
    assert market_face([None, seg("text", text="[贴贴]"), "x"], "[贴贴]") is None  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("text", "qq", "rest"), [("@小红红来", "2", "来"), ("@小红来", "1", "来"), ("@小红红红", "2", "红")]
)
def test_of_names_that_begin_alike_the_longest_is_meant(text: str, qq: str, rest: str) -> None:
    speakers = {"小": {"3"}, "小红": {"1"}, "小红红": {"2"}}
    at, words = to_segments(text, speakers)
    assert (at, words["data"]["text"]) == ({"type": "at", "data": {"qq": qq}}, rest)


def test_every_face_comes_back_as_itself() -> None:
    swept = 0
    for face_id, name in face_names().items():
        told = text_of(seg("face", id=face_id))
        (back,) = to_segments(told, {})
        assert text_of(back) == told, face_id
        if face_id not in ("358", "359", "181"):  # dice, rps, and a face that looks like a poke: it pokes
            assert back == seg("face", id=face_ids()[name])
        swept += 1
    assert swept == len(face_names()) >= 290


def test_no_two_faces_bear_one_name() -> None:
    assert len(face_ids()) == len(face_names())


# -- properties -----------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3),
    max_leaves=4,
)
KINDS = sorted({str(row[1]["type"]) for row in INCOMING})
data_keys = (
    "text",
    "qq",
    "name",
    "id",
    "raw",
    "summary",
    "sub_type",
    "emoji_id",
    "file",
    "data",
    "title",
    "content",
    "seq",
)
segments_like = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(KINDS) | json_values,
        "data": st.dictionaries(st.sampled_from(data_keys), json_values) | json_values,
    },
)


@given(st.lists(segments_like | json_values, max_size=4))
def test_reading_never_raises_and_gives_one_storable_line(segments: list[Any]) -> None:
    told = to_text(segments, lambda _: None)
    assert not set("\r\n") & set(told.text)
    assert told.text == told.text.strip()
    told.text.encode("utf-8")
    assert all(isinstance(m, str) for m in told.mentions)


pieces = (
    "@",
    "全体成员",
    "@全体成员",
    "@全体",
    "[CQ:at,qq=all]",
    "&#91;",
    "[微笑]",
    "[骰子]",
    "阿强",
    "坏",
    "[",
    "]",
    "↵",
    " ",
)
bubble = st.lists(st.sampled_from(pieces) | st.text(max_size=4)).map("".join)


@given(
    bubble,
    st.dictionaries(
        st.sampled_from(["全体成员", "阿强", "坏", "成员"]) | st.text(),
        st.sets(st.sampled_from(["all", "10001", "10002", "a,qq=all"])),
    ),
)
def test_no_bubble_ever_calls_everyone_or_sends_what_people_did_not_see(
    text: str, speakers: dict[str, set[str]]
) -> None:
    for segment in to_segments(text, speakers):
        assert segment["type"] in ("text", "face", "dice", "rps", "at")
        assert segment["data"].get("qq", "0").isdecimal()


@given(bubble)
def test_a_sent_bubble_is_read_back_as_it_was_written(text: str) -> None:
    def tidy(words: str) -> str:
        broken = words.replace("\r", "↵").replace("\n", "↵").replace("↵", " ")
        return "".join(c for c in re.sub("@+全体成员", "全体成员", broken) if is_seen(c))

    assert tidy(text_of(*to_segments(text, {}))) == tidy(text)
