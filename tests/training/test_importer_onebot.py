"""training/importers/onebot.py: good lines go in, bad ones are counted with their place, nothing is lost in silence."""

import json
import sqlite3
import threading
import tracemalloc
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bot.__main__ import app
from bot.archive import Archive
from bot.errors import ImportFault
from bot.message import Scene
from training import history
from training.importers import onebot
from training.importers.source import Reading
from training.importers.text import LINE_CHARS

GROUP = Scene("group", "900")
BROKEN = {
    b"{half": "not JSON",
    b"\xff\xfe": "not JSON",
    b"[1, 2]": "not an event",
    b'{"a":' * 100_000 + b"1" + b"}" * 100_000: "nested too deeply",
    json.dumps(
        {"post_type": "message", "message_id": 1, "message": "无人"}
    ).encode(): "field 'user_id' is missing or empty",
    json.dumps({"post_type": "meta_event"}).encode(): "meta_event event",
}


def event(number: int, **more: Any) -> dict[str, Any]:
    return {
        "post_type": "message", "message_type": "group", "group_id": 900, "self_id": 1, "user_id": 2,
        "message_id": number, "time": 1_772_000_000 + number, "message": f"第{number}句", "sender": {"nickname": "甲"},
        **more,
    }  # fmt: skip


def recall(number: int) -> dict[str, Any]:
    return {
        "post_type": "notice", "notice_type": "group_recall", "group_id": 900, "user_id": 2, "operator_id": 2,
        "message_id": number, "time": 1_772_009_999,
    }  # fmt: skip


def written(path: Path, *lines: dict[str, Any] | bytes) -> Path:
    raw = (x if isinstance(x, bytes) else json.dumps(x, ensure_ascii=True).encode() for x in lines)
    path.write_bytes(b"".join(line + b"\n" for line in raw))
    return path


def texts(archive: Archive) -> list[str]:
    return [m.text for m in archive.history(GROUP)]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "archive.db"


@pytest.fixture
def archive(database: Path) -> Iterator[Archive]:
    store = Archive(f"sqlite:///{database}")
    yield store
    store.close()


def lock(database: Path) -> sqlite3.Connection:
    holder = sqlite3.connect(database, check_same_thread=False, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    return holder


@pytest.mark.parametrize("line", BROKEN, ids=BROKEN.values())
def test_a_broken_line_is_counted_with_its_place_and_the_others_go_in(
    tmp_path: Path, archive: Archive, line: bytes
) -> None:
    result = history.load(written(tmp_path / "h.jsonl", event(1), line, event(2)), archive)
    assert dict(result.reading.skipped) == {BROKEN[line]: 1}
    assert result.reading.places == {BROKEN[line]: ["h.jsonl:2"]}
    assert texts(archive) == ["第1句", "第2句"]


def test_of_a_half_broken_file_the_good_messages_are_in(tmp_path: Path, archive: Archive) -> None:
    lines = [x for n in range(1, 41) for x in (event(n), b"{broken")]
    result = history.load(written(tmp_path / "h.jsonl", *lines), archive)
    assert (result.messages, result.added, result.reading.skipped["not JSON"]) == (40, 40, 40)
    assert result.reading.places["not JSON"] == ["h.jsonl:2", "h.jsonl:4", "h.jsonl:6"]
    assert len(texts(archive)) == 40


def test_a_second_import_adds_nothing_and_brings_no_words_back(tmp_path: Path, archive: Archive) -> None:
    path = written(tmp_path / "h.jsonl", event(1), event(2), recall(1))
    assert [history.load(path, archive).added for _ in range(2)] == [2, 0]
    assert texts(archive) == ["第2句"]


def test_a_dry_run_understands_the_same_and_writes_nothing(tmp_path: Path, archive: Archive) -> None:
    path = written(tmp_path / "h.jsonl", event(1), *BROKEN, recall(1))
    dry = history.load(path, None)
    assert archive.scenes() == []
    wet = history.load(path, archive)
    assert (dry.messages, dry.recalls, dry.reading) == (1, 1, wet.reading)


def test_who_spoke_just_before_is_mentioned_by_name(tmp_path: Path, archive: Archive) -> None:
    mention = [{"type": "at", "data": {"qq": "2"}}, {"type": "text", "data": {"text": " 你吃的啥"}}]
    history.load(written(tmp_path / "h.jsonl", event(1), event(2, user_id=3, message=mention)), archive)
    assert texts(archive) == ["第1句", "@甲 你吃的啥"]


@pytest.mark.parametrize("key", ["message_id", "user_id", "group_id"])
def test_an_id_no_archive_stores_is_counted_and_holds_up_nothing(tmp_path: Path, archive: Archive, key: str) -> None:
    bad = [event(2, **{key: "\ud800"}), {**recall(1), "message_id": "\ud800"}]
    result = history.load(written(tmp_path / "h.jsonl", event(1), *bad, event(3)), archive)
    assert result.reading.places == {"an id that is not text": ["h.jsonl:2", "h.jsonl:3"]}
    assert texts(archive) == ["第1句", "第3句"]
    assert (archive.lost, archive.waiting) == (0, 0)


def test_a_file_with_a_damaged_beginning_is_recognised(tmp_path: Path) -> None:
    nested = b"[" * 100_000
    assert onebot.sniff(written(tmp_path / "h.jsonl", *[b"{broken"] * 50, nested, event(1)))
    assert not onebot.sniff(written(tmp_path / "x.jsonl", *[{"role": "user"}] * 50, event(1)))
    assert not onebot.sniff(written(tmp_path / "empty.jsonl"))


@pytest.mark.parametrize(
    ("name", "wanted", "why"),
    [
        ("", "auto", "is of no format known here.*OneBot events"),
        ("", "onebot", "cannot be read: Is a directory"),
        ("missing.jsonl", "auto", "does not exist"),
        ("other.txt", "auto", "is of no format known here.*OneBot events"),
        ("other.txt", "onebot", r"holds no message of OneBot events that could be read: 1 × not JSON \(other.txt:1\)"),
        ("other.txt", "docx", "must be auto or one of .*onebot"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, name: str, wanted: str, why: str) -> None:
    (tmp_path / "other.txt").write_text("你好", "utf-8")
    with pytest.raises(ImportFault, match=why):
        history.load(tmp_path / name, None, source=history.recognised(tmp_path / name, wanted))


def test_a_locked_archive_is_waited_for(tmp_path: Path, archive: Archive, database: Path) -> None:
    holder = lock(database)
    release = threading.Timer(0.6, holder.close)
    release.start()
    result = history.load(written(tmp_path / "h.jsonl", event(1), event(2), recall(2)), archive)
    release.join()
    assert (result.added, texts(archive)) == (2, ["第1句"])


@pytest.mark.parametrize("before", [0, 1], ids=["messages", "recall"])
def test_an_archive_that_stays_locked_is_a_fault_and_the_next_import_mends_it(
    tmp_path: Path, archive: Archive, database: Path, before: int
) -> None:
    if before:
        history.load(written(tmp_path / "first.jsonl", event(1)), archive)
    path = written(tmp_path / "h.jsonl", *([recall(1)] if before else [event(1), event(2)]))
    holder = lock(database)
    with pytest.raises(ImportFault, match="import again"):
        history.load(path, archive, patience_s=0.1)
    holder.close()
    history.load(path, archive)
    assert texts(archive) == ([] if before else ["第1句", "第2句"])


def test_what_the_archive_refuses_is_named_and_the_command_fails(tmp_path: Path) -> None:
    config = tmp_path / "bot.toml"
    config.write_text(f"[paths]\ndata = {json.dumps(str(tmp_path / 'data'))}\n", "utf-8")
    path = written(tmp_path / "h.jsonl", event(1), event(2), event(3))
    Archive(f"sqlite:///{tmp_path / 'data' / 'archive.db'}").close()
    with sqlite3.connect(tmp_path / "data" / "archive.db") as store:
        store.execute(
            "CREATE TRIGGER no BEFORE INSERT ON messages WHEN NEW.message_id = '2' BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    store.close()
    done = CliRunner().invoke(app, ["import", str(path), "--config", str(config)])
    assert "left out 1: refused by the archive (h.jsonl:2)" in done.output
    assert isinstance(done.exception, ImportFault)


@pytest.mark.parametrize(
    ("scene", "path", "told"),
    [
        ("阿泽", "h.jsonl", "--scene '阿泽': must be private:NUMBER or group:NUMBER"),
        ("private:", "h.jsonl", "--scene 'private:': must be"),
        ("private:2", "onebot://127.0.0.1:1/group/3", "--scene is of files"),
    ],
)
def test_a_scene_that_is_none_or_of_no_file_is_refused(tmp_path: Path, scene: str, path: str, told: str) -> None:
    config = tmp_path / "bot.toml"
    config.write_text(f"[paths]\ndata = {json.dumps(str(tmp_path / 'data'))}\n", "utf-8")
    written(tmp_path / "h.jsonl", event(1))
    where = path if "://" in path else str(tmp_path / path)
    done = CliRunner().invoke(app, ["import", where, "--scene", scene, "--config", str(config)])
    assert isinstance(done.exception, ImportFault)
    assert told in str(done.exception)


@pytest.mark.parametrize("factor", [1, 1000, 1_000_000])
def test_times_in_milliseconds_are_those_in_seconds(tmp_path: Path, factor: int) -> None:
    events = [event(1), event(2), recall(1)]
    times = [e["time"] for e in events]
    reading = Reading()
    path = written(tmp_path / "h.jsonl", *({**e, "time": e["time"] * factor} for e in events))
    assert [item.time.timestamp() for item in onebot.items(path, reading)] == times
    assert not reading.skipped


@pytest.mark.parametrize("when", [0, 1, 9_999_999_999, "明天", None])
def test_a_time_that_is_none_of_qqs_is_counted(tmp_path: Path, archive: Archive, when: int) -> None:
    events = [event(n) for n in range(1, 4)]
    events[1]["time"] = when
    (tmp_path / "h.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events), "utf-8")
    result = history.load(tmp_path / "h.jsonl", archive)
    assert (result.added, sum(result.reading.skipped.values())) == (2, 1)
    assert result.span is not None
    assert result.span[0] > 10**9


def test_who_the_file_does_not_name_is_no_owner(tmp_path: Path, archive: Archive) -> None:
    events = [{k: v for k, v in event(n).items() if k != "self_id"} for n in range(1, 4)]
    (tmp_path / "h.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events), "utf-8")
    shown = history.summary(history.load(tmp_path / "h.jsonl", archive), UTC)
    assert (shown["messages"], shown["me"]) == (3, None)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "gb18030"])
def test_events_are_recognised_and_read_in_every_encoding(tmp_path: Path, archive: Archive, encoding: str) -> None:
    text = "".join(json.dumps(event(n), ensure_ascii=False) + "\n" for n in range(1, 4))
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / "h.jsonl").write_bytes((mark + text).encode(encoding))
    result = history.load(tmp_path / "h.jsonl", archive)
    assert (result.source.name, dict(result.reading.skipped)) == ("onebot", {})
    assert texts(archive) == ["第1句", "第2句", "第3句"]


def test_a_broken_byte_and_a_bare_control_character_cost_themselves_alone(tmp_path: Path, archive: Archive) -> None:
    lines = [json.dumps(event(n), ensure_ascii=False).encode() for n in range(1, 4)]
    lines[1] = lines[1].replace("第2句".encode(), b"\xe7\xac" + "2句\t".encode())
    (tmp_path / "h.jsonl").write_bytes(b"\n".join(lines))
    result = history.load(tmp_path / "h.jsonl", archive)
    assert dict(result.reading.skipped) == {}
    assert [t.strip() for t in texts(archive)] == ["第1句", "\ufffd2句", "第3句"]


def test_a_line_without_end_costs_itself_alone_and_is_never_held_whole(tmp_path: Path, archive: Archive) -> None:
    path = tmp_path / "h.jsonl"
    piece = json.dumps(event(9)).encode()
    with path.open("wb") as f:
        f.write(json.dumps(event(1)).encode() + b"\n")
        for _ in range(13):  # 208 MiB
            f.write(piece.ljust(LINE_CHARS))  # a piece that would be read as an event, were it taken for a line
        f.write(b"\n" + json.dumps(event(2)).encode() + b"\n" + b"{half\n" + json.dumps(event(3)).encode())
    tracemalloc.start()
    try:
        result = history.load(path, archive)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert texts(archive) == ["第1句", "第2句", "第3句"]
    assert result.reading.places == {"a line of more than 16 MiB": ["h.jsonl:2"], "not JSON": ["h.jsonl:4"]}
    assert peak < 64 << 20
