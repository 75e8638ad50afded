import sqlite3
from datetime import UTC, datetime
from pathlib import Path

from bot import config
from bot.message import Message, Scene
from bot.terminal import NoTransport
from bot.twin import ARCHIVE_BROKEN, ARCHIVE_WELL, Twin

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


async def test_the_owner_is_told_when_the_archive_is_locked_and_when_it_is_well_again(tmp_path: Path) -> None:
    twin, told = baseless(tmp_path)
    blocker = sqlite3.connect(tmp_path / "data" / "archive.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    for number in (1, 2):
        twin.record(message(number))
        await twin.watch_archive()
    assert told == [ARCHIVE_BROKEN]
    blocker.execute("ROLLBACK")
    blocker.close()
    twin.record(message(3))
    await twin.watch_archive()
    assert told == [ARCHIVE_BROKEN, ARCHIVE_WELL]
    assert len(twin.archive.window(SCENE, 5)) == 3
    await twin.close()
