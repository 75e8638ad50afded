"""bot/cq.py: what a client writes as text is read as the segments it stands for."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot import cq
from bot.events import read
from bot.message import Message
from bot.segments import to_text


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "data": {"text": words}}


@pytest.mark.parametrize(
    ("written", "segments"),
    [
        ("", []),
        ("早", [text("早")]),
        ("[CQ:face,id=178]好", [{"type": "face", "data": {"id": "178"}}, text("好")]),
        ("[CQ:shake]", [{"type": "shake", "data": {}}]),
        ("&#91;CQ:at,qq=all&#93; &amp;#91; &#44;", [text("[CQ:at,qq=all] &#91; ,")]),
        (
            "[CQ:json,data={&quot;:&#91;1&#44;2&#93;&amp;}]",
            [{"type": "json", "data": {"data": "{&quot;:[1,2]&}"}}],
        ),
        ("[CQ:image,file=a=b.jpg,url=]", [{"type": "image", "data": {"file": "a=b.jpg", "url": ""}}]),
        ("[CQ:", [text("[CQ:")]),
        ("[CQ:at,qq]", [text("[CQ:at,qq]")]),
        ("[微笑][CQ:a,b=[c]]", [text("[微笑][CQ:a,b=[c]]")]),
    ],
)
def test_codes_become_segments_and_all_else_stays_text(written: str, segments: list[dict[str, Any]]) -> None:
    assert cq.segments(written) == segments


@given(st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9))))
def test_what_was_escaped_comes_back(parts: list[tuple[str, str]]) -> None:
    def escaped(words: str, also: str = "") -> str:
        for sign in f"&[]{also}":
            words = words.replace(sign, f"&{'amp' if sign == '&' else f'#{ord(sign)}'};")
        return words

    written = "".join(f"{escaped(words)}[CQ:x,v={escaped(value, ',')}]" for words, value in parts)
    found = cq.segments(written)
    assert [s["data"]["v"] for s in found if s["type"] == "x"] == [value for _, value in parts]
    assert [s["data"]["text"] for s in found if s["type"] == "text"] == [words for words, _ in parts if words]


def event(message: str, **more: Any) -> dict[str, Any]:
    return {
        "post_type": "message", "message_type": "group", "group_id": 900, "self_id": 1, "user_id": 2, "message_id": 5,
        "time": 1_772_000_000, "message": message, "sender": {"nickname": "甲"}, **more,
    }  # fmt: skip


@pytest.mark.parametrize("more", [{"message_format": "string"}, {}], ids=["said so", "nothing said"])
def test_an_event_in_string_format_reads_as_one_in_array_format(more: dict[str, Any]) -> None:
    written = (
        "[CQ:reply,id=77][CQ:at,qq=3] 看[CQ:image,file=A.jpg,summary=&#91;动画表情&#93;,sub_type=1]"
        "[CQ:face,id=14,raw=&#91;object Object&#93;][CQ:newthing,a=1]&amp;[CQ:record,file=b.amr]"
    )
    found = read(event(written, **more), {"3": "乙"}.get)
    assert isinstance(found, Message)
    assert found.text == "@乙 看[动画表情][微笑][未知]&[语音]"
    assert (found.reply_to, found.mentions) == ("77", ("3",))
    assert to_text(found.segments, {"3": "乙"}.get).text == found.text


def test_a_string_that_an_event_calls_an_array_is_text() -> None:
    found = read(event("[CQ:at,qq=all]", message_format="array"))
    assert isinstance(found, Message)
    assert (found.text, found.mentions) == ("[CQ:at,qq=all]", ())
