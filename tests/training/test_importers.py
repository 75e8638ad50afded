"""What holds of every source of history: told apart by content, read whole, nothing twice, and never a traceback."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from exports import ALL, Export

from bot.archive import Archive
from bot.errors import ImportFault
from training import history
from training.importers.source import Reading, head

MUTATIONS = 12
"""Broken copies of each export."""
MORNING = "早".encode()
every = pytest.mark.parametrize("export", ALL, ids=lambda e: e.name)


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    store = Archive(f"sqlite:///{tmp_path / 'archive.db'}")
    yield store
    store.close()


@every
def test_an_export_is_recognised_by_its_own_source_alone(tmp_path: Path, export: Export) -> None:
    path = export.written(tmp_path)
    assert [s.name for s in history.SOURCES if s.sniff(path, head(path))] == [export.source]


def test_what_is_none_of_them_is_recognised_by_none(tmp_path: Path) -> None:
    others = {
        "sharegpt.json": b'[{"conversations": [{"from": "human", "value": "x"}]}]', "empty.json": b"",
        "alpaca.jsonl": b'{"instruction": "x"}\n', "plain.txt": "你好\n".encode(), "table.csv": b"a,b,c\n1,2,3\n",
        "picture.png": bytes(range(256)), "deep.json": b"[" * 70_000, "array.json": b"[1, 2]",
        "utf16.txt": "你好".encode("utf-16"),
    }  # fmt: skip
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
        found = [s.name for s in history.SOURCES if s.sniff(tmp_path / name, content[:65536])]
        assert found == [], name
    assert [s.name for s in history.SOURCES if s.sniff(tmp_path, b"")] == []


@every
def test_all_its_messages_go_in_and_a_second_import_adds_none(tmp_path: Path, archive: Archive, export: Export) -> None:
    path = export.written(tmp_path)
    results = [history.load(path, archive) for _ in range(2)]
    assert [r.messages for r in results] == [export.messages] * 2
    assert [r.added for r in results] == [len({(m.scene, m.id) for m in _read(path, export)}), 0]
    assert archive.lost == 0


@every
def test_the_ids_of_a_part_are_those_of_the_whole(tmp_path: Path, export: Export) -> None:
    path = export.written(tmp_path)
    whole = {(m.scene, m.id) for m in _read(path, export)}
    path.write_bytes(export.content[: len(export.content) * 2 // 3])
    half = {(m.scene, m.id) for m in _read(path, export)}
    cut = half - whole  # The message at the cut may be a part of itself where ids are made of the text.
    assert len(cut) <= 1
    assert half


@every
def test_half_a_file_gives_what_came_before(tmp_path: Path, export: Export) -> None:
    path = tmp_path / export.name
    path.write_bytes(export.content[: len(export.content) * 2 // 3])
    result = history.load(path, None, source=_source(export))
    assert 0 < result.messages <= export.messages
    if export.name.endswith(".json"):
        assert result.reading.skipped["the file ends in the middle"] == 1


@pytest.mark.parametrize("export", [e for e in ALL if MORNING in e.content], ids=lambda e: e.name)
def test_one_invalid_byte_costs_one_character(tmp_path: Path, export: Export) -> None:
    early = export.content.find(MORNING)
    path = tmp_path / export.name
    path.write_bytes(export.content[:early] + b"\xff" + export.content[early:])
    assert history.load(path, None).messages == export.messages


@every
def test_a_broken_file_is_a_fault_or_read_as_far_as_it_goes(tmp_path: Path, export: Export) -> None:
    chance = random.Random(export.name)
    path = tmp_path / export.name
    tried = faults = 0
    for _ in range(MUTATIONS):
        path.write_bytes(_mutated(export.content, chance))
        for source in (None, _source(export)):
            tried += 1
            try:
                history.load(path, None, source=source)
            except ImportFault:
                faults += 1
    assert tried == 2 * MUTATIONS
    assert faults < tried


def _mutated(content: bytes, chance: random.Random) -> bytes:
    """Bytes changed, cut out, doubled, put in: one to eight times."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(data) or 1)
        end = min(len(data), at + chance.choice((1, 1, 4, 60)))
        match chance.randrange(5):
            case 0:
                data[at:end] = bytes([chance.randrange(256)])
            case 1:
                del data[at:end]
            case 2:
                data[at:at] = data[at:end]
            case 3:
                data[at:at] = chance.choice(
                    (b'"', b"[", b"{", b"\\", b"\0", b"\n", b",", b"]", b"}", b"9" * 5000, b"\xed\xa0\x80")
                )
            case 4:
                data = data[: max(at, 1)]
    return bytes(data)


def _source(export: Export) -> "history.Source":
    return next(s for s in history.SOURCES if s.name == export.source)


def _read(path: Path, export: Export) -> list[history.Message]:
    return [m for m in _source(export).read(path, Reading()) if isinstance(m, history.Message)]
