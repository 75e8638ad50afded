import asyncio
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from killing import held_at

from bot import config
from bot.commands import Call, Who
from bot.errors import ArchiveError
from bot.message import Message, Origin, Scene
from bot.terminal import NoTransport
from bot.twin import ARCHIVE_BROKEN, ARCHIVE_WELL, SHIPPED, Twin, install_shipped

SCENE = Scene("private", "10001")


def baseless(folder: Path) -> tuple[Twin, list[str]]:
    """A twin whose base is missing, and what its owner is told."""
    settings = config.load(folder / "bot.toml", {"TWIN__ENGINE__BASE": '"nowhere.gguf"'})
    twin, told = Twin.assemble(settings, folder, NoTransport(), only_record=True), []

    async def tell(text: str) -> None:
        told.append(text)

    twin.owner_lines = tell
    return twin, told


def message(number: int) -> Message:
    return Message(str(number), SCENE, "10001", "阿强", datetime.now(UTC), "在吗")


async def test_without_a_base_messages_are_recorded_and_the_owner_is_told_once(tmp_path: Path) -> None:
    twin, told = baseless(tmp_path)
    await twin.greet()
    await twin.greet()
    assert len(told) == 1
    assert "nowhere.gguf" in told[0]
    assert twin.record(message(1))
    assert not twin.record(message(1)), "a replay is not new"
    assert [m.text for m in twin.archive.window(SCENE, 5)] == ["在吗"]
    await twin.close()


async def until(true: Callable[[], bool]) -> None:
    for _ in range(1000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come true within 10 s")


async def test_a_locked_archive_is_told_once_and_written_as_soon_as_it_can_be(tmp_path: Path) -> None:
    twin, told = baseless(tmp_path)
    twin.archive_retry_s = 0.02
    blocker = sqlite3.connect(tmp_path / "data" / "archive.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    for number in (1, 2, 3):
        assert twin.record(message(number))
    await until(lambda: bool(told))
    await asyncio.sleep(0.3)
    assert told == [ARCHIVE_BROKEN]
    blocker.execute("ROLLBACK")
    blocker.close()
    await until(lambda: twin.archive.waiting == 0)
    await until(lambda: told == [ARCHIVE_BROKEN, ARCHIVE_WELL])
    assert len(twin.archive.window(SCENE, 5)) == 3
    await twin.close()


async def test_a_message_is_kept_while_the_archive_cannot_even_be_read(tmp_path: Path) -> None:
    twin, _ = baseless(tmp_path)
    twin.archive_retry_s = 0.02
    twin.archive.close()  # it opens again by itself; its idle connection would keep the lock from being taken
    blocker = sqlite3.connect(tmp_path / "data" / "archive.db", isolation_level=None)
    blocker.execute("PRAGMA locking_mode=EXCLUSIVE")
    blocker.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ArchiveError):
        twin.archive.get(SCENE, "1")
    assert twin.record(message(1))
    blocker.execute("ROLLBACK")
    blocker.close()
    await until(lambda: twin.archive.waiting == 0)
    assert [m.id for m in twin.archive.window(SCENE, 5)] == ["1"]
    await twin.close()


async def test_what_could_not_be_told_is_told_when_a_client_connects(tmp_path: Path) -> None:
    twin, told = baseless(tmp_path)
    await twin.greet()
    told.clear()
    reachable, twin.owner_lines = twin.owner_lines, None
    await twin.tell_owner("昨晚的报告")
    await twin.tell_owner("昨晚的报告")
    await twin.greet()
    assert told == []
    twin.owner_lines = reachable
    await twin.greet()
    assert told == ["昨晚的报告", "昨晚的报告"], "a report is never muted"
    await twin.greet()
    assert len(told) == 2
    await twin.close()


async def test_a_fault_of_every_message_is_told_once_an_hour(tmp_path: Path) -> None:
    twin, told = baseless(tmp_path)
    for _ in range(3):
        await twin.tell_owner("回复生成失败", hourly=True)
    assert told == ["回复生成失败"]
    await twin.close()


def test_a_shipped_persona_is_installed_with_the_notice_of_its_terms(tmp_path: Path) -> None:
    install_shipped(tmp_path)
    notice = (tmp_path / "xiaoman" / "NOTICE").read_text("utf-8")
    assert notice == (SHIPPED.parent / "NOTICE").read_text("utf-8")
    assert "Gemma Terms of Use" in notice


INSTALLS = """
import sys
from pathlib import Path
from bot.twin import install_shipped
install_shipped(Path(sys.argv[1]))
"""


def test_two_processes_install_a_shipped_persona_at_once(tmp_path: Path) -> None:
    with held_at("utime", INSTALLS, tmp_path):
        assert list(tmp_path.iterdir())
        install_shipped(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["xiaoman"]
    assert {"NOTICE", "persona.toml"} <= {path.name for path in (tmp_path / "xiaoman").iterdir()}


GROUP = Scene("group", "20001")


async def test_another_persona_is_told_the_presence_after_it_was_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin, _ = baseless(tmp_path)
    (tmp_path / "data" / "personas" / "other").mkdir()
    (tmp_path / "data" / "personas" / "other" / "persona.toml").write_text('display_name = "别人"\n', "utf-8")
    told: list[tuple[Scene, str]] = []
    monkeypatch.setattr(
        twin.presence, "decide_anew", lambda scene: told.append((scene, twin.presence.scenes.persona(scene)))
    )
    assert twin.switch_persona(GROUP, "other", datetime.now(UTC)).name == "other"
    assert told == [(GROUP, "other")]
    await twin.close()


def said(number: int, text: str, scene: Scene = GROUP, **changed: Any) -> Message:
    sent = {"segments": ({"type": "text", "data": {"text": text}},), **changed}
    return Message(str(number), scene, "10001", "阿强", datetime.now(UTC), text, **sent)


async def test_of_somebody_out_no_word_is_stored_and_commands_neither(tmp_path: Path) -> None:
    twin, _ = baseless(tmp_path)

    async def about(call: Call) -> str:
        return "好"

    twin.commands.add("about", Who.EVERYONE, about)
    twin.archive.optouts.note("10001", "out", "self", datetime.now(UTC))
    assert twin.record(said(1, "秘密"))
    assert twin.record(said(2, "/about 秘密"))
    assert not twin.record(said(1, "秘密")), "a replay is known by its row"
    assert twin.record(said(3, "好", origin=Origin.TWIN)), "what is sent from their account is not theirs"
    twin.record_own("4", GROUP, "10001", "答")
    rows = {key: twin.archive.get(GROUP, key) for key in ("1", "2", "3", "4")}
    assert {key: (m.text, m.origin) for key, m in rows.items() if m} == {
        "1": ("", Origin.HUMAN), "2": ("", Origin.SYSTEM), "3": ("好", Origin.TWIN), "4": ("答", Origin.SYSTEM),
    }  # fmt: skip
    assert len(twin.archive.sent_since(datetime(2026, 1, 1, tzinfo=UTC))) == 2, "a command typed is no line of ours"
    await twin.close()
    assert "秘密".encode() not in b"".join(p.read_bytes() for p in (tmp_path / "data").glob("archive.db*"))


async def test_a_private_chat_with_somebody_forgotten_leaves_nothing(tmp_path: Path) -> None:
    twin, _ = baseless(tmp_path)
    with twin.archive.engine.begin() as connection:
        twin.archive.optouts.forget(connection, "10001", "self", datetime.now(UTC))
    twin.archive.optouts.reload()
    assert twin.record(said(1, "秘密", SCENE))
    twin.record_own("2", SCENE, "40001", "答")
    assert twin.archive.scenes() == []
    await twin.close()
