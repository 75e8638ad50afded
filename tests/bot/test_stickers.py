"""bot/stickers.py: what is kept of the stickers somebody sends, what they are called, and how they are sent again."""

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from chats import FRIEND, GROUP, ME, say

from bot import config, stickers
from bot.archive import Archive
from bot.engine import Measure
from bot.errors import ArchiveError
from bot.memory import Memory
from bot.message import Message
from bot.persona import Persona, Spec
from bot.prompt import FORMATS, render
from bot.segments import to_segments, to_text
from bot.stickers import Stickers, kept, key_of, named
from training.corpus import build
from training.samples import renderer_for

WHEN = datetime(2026, 11, 20, tzinfo=UTC)
ON = config.Stickers(enabled=True)


def picture(n: int, size: int = 64) -> bytes:
    return b"GIF89a" + bytes([n]) * (size - 6)


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def sent(content: bytes, **data: Any) -> dict[str, Any]:
    """An image sticker as NapCat shows it."""
    return {"type": "image", "data": {"file": f"{md5(content).upper()}.gif", "sub_type": 1, "summary": ""} | data}


def library(folder: Path, **rules: Any) -> Stickers:
    return Stickers(folder, config.Stickers(**{"enabled": True} | rules))


def add(into: Stickers, n: int, summary: str = "", sender: str = ME, size: int = 64, when: datetime = WHEN) -> str:
    content = picture(n, size)
    found = into.add(content, md5(content), summary, sender, when)
    assert found is not None
    return found.name


def test_a_sticker_is_kept_by_hash_once_and_found_again_after_a_restart(tmp_path: Path) -> None:
    first = library(tmp_path)
    name = add(first, 1)
    assert add(first, 1, "[另一个名字]") == name, "the same file is the same sticker"
    digest = hashlib.sha256(picture(1)).hexdigest()
    assert name == digest[:4]
    assert {p.name for p in tmp_path.iterdir()} == {f"{digest}.gif", "index.json"}
    again = library(tmp_path)
    assert again.names == {md5(picture(1)): name}
    segment = again.segment(f"[动画表情:{name}]", {ME})
    assert segment is not None
    data = segment["data"]
    assert base64.b64decode(data["file"].removeprefix("base64://")) == picture(1)
    assert (segment["type"], data["summary"]) == ("image", "[动画表情]")
    assert (data["sub_type"], data["subType"]) == (1, 1), "as NapCat, and as LLBot and Lagrange read it"


@pytest.mark.parametrize(
    ("summary", "name"),
    [
        ("[贴贴]", "贴贴"), ("", ""), ("[动画表情]", ""), ("[图片]", ""), ("[a:b]\u202e 贴", "ab贴"),
        ("[" + "长" * 30 + "]", "长" * 12),
    ],
)  # fmt: skip
def test_it_is_named_by_what_qq_calls_it_else_by_its_hash(tmp_path: Path, summary: str, name: str) -> None:
    assert add(library(tmp_path), 1, summary) == (name or hashlib.sha256(picture(1)).hexdigest()[:4])


def test_two_stickers_never_share_a_name(tmp_path: Path) -> None:
    found = library(tmp_path)
    names = [add(found, n, "[贴贴]") for n in range(4)]
    assert names[0] == "贴贴"
    assert len(set(names)) == 4
    assert all(n.startswith("贴贴") and to_segments(f"[动画表情:{n}]", {}, lambda t: {"type": t}) for n in names)


@pytest.mark.parametrize(
    "content", [b"", b"<html>404</html>", b"GIF8", picture(1, 2 * 1024 + 1)], ids=["empty", "a page", "cut", "large"]
)
def test_what_is_no_picture_or_too_large_is_not_kept(tmp_path: Path, content: bytes) -> None:
    found = library(tmp_path, max_file_kb=2)
    kept_it = found.add(content, md5(content), "", ME, WHEN)
    assert (kept_it is None) is (content != b"GIF8"), "four bytes of a GIF are a GIF as far as we look"
    assert library(tmp_path / "none", max_file_kb=2).names == {}


def test_beyond_its_size_the_ones_not_sent_for_longest_go(tmp_path: Path) -> None:
    found = library(tmp_path, max_mb=1)
    names = [add(found, n, size=400_000, when=WHEN + timedelta(days=n)) for n in (1, 2)]
    assert found.seen(md5(picture(1, 400_000)), ME, WHEN + timedelta(days=9))
    names.append(add(found, 3, size=400_000, when=WHEN + timedelta(days=10)))
    assert set(found.names.values()) == {names[0], names[2]}
    assert sum(p.stat().st_size for p in tmp_path.glob("*.gif")) <= 1024 * 1024
    assert found.segment(f"[动画表情:{names[1]}]", {ME}) is None


def test_somebody_elses_sticker_is_not_the_personas(tmp_path: Path) -> None:
    found = library(tmp_path)
    name = add(found, 1, sender=FRIEND)
    assert found.segment(f"[动画表情:{name}]", {ME}) is None
    found.seen(md5(picture(1)), ME, WHEN)
    assert found.segment(f"[动画表情:{name}]", {ME}) is not None


def test_what_another_process_forgot_is_not_written_back(tmp_path: Path) -> None:
    running = library(tmp_path)
    name = add(running, 1, sender=FRIEND)
    for sender in (FRIEND, ME):
        add(running, 2, sender=sender)
    assert library(tmp_path).forget(FRIEND) == 1  # `twin forget`
    assert not running.seen(md5(picture(1)), ME, WHEN)
    assert name not in running.names.values()
    assert running.segment(f"[动画表情:{name}]", {FRIEND}) is None
    add(running, 3)
    rows = json.loads((tmp_path / "index.json").read_text("utf-8"))
    assert [row["senders"] for row in rows] == [[ME], [ME]]


def test_a_sticker_that_cannot_be_removed_is_said_and_found_again(tmp_path: Path) -> None:
    found = library(tmp_path)
    for n in (1, 2):
        add(found, n, sender=FRIEND)
    add(found, 2, sender=ME)
    add(found, 3, sender=FRIEND)
    stuck = tmp_path / f"{hashlib.sha256(picture(1)).hexdigest()}.gif"
    stuck.unlink()
    stuck.mkdir()  # no file: it cannot be unlinked, whoever runs this
    with pytest.raises(ArchiveError, match="cannot be removed"):
        found.forget(FRIEND)
    assert [p.name for p in tmp_path.glob("*.gif")].count(stuck.name) == 1
    assert len(list(tmp_path.glob("*.gif"))) == 2, "the others went"
    stuck.rmdir()
    assert found.forget(FRIEND) == 1
    assert [row["senders"] for row in json.loads((tmp_path / "index.json").read_text("utf-8"))] == [[ME]]


def test_an_index_that_cannot_be_written_is_said_and_written_when_it_is_done_again(tmp_path: Path) -> None:
    found = library(tmp_path)
    add(found, 1, sender=FRIEND)
    beside = tmp_path / ".index.json.tmp"
    beside.mkdir()  # in the way of the new index
    with pytest.raises(ArchiveError, match="cannot be removed"):
        found.forget(FRIEND)
    beside.rmdir()
    found.forget(FRIEND)
    assert json.loads((tmp_path / "index.json").read_text("utf-8")) == []


def test_a_library_that_is_off_knows_nothing(tmp_path: Path) -> None:
    add(library(tmp_path), 1)
    assert Stickers(tmp_path, config.Stickers()).names == {}


@pytest.mark.parametrize("index", ["{", "[1]", '[{"name": "x"}]', "[]"])
def test_a_broken_index_begins_anew(tmp_path: Path, index: str) -> None:
    add(library(tmp_path), 1)
    (tmp_path / "index.json").write_text(index, "utf-8")
    found = library(tmp_path)
    assert found.names == {}
    assert add(found, 2)


def test_a_file_that_is_cut_or_gone_is_not_listed(tmp_path: Path) -> None:
    found = library(tmp_path)
    for n in (1, 2, 3):
        add(found, n)
    files = [tmp_path / row["file"] if "file" in row else tmp_path / f"{row['sha256']}.gif" for row in json.loads(
        (tmp_path / "index.json").read_text("utf-8"))]  # fmt: skip
    files[0].unlink()
    files[1].write_bytes(b"GIF8")
    assert set(library(tmp_path).names) == {md5(picture(3))}


@pytest.mark.parametrize(
    ("segment", "has_key"),
    [
        ({"type": "image", "data": {"file": "A" * 32 + ".gif", "sub_type": 1}}, True),
        ({"type": "image", "data": {"file": "A" * 32 + ".gif", "subType": 1, "url": "http://x/1"}}, True),  # LLBot
        ({"type": "image", "data": {"file": "http://x/1", "filename": "A" * 32 + ".gif", "subType": 1,
                                    "summary": "[动画表情]"}}, True),  # Lagrange
        ({"type": "image", "data": {"url": f"http://g.qpic.cn/0/0-0-{'A' * 32}/0", "sub_type": 1}}, True),
        ({"type": "image", "data": {"file": "A" * 32 + ".jpg", "sub_type": 0}}, False),
        ({"type": "image", "data": {"file": "A" * 64, "sub_type": 1}}, False),
        ({"type": "image", "data": {"file": "ab.gif", "emoji_id": "ab", "summary": "[动画表情]"}}, False),
        ({"type": "image", "data": {"sub_type": 1}}, False),
        ({"type": "image"}, False),
        ({"type": "mface", "data": {"summary": "[动画表情]", "emoji_id": "A" * 32}}, False),
        ({"type": "text", "data": {"text": "[动画表情]"}}, False),
    ],
)  # fmt: skip
def test_every_clients_stickers_have_a_key(segment: dict[str, Any], has_key: bool) -> None:
    assert key_of(segment) == ("a" * 32 if has_key else None)


def test_only_the_librarys_stickers_get_their_names_in_their_places() -> None:
    known = {md5(picture(1)): "贴贴"}
    segments = (
        {"type": "text", "data": {"text": "打[动画表情]"}},
        sent(picture(2)),
        sent(picture(1)),
        sent(picture(1)),
    )
    message = say(0, ME, to_text(segments, lambda _: None).text, segments=segments)
    assert named(message, known).text == "打[动画表情][动画表情][动画表情:贴贴][动画表情:贴贴]"
    assert named(message, {}) is message
    assert named(say(0, ME, "[动画表情]"), known).text == "[动画表情]", "without segments nothing is known"


def test_what_is_sent_is_kept_without_its_file(tmp_path: Path) -> None:
    found = library(tmp_path)
    name = add(found, 1)
    segment = found.segment(f"[动画表情:{name}]", {ME})
    assert segment is not None
    stored = kept(segment)
    assert "base64" not in json.dumps(stored)
    assert key_of(stored) == md5(picture(1)), "the archive knows which one it was"
    assert to_text([segment], lambda _: None).text == "[动画表情]", "as its echo will read"
    plain = {"type": "text", "data": {"text": "好"}}
    assert kept(plain) is plain


def test_live_and_trained_prompts_call_a_sticker_alike(tmp_path: Path) -> None:
    data = config.Paths(data=tmp_path)
    settings = config.Settings(paths=data, stickers=ON)
    live = Stickers(stickers.folder(settings), settings.stickers)
    name = add(live, 1)
    archive = Archive(settings.archive_url)
    said: list[Message] = [
        say(0, FRIEND, "在吗"),
        say(5, ME, "[动画表情]", segments=(sent(picture(1)),)),
        say(60, FRIEND, "[动画表情]", segments=(sent(picture(2)),)),
        say(65, ME, "看[动画表情]", segments=({"type": "text", "data": {"text": "看"}}, sent(picture(1)))),
        say(100, FRIEND, "哈哈"),
    ]
    archive.append(said)
    persona = Persona("xiaoman", Path(), Spec(display_name="小满", people=(ME,)), None)
    window = Memory(archive, settings, live).window(GROUP, persona, FORMATS["gemma"], Measure(2048, len))
    built = build(archive, [ME], [], config.Conversation(), stickers=stickers.names(settings))
    (part,) = built.scenes
    trained = render(renderer_for(part, built, FORMATS["gemma"], persona.system_prompt), part.exchanges, part.quoted)
    text = "".join(p.text for p in trained)
    assert list(window.pieces) == trained
    assert text.count(f"[动画表情:{name}]") == 2
    assert text.count("[动画表情]") == 1
    segment = window.sticker(f"[动画表情:{name}]")
    assert segment is not None
    assert segment["data"]["sub_type"] == 1
    archive.close()
