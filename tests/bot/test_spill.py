"""bot/spill.py: what is kept, where, who may read it, and that a broken disk only costs reading again."""

import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from loguru import logger

from bot.spill import Held, Spill


def held(letter: str, size: int = 100) -> Held:
    return Held(None, [ord(letter)], letter.encode() * size)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*")) if folder.exists() else []


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    told: list[str] = []
    number = logger.add(told.append, level="WARNING", format="{message}")
    yield told
    logger.remove(number)


@pytest.mark.parametrize(
    ("memory", "disk", "kept"),
    [(400, 0, "cdef"), (0, 400, "cdef"), (200, 200, "cdef"), (250, 250, "cdef"), (200, 0, "ef"), (0, 0, ""),
     (99, 99, ""), (600, 0, "abcdef"), (100, 500, "abcdef"), (99, 350, "def")],
)  # fmt: skip
def test_the_latest_are_kept_under_both_budgets(tmp_path: Path, memory: int, disk: int, kept: str) -> None:
    spill = Spill(memory, disk, tmp_path)
    assert spill.enabled is bool(memory or disk)
    for letter in "abcdef":
        spill.put(letter, held(letter))
        assert spill.kept_bytes <= memory
        assert spill.filed_bytes == sum(f.stat().st_size for f in files(tmp_path)) <= disk
    assert {x for x in "abcdef" if spill.take(x) == held(x)} == set(kept)
    assert spill.kept_bytes == spill.filed_bytes == 0
    assert [spill.take(x) for x in "abcdef"] == [None] * 6, "each comes back once"
    assert files(tmp_path) == []


def test_files_are_for_the_owner_alone_and_do_not_name_the_scene(tmp_path: Path) -> None:
    folder = tmp_path / "spill"
    spill = Spill(0, 1000, folder)
    assert not folder.exists()
    spill.put("group:12345/xiaoman", held("a"))
    (file,) = files(folder)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert "12345" not in str(file)


def test_nothing_is_left_of_a_process_that_ended_or_was_killed(tmp_path: Path) -> None:
    killed = Spill(0, 1000, tmp_path)
    killed.put("a", held("a"))
    assert len(files(tmp_path)) == 1
    again = Spill(1000, 0, tmp_path)
    assert files(tmp_path) == []
    assert again.take("a") is None
    ended = Spill(0, 1000, tmp_path)
    ended.put("b", held("b"))
    ended.close()
    assert files(tmp_path) == []
    assert ended.take("b") is None


def test_without_a_folder_there_are_no_files() -> None:
    spill = Spill(0, 1000)
    assert not spill.enabled
    spill.put("a", held("a"))
    assert spill.take("a") is None


@pytest.mark.parametrize("left", [None, b"", b"short"])
def test_a_file_that_cannot_be_read_is_forgotten_with_one_warning(
    tmp_path: Path, warnings: list[str], left: bytes | None
) -> None:
    spill = Spill(0, 1000, tmp_path)
    for letter in "abc":
        spill.put(letter, held(letter))
    for file in files(tmp_path):
        file.unlink() if left is None else file.write_bytes(left)
    assert [spill.take(x) for x in "abc"] == [None] * 3
    assert len(warnings) == 1
    assert spill.filed_bytes == 0
    assert files(tmp_path) == []
    spill.put("d", held("d"))
    assert spill.take("d") == held("d")


def test_a_disk_that_takes_no_more_costs_one_warning(tmp_path: Path, warnings: list[str]) -> None:
    spill, limits = Spill(0, 10**9, tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))  # a write ends in the middle, as on a full disk
    try:
        for letter in "abc":
            spill.put(letter, held(letter, 20_000))
        spill.put("d", held("d"))
        assert files(tmp_path) == [spill._path("d")], "halves are deleted"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [spill.take(x) for x in "abc"] == [None] * 3
    assert len(warnings) == 1
    assert spill.take("d") == held("d")


def test_a_folder_that_cannot_be_made_costs_one_warning(tmp_path: Path, warnings: list[str]) -> None:
    (tmp_path / "file").write_text("")
    spill = Spill(0, 1000, tmp_path / "file" / "spill")
    spill.put("a", held("a"))
    spill.put("b", held("b"))
    assert spill.take("a") is spill.take("b") is None
    assert len(warnings) == 1
    spill.close()


def test_what_is_to_be_forgotten_goes_from_memory_and_from_the_disk(tmp_path: Path) -> None:
    spill = Spill(200, 400, tmp_path)
    for letter in "abcdef":
        spill.put(letter, held(letter))
    spill.forget(lambda name: name in "af")
    assert (spill.kept_bytes, spill.filed_bytes) == (100, 300)
    assert len(files(tmp_path)) == 3
    assert "".join(x for x in "abcdef" if spill.take(x)) == "bcde"
