"""bot/privacy.py: what a running twin does when somebody opts out or is to be forgotten."""

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from chats import FRIEND, GROUP, ME, PRIVATE

from bot import config, corrections, forgetting
from bot.archive import Archive
from bot.cli import privacy as cli
from bot.errors import ArchiveBusy, ArchiveError
from bot.forgetting import Forgotten
from bot.message import Message, Scene
from bot.optouts import RELOAD_S, Why
from bot.privacy import Privacy
from bot.stickers import Stickers
from bot.terminal import NoTransport
from bot.twin import Twin

NOW = datetime.now(UTC).replace(microsecond=0)
WORDS = "只有她说过的暗号蓝鲸"


@pytest.fixture
async def twin(tmp_path: Path) -> AsyncIterator[Twin]:
    settings = config.load(tmp_path / "bot.toml", {"TWIN__ENGINE__BASE": '"nowhere.gguf"'})
    assembled = Twin.assemble(settings, tmp_path, NoTransport(), only_record=True)
    yield assembled
    await assembled.close()


def hear(twin: Twin, number: int, text: str, scene: Scene = GROUP, sender: str = FRIEND) -> None:
    twin.record(Message(str(number), scene, sender, "阿强", NOW, text))


async def test_an_opt_out_holds_over_a_restart_and_is_taken_back(twin: Twin, tmp_path: Path) -> None:
    privacy = Privacy(twin)
    assert privacy.opt_out(FRIEND, "self", NOW)
    assert not privacy.opt_out(FRIEND, "self", NOW)
    again = Twin.assemble(twin.settings, tmp_path, NoTransport(), only_record=True)
    hear(again, 1, WORDS)
    assert again.archive.window(GROUP, 5) == []
    assert Privacy(again).opt_in(FRIEND, NOW + timedelta(seconds=1))
    assert not Privacy(again).opt_in(FRIEND, NOW + timedelta(seconds=2))
    again.record(Message("2", GROUP, FRIEND, "阿强", NOW + timedelta(seconds=3), "又说"))
    assert [m.text for m in again.archive.window(GROUP, 5)] == ["又说"], "what was not kept does not come back"
    await again.close()


async def test_whoever_opts_out_themselves_after_an_owner_did_is_their_own(twin: Twin) -> None:
    privacy = Privacy(twin)
    assert privacy.opt_out(FRIEND, "owner", NOW)
    assert twin.archive.optouts.out_by(FRIEND) == "owner"
    assert not privacy.opt_out(FRIEND, "self", NOW + timedelta(seconds=1)), "they were out already"
    assert twin.archive.optouts.out_by(FRIEND) == "self"
    assert not privacy.opt_out(FRIEND, "owner", NOW + timedelta(seconds=2))
    assert twin.archive.optouts.out_by(FRIEND) == "self"


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def say_at(twin: Twin, seconds: float, text: str, scene: Scene = GROUP) -> None:
    twin.archive.append([Message(f"{scene}{seconds:g}", scene, FRIEND, "阿强", later(seconds), text)])


async def test_what_was_said_between_a_missed_opt_out_and_its_reading_does_not_come_back(twin: Twin) -> None:
    privacy = Privacy(twin)
    for seconds, text in ((0, "以前"), (10, "退出后"), (20, "还在退出"), (30, "回来了")):
        say_at(twin, seconds, text)
    twin.archive.optouts.note(FRIEND, "in", "self", later(25))  # live, before what was missed is read
    assert privacy.opt_out(FRIEND, "self", later(5))
    assert not twin.archive.optouts.is_out(FRIEND)
    assert [m.text for m in twin.archive.window(GROUP, 9)] == ["以前", "回来了"]
    say_at(twin, 50, "又退出了才读到")
    assert privacy.opt_out(FRIEND, "self", later(40))
    assert privacy.opt_in(FRIEND, later(60))
    assert [m.text for m in twin.archive.window(GROUP, 9)] == ["以前", "回来了"]
    whole = [(m.sender_id, m.sender_name, m.text) for m in twin.archive.history(GROUP, recalled=True)]
    assert whole[1:3] == [(FRIEND, "", "")] * 2, "as a message of somebody out is kept"


async def test_an_opt_out_whose_words_cannot_be_taken_off_just_now_is_not_done(
    twin: Twin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    privacy = Privacy(twin)
    say_at(twin, 10, WORDS)
    other = sqlite3.connect(tmp_path / "data" / "archive.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    say_at(twin, 20, WORDS)
    with pytest.raises(ArchiveBusy):
        privacy.opt_out(FRIEND, "self", later(5))
    other.execute("ROLLBACK")
    other.close()
    with monkeypatch.context() as held:  # free again, but for what waits in memory
        held.setattr(twin.archive, "flush", lambda: 0)
        with pytest.raises(ArchiveBusy):
            privacy.opt_out(FRIEND, "self", later(5))
    assert privacy.opt_out(FRIEND, "self", later(5)), "asked again it is done, not done already"
    assert [m.text for m in twin.archive.history(GROUP, recalled=True)] == ["", ""]


async def test_an_opt_out_is_not_noted_where_only_the_words_cannot_be_taken_off(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    privacy, withhold = Privacy(twin), twin.archive.withhold
    say_at(twin, 10, WORDS)

    def busy(*_: Any) -> None:
        raise ArchiveBusy("held for as long as this takes")

    monkeypatch.setattr(twin.archive, "withhold", busy)
    with pytest.raises(ArchiveBusy):
        privacy.opt_out(FRIEND, "self", later(5))
    monkeypatch.setattr(twin.archive, "withhold", withhold)
    assert privacy.opt_out(FRIEND, "self", later(5)), "asked again it is done, not done already"
    assert twin.archive.window(GROUP, 9) == []


async def test_somebody_is_forgotten_in_the_archive_and_at_hand(
    twin: Twin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[str] = []
    anew: list[Scene] = []
    monkeypatch.setattr(twin.presence, "decide_anew", anew.append)

    class Engine:
        async def forget(self, wanted: object) -> None:
            assert callable(wanted)
            seats = [f"{GROUP}|xiaoman", f"{PRIVATE}|xiaoman", "group:777|xiaoman"]
            dropped.extend(seat for seat in seats if wanted(seat))

        async def close(self) -> None: ...

    twin.engine = Engine()  # type: ignore[assignment]
    hear(twin, 1, WORDS)
    hear(twin, 2, "收到", sender=ME)
    hear(twin, 3, WORDS, PRIVATE)
    hear(twin, 4, "别处", Scene("group", "777"), sender=ME)
    twin.presence.scenes.switch(PRIVATE, True, NOW)
    twin.archive.note(
        GROUP, corrections.KIND, json.dumps({"on": "1", "by": ME, "to": FRIEND, "rejected": [WORDS]}), NOW
    )
    samples = tmp_path / "data" / "runs" / "xiaoman" / "r" / "samples.md"
    samples.parent.mkdir(parents=True)
    samples.write_text(WORDS, "utf-8")
    found = await Privacy(twin).forget(FRIEND, "self", NOW)
    assert (found.messages, found.private, found.corrections, found.files, found.compacted) == (2, 1, 1, 1, True)
    assert dropped == [f"{GROUP}|xiaoman", f"{PRIVATE}|xiaoman"]
    assert {*anew} == {GROUP, PRIVATE}, "what is prepared where they spoke was made of their words"
    assert not samples.exists()
    assert not twin.presence.scenes.is_on(PRIVATE), "not remembered either"
    assert [m.text for m in twin.archive.window(GROUP, 9)] == ["收到"]
    assert twin.archive.optouts.why(FRIEND) is Why.FORGOTTEN
    assert WORDS.encode() not in b"".join(p.read_bytes() for p in (tmp_path / "data").glob("archive.db*"))


async def test_what_comes_while_somebody_is_being_forgotten_does_not_say_who(twin: Twin) -> None:
    hear(twin, 1, WORDS)
    task = asyncio.ensure_future(Privacy(twin).forget(FRIEND, "self", NOW))
    number = 10
    while not task.done():
        hear(twin, number, f"{WORDS}{number}")
        hear(twin, number + 1, "私", PRIVATE)
        number += 2
        await asyncio.sleep(0.001)
    await task
    twin.archive.flush()
    with twin.archive.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT scene, sender_id, text FROM messages").all()
    assert {tuple(row) for row in rows} == {(str(GROUP), "", "")}
    assert len(rows) == 1 + (number - 10) // 2


async def test_what_waits_in_memory_meanwhile_does_not_say_who_either(
    twin: Twin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear(twin, 1, WORDS)
    remove, held = forgetting.from_archive, [True]

    def while_it_is_held(archive: Archive, *rest: Any) -> Forgotten:
        if held:
            other = sqlite3.connect(tmp_path / "data" / "archive.db", isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            hear(twin, 2, "在被删的时候")
            other.execute("ROLLBACK")
            other.close()
            assert archive.waiting == 1
            held.clear()
        return remove(archive, *rest)

    monkeypatch.setattr(forgetting, "from_archive", while_it_is_held)
    await Privacy(twin).forget(FRIEND, "self", NOW)
    twin.archive.flush()
    with twin.archive.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT sender_id, text FROM messages").all()
    assert [tuple(row) for row in rows] == [("", ""), ("", "")]


async def test_a_held_archive_is_said_and_nothing_is_lost(twin: Twin, tmp_path: Path) -> None:
    hear(twin, 1, WORDS)
    other = sqlite3.connect(tmp_path / "data" / "archive.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ArchiveBusy):
        await Privacy(twin).forget(FRIEND, "self", NOW)
    other.execute("ROLLBACK")
    other.close()
    assert [m.text for m in twin.archive.window(GROUP, 9)] == [WORDS]


async def test_what_cannot_be_removed_beside_the_archive_is_said_and_the_rest_goes(twin: Twin, tmp_path: Path) -> None:
    hear(twin, 1, WORDS)
    data = tmp_path / "data"
    twin.stickers = Stickers(data / "stickers", config.Stickers(enabled=True))
    sticker = twin.stickers.add(b"GIF89a" + b"x" * 40, "a" * 32, "", FRIEND, NOW)
    assert sticker is not None
    (data / "blind" / "aaaaaaaaaaaa.json").mkdir(parents=True)  # no file: it cannot be unlinked, whoever runs this
    with pytest.raises(ArchiveError, match="cannot be removed"):
        await Privacy(twin).forget(FRIEND, "self", NOW)
    assert not (data / "stickers" / sticker.file).exists()
    assert WORDS.encode() not in b"".join(p.read_bytes() for p in data.glob("archive.db*")), "written anew all the same"
    (data / "blind" / "aaaaaaaaaaaa.json").rmdir()
    assert (await Privacy(twin).forget(FRIEND, "self", NOW)).compacted


async def test_a_file_that_is_being_read_is_written_anew_later(twin: Twin, tmp_path: Path) -> None:
    hear(twin, 1, WORDS)
    reader = sqlite3.connect(tmp_path / "data" / "archive.db", isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM messages").fetchone() == (1,)
    privacy = Privacy(twin, patience_s=0.0, later_s=0.05)
    found = await privacy.forget(FRIEND, "self", NOW)
    assert (found.messages, found.compacted) == (1, False)
    reader.execute("ROLLBACK")
    reader.close()

    def bare() -> bool:
        return WORDS.encode() not in b"".join(p.read_bytes() for p in (tmp_path / "data").glob("archive.db*"))

    async with asyncio.timeout(20):
        while not bare():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.02)
    await privacy.close()


async def test_twin_forget_removes_what_a_running_twin_stored_before_it_knew(
    twin: Twin, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hear(twin, 1, WORDS)
    removed, stored = forgetting.from_archive, list[bool]()

    def and_then_a_message_comes(archive: Archive, *rest: Any) -> Forgotten:
        found = removed(archive, *rest)
        if not stored:
            stored.append(True)
            hear(twin, 2, WORDS)
            hear(twin, 3, WORDS, PRIVATE)
        return found

    monkeypatch.setattr(forgetting, "from_archive", and_then_a_message_comes)
    began = time.monotonic()
    cli.forget(FRIEND, yes=True, config_path=tmp_path / "bot.toml")
    assert time.monotonic() - began > RELOAD_S, "until then it goes on storing them"
    hear(twin, 4, "知道了之后")
    with twin.archive.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT scene, sender_id, text FROM messages").all()
    assert [tuple(row) for row in rows] == [(str(GROUP), "", "")] * 3
    assert WORDS.encode() not in b"".join(p.read_bytes() for p in (tmp_path / "data").glob("archive.db*"))


async def test_twin_forget_does_the_same_by_hand(
    twin: Twin, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting, "UNTIL_READ_S", 0.0)
    hear(twin, 1, WORDS)
    hear(twin, 2, WORDS, PRIVATE)
    twin.archive.note(
        GROUP, corrections.KIND, json.dumps({"on": "1", "by": ME, "to": FRIEND, "rejected": [WORDS]}), NOW
    )
    cli.forget(FRIEND, yes=True, as_json=True, config_path=tmp_path / "bot.toml")
    told = json.loads(capsys.readouterr().out)
    assert (told["messages"], told["private"], told["corrections"], told["compacted"]) == (2, 1, 1, True)
    versions = (tmp_path / "data" / "personas").glob("*/versions/*")
    assert told["left"]["versions"] == [str(path) for path in sorted(versions)]
    cli.forget(FRIEND, yes=True, config_path=tmp_path / "bot.toml")
    words = capsys.readouterr().out
    assert words.startswith("removed: 0 messages and commands, 0 of the private chat")
    assert "cannot be taken out of them: run `twin night --force`" in words
    assert WORDS.encode() not in b"".join(p.read_bytes() for p in (tmp_path / "data").glob("archive.db*"))
