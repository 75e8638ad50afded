"""training/importers/qqtxt.py and qqmht.py: QQ's own exports, with and without numbers."""

from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import exports
import pytest

from bot.message import Message, Scene
from training import history
from training.importers.qqmht import plain
from training.importers.source import Reading, Told

GROUP, PRIVATE = Scene("group", "面包店"), Scene("private", "阿泽")
RULE = "=" * 64


def read(path: Path, content: bytes | str, told: Told = Told()) -> tuple[list[Message], Reading]:  # noqa: B008
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    reading = Reading(told)
    return [m for m in history.recognised(path).read(path, reading) if isinstance(m, Message)], reading


def test_txt_of_a_group_and_a_private_chat(tmp_path: Path) -> None:
    found, reading = read(tmp_path / "全部消息记录.txt", exports.QQ_TXT)
    assert [(m.scene, m.sender_id, m.sender_name, m.text) for m in found] == [
        (GROUP, "100200", "阿泽", "早[微笑]↵第二行"), (GROUP, "100100", "小满", "[图片]"),
        (GROUP, "100100", "小满", "[图片]"),
        (GROUP, "li@example.org", "老李", "[表情]"), (GROUP, "100200", "阿泽", "没有号码"),
        (PRIVATE, "阿泽", "阿泽", "在吗"),
        (PRIVATE, "小满", "小满", "在"),
    ]  # fmt: skip
    assert found[1].id != found[2].id
    assert found[0].time == datetime.fromtimestamp(exports.BASE_S + 1, UTC)
    assert dict(reading.skipped) == {"a system row": 1, "a recalled message": 1, "an empty message": 1}
    assert reading.owners == {"小满": 1}


def test_mht_knows_the_owner_by_the_colour(tmp_path: Path) -> None:
    found, reading = read(tmp_path / "h.mht", exports.QQ_MHT)
    assert [(m.sender_id, m.sender_name, m.text) for m in found] == [
        ("100200", "阿泽", "早 1 < 2↵第二行"), ("100100", "小满", "[图片]看"), ("li@example.org", "老李", "[微笑]"),
        ("100100", "小满", "第二天"),
    ]  # fmt: skip
    assert {m.scene for m in found} == {Scene("group", "面包店 & 朋友")}
    assert [m.time.isoformat() for m in (found[0], found[3])] == [
        "2023-11-14T22:13:21+00:00",
        "2023-11-15T22:13:25+00:00",
    ]
    assert (reading.owners, dict(reading.skipped)) == ({"100100": 2}, {"a system row": 1})


def test_the_same_message_has_one_id_in_txt_and_mht(tmp_path: Path) -> None:
    told = f"{RULE}\n消息分组:我的群\n{RULE}\n消息对象:面包店 & 朋友\n{RULE}\n"
    txt, _ = read(tmp_path / "h.txt", f"{told}\n{exports.clock(3)} 老李<li@example.org>\n/微笑\n\n")
    mht, _ = read(tmp_path / "h.mht", exports.QQ_MHT)
    assert txt[0].id == mht[2].id


def test_an_export_that_begins_later_has_the_same_ids(tmp_path: Path) -> None:
    text = exports.QQ_TXT.decode("utf-8-sig")
    whole, _ = read(tmp_path / "h.txt", text)
    first = f"{exports.clock(1)} 【店长】阿泽(100200)\r\n早/微笑\r\n第二行\r\n"
    later, _ = read(tmp_path / "h.txt", text.replace(first, ""))
    assert [m.id for m in later] == [m.id for m in whole[1:]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_txt_is_read_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    found, _ = read(tmp_path / "h.txt", exports.QQ_TXT.decode("utf-8-sig").encode(encoding))
    assert found[0].text == "早[微笑]↵第二行"


def test_times_are_in_the_owners_zone(tmp_path: Path) -> None:
    found, _ = read(tmp_path / "h.txt", exports.QQ_TXT, Told(zone=ZoneInfo("Europe/Berlin")))
    assert found[0].time.isoformat() == "2023-11-15T05:13:21+00:00"


def test_a_headless_txt_with_numbers_is_recognised(tmp_path: Path) -> None:
    found, _ = read(tmp_path / "面包店.txt", f"{exports.clock(1)} 阿泽(100200)\n早\n")
    assert [(m.scene, m.text) for m in found] == [(GROUP, "早")]


@pytest.mark.parametrize("unit", ["(", "<@", " ", "【", "=", "[文件", "/微"])
def test_a_line_of_a_megabyte_of_anything_ends(tmp_path: Path, unit: str) -> None:
    absurd = unit * (1_000_000 // len(unit))
    good = (f"{exports.clock(n)} 阿泽(100200)\n{words}\n\n" for n, words in ((1, "早"), (3, "末")))
    text = f"{exports.clock(2)} {absurd}\n{absurd}\n\n".join(good)
    found, reading = read(tmp_path / "h.txt", text)
    assert [found[0].text, found[-1].text] == ["早", "末"]
    assert len(found) + sum(reading.skipped.values()) == 3


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("a<br/>b", "a\nb"), ('<IMG src="{A}.dat">', "[图片]"), ("1 &lt; 2 &amp;nbsp; 3", "1 < 2 &nbsp; 3"),
        ("3 < 4", "3 < 4"),
        ("<font color='0'>x</font></div></td>", "x"), ("<" * 100_000, "<" * 100_000),
    ],
)  # fmt: skip
def test_html_becomes_text(words: str, text: str) -> None:
    assert plain(words) == text
