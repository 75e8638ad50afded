"""training/folders.py: what of a folder is read, and that nothing of it is left out without a word."""

import json
import os
import sqlite3
from pathlib import Path

import exports
import ntqq
import pytest

from bench import ntqq as qq
from bot.errors import ImportFault
from training import folders, ledger
from training.importers.source import Told

SHAREGPT = b'[{"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}]'


def filled(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(folder: Path, wanted: str = "auto", *, with_sets: bool = False) -> list[tuple[str, str | None]]:
    parts, _ = folders.found(folder, wanted, with_sets=with_sets)
    return [(part.name, part.source and part.source.name) for part in parts]


MIXED = {
    "a.json": exports.QCE, "b/weflow.json": exports.WEFLOW, "b/chatlog.json": exports.CHATLOG, "c.txt": exports.QQ_TXT,
    "five.csv": exports.FIVE_CSV, "wx/阿泽.csv": exports.WECHAT_CSV, "wx/面包店.csv": exports.WECHAT_OLD_CSV,
    "account.csv": "日期,金额\n".encode(), "note.txt": "你好\n".encode(), "picture.png": bytes(range(256)),
    "set.json": SHAREGPT, "empty.txt": b"", ".DS_Store": b"\0\0", "._a.json": b"\0\5", ".git/a.json": exports.QCE,
    "wx/._x/b.csv": exports.WECHAT_CSV,
}  # fmt: skip


def test_every_history_of_a_folder_is_read_and_every_other_file_named(tmp_path: Path) -> None:
    folder = filled(tmp_path / "mixed", MIXED)
    qq.write(folder / "nt_msg.db", [ntqq.say(1, "在")])
    ntqq.profile_info(folder / "profile_info.db", {1: "x"})
    ntqq.profile_info(folder / "files.db", {1: "x"})
    ntqq.profile_info(folder / "wx" / "other.db", {1: "x"})
    (folder / "nt_msg.db-shm").touch()
    histories = [
        ("mixed/a.json", "qce"), ("mixed/c.txt", "qq-txt"), ("mixed/five.csv", "five-csv"),
        ("mixed/nt_msg.db", "ntqq"), ("mixed/b/chatlog.json", "chatlog"), ("mixed/b/weflow.json", "weflow"),
        ("mixed", "wechat-csv"),
    ]  # fmt: skip
    assert read(folder) == histories
    _, left = folders.found(folder)
    assert left.places == {
        "a hidden folder": [".git", "wx/._x"],
        "a hidden file": [".DS_Store", "._a.json"],
        "of no format known here": ["account.csv", "note.txt", "picture.png"],
        "an empty file": ["empty.txt"],
        "another of QQ's databases": ["files.db"],
        "a database without QQ's tables of messages, or one too damaged to tell": ["wx/other.db"],
        "a training set (ShareGPT): say who learns from it with --persona NAME": ["set.json"],
    }
    assert sorted(read(folder, with_sets=True)) == sorted([*histories, ("mixed/set.json", None)])
    assert read(folder, "weflow") == [("mixed/b/weflow.json", "weflow")]
    assert folders.found(folder, "weflow")[1].skipped["not of --format weflow"] == 6


def test_the_chunks_of_an_export_are_one_history(tmp_path: Path) -> None:
    told = {"chunksDir": "chunks", "chunks": [{"relativePath": "chunks/c1.jsonl"}]}
    manifest = json.dumps(exports.QCE_HEAD | {"chunked": told}).encode()
    files = {"manifest.json": manifest, "chunks/c1.jsonl": exports.rows(*exports.QCE_ROWS), "avatars.json": b"{}"}
    folder = filled(tmp_path / "面包店_chunked_jsonl", files)
    parts, left = folders.found(folder)
    assert [(part.path, part.name) for part in parts] == [(folder, folder.name)]
    assert left.places == {"of no format known here": ["avatars.json"]}
    (tmp_path / "a.json").write_bytes(exports.QCE)
    assert read(tmp_path) == [(f"{tmp_path.name}/a.json", "qce"), (f"{tmp_path.name}/{folder.name}", "qce")]
    (folder / "manifest.json").write_bytes(manifest[:-9])
    assert read(folder) == [(folder.name, "qce")], "its chunks alone would be other chats"
    assert folders.found(folder)[1].places == {"beside a broken manifest": ["avatars.json", "chunks"]}


def test_a_link_to_a_folder_is_named_and_not_followed(tmp_path: Path) -> None:
    folder = filled(tmp_path / "here", {"a.json": exports.QCE})
    filled(tmp_path / "there", {"b.json": exports.QCE})
    (folder / "link").symlink_to(tmp_path / "there", target_is_directory=True)
    parts, left = folders.found(folder)
    assert ([part.name for part in parts], left.places) == (["here/a.json"], {"a link to a folder": ["link"]})


@pytest.mark.parametrize(("source", "files", "of_it"), [
    ("wechat-csv", {"wx/阿泽.csv": exports.WECHAT_CSV, "big.db": b"x", "account.csv": b"y"}, {"wx/阿泽.csv"}),
    ("qce", {
        "manifest.json": json.dumps({"chunked": {"chunks": [{"file": "c1.jsonl"}]}}).encode(), "c1.jsonl": b"{}",
        "big.db": b"x",
    }, {"manifest.json", "c1.jsonl"}),
])  # fmt: skip
def test_what_lies_beside_a_folders_history_makes_no_other_history_of_it(
    source: str, files: dict[str, bytes], of_it: set[str], tmp_path: Path
) -> None:
    folder = filled(tmp_path / "mixed", files)
    before = ledger.digest(folder, source, Told())
    for name in files:
        (folder / name).write_bytes(files[name] + b"\n")
        assert (ledger.digest(folder, source, Told()) != before) is (name in of_it), name
        (folder / name).write_bytes(files[name])
        assert ledger.digest(folder, source, Told()) == before


def test_a_history_that_cannot_be_opened_is_not_left_out_but_read_to_say_why(tmp_path: Path) -> None:
    holder = sqlite3.connect(qq.write(tmp_path / "copy.db", [ntqq.say(1, "在")]), isolation_level=None)
    holder.execute("PRAGMA locking_mode=EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    assert read(tmp_path) == [(f"{tmp_path.name}/copy.db", None)]
    holder.close()
    assert read(tmp_path) == [(f"{tmp_path.name}/copy.db", "ntqq")]


def test_a_folder_without_a_history_says_so(tmp_path: Path) -> None:
    with pytest.raises(ImportFault, match=r"is an empty folder: name the one the history was exported to$"):
        folders.found(tmp_path)
    (tmp_path / "account.csv").write_text("日期,金额\n", "utf-8")
    (tmp_path / ".DS_Store").touch()
    os.symlink(tmp_path / "nowhere", tmp_path / "link.json")
    with pytest.raises(ImportFault, match=r"holds no history of a format known here: 1 × ") as caught:
        folders.found(tmp_path)
    for said in ("known here (account.csv)", "a hidden file (.DS_Store)", "no file, or a link to none (link.json)"):
        assert said in str(caught.value)
