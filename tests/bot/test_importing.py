"""bot/cli/importing.py as a process: several paths, folders, and what is said of them."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import exports
import pytest
from daemon import free_port
from napcat import ACCOUNT, NapCat, text
from typer.testing import CliRunner, Result

from bot import config
from bot.__main__ import app
from bot.archive import Archive
from bot.errors import ImportFault

ROOT = Path(__file__).parents[2]
_LOADED = """
import sys
from bot.__main__ import app
app(sys.argv[1:], standalone_mode=False)
print(sorted(m for m in sys.modules if m.partition(".")[0] in ("llama_cpp", "nonebot", "torch")))
"""


@pytest.fixture
def bot_toml(tmp_path: Path) -> Path:
    return tmp_path / "config" / "bot.toml"


def test_an_import_loads_nothing_that_serves_or_trains(tmp_path: Path, bot_toml: Path) -> None:
    (tmp_path / "h.json").write_bytes(exports.QCE)
    command = [sys.executable, "-c", _LOADED, "import", str(tmp_path / "h.json"), "--config", str(bot_toml)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def twin(bot_toml: Path, *words: str | Path) -> Result:
    """`twin import …`, in this process."""
    return CliRunner().invoke(app, ["import", *map(str, words), "--config", str(bot_toml)])


def stored(bot_toml: Path) -> int:
    """Messages in the archive."""
    archive = Archive(config.load(bot_toml).archive_url)
    try:
        return sum(s.messages for s in archive.scenes())
    finally:
        archive.close()


async def test_a_client_of_which_one_friend_is_refused_is_told_scene_by_scene(bot_toml: Path) -> None:
    def said(user: int, number: int, **changed: object) -> dict[str, object]:
        return {
            "self_id": int(ACCOUNT), "user_id": user, "time": 1_700_000_000 + number, "message_id": number,
            "message_type": "private", "sender": {"user_id": user}, "message": [text(f"第{number}句")], **changed,
        }  # fmt: skip

    histories = {"private:101": [said(101, 1), said(101, 2, time="明天")], "private:103": []}
    token, _ = config.access_token(config.load(bot_toml))
    client = NapCat("", token, app_name="Lagrange.OneBot", history=histories, refused={"private:103": "频率过快"})
    port = free_port()
    async with client.serving(port):
        done = await asyncio.to_thread(twin, bot_toml, f"onebot://127.0.0.1:{port}")
        as_json = await asyncio.to_thread(twin, bot_toml, f"onebot://127.0.0.1:{port}", "--json")
    assert done.stdout.splitlines() == [
        "private:101: 1 message read, 1 new, back to 2023-11-14T22:13:21+00:00",
        "  left out 1: field 'time' is not unix seconds (message 2)",
        "private:103: 0 messages read, 0 new",
        "  not read to its end: the client refuses the history of private:103: '频率过快' (retcode 1200); try again "
        "later",
    ]
    assert isinstance(done.exception, ImportFault), "which the command line prints and exits with 1"
    assert "1 of 2 scenes were not read to their end" in str(done.exception)
    shown = json.loads(as_json.stdout)
    assert shown["private:101"]["skipped"] == {
        "field 'time' is not unix seconds": {"count": 1, "places": ["message 2"]}
    }
    assert [scene for scene in shown if "fault" in shown[scene]] == ["private:103"]


async def test_a_dry_run_of_a_client_tells_what_is_there_by_one_page_a_chat_and_stores_nothing(bot_toml: Path) -> None:
    def said(number: int, **more: object) -> dict[str, object]:
        who = {"user_id": 101, "nickname": "小满"}
        return {
            "self_id": int(ACCOUNT), "user_id": 101, "time": 1_700_000_000 + number, "message_id": number,
            "message_type": "group", "group_id": 20001, "group_name": "面包店", "sender": who,
            "message": [text(f"第{number}句")], **more,
        }  # fmt: skip

    histories = {"group:20001": [said(n) for n in range(120)] + [said(120, time="明天")], "private:103": []}
    token, _ = config.access_token(config.load(bot_toml))
    client = NapCat("", token, app_name="Lagrange.OneBot", history=histories, refused={"private:103": "频率过快"})
    port = free_port()
    url = f"onebot://127.0.0.1:{port}"
    async with client.serving(port):
        done = await asyncio.to_thread(twin, bot_toml, url, "--dry-run")
        as_json = await asyncio.to_thread(twin, bot_toml, f"{url}/group/20001", "--dry-run", "--json")
    assert done.exception is None
    assert done.stdout.splitlines() == [
        f"{url}: Lagrange.OneBot 1; you are {ACCOUNT} 本人; 1 group and 1 friend",
        "  a dry run asks for the newest page of a chat; an import goes on from there to the oldest message that the "
        "client still knows",
        "  group 20001 测试群: 49 messages, 2023-11-15T06:14:31+08:00 – 2023-11-15T06:15:19+08:00",
        "    left out 1: field 'time' is not unix seconds (message 120)",
        "  private 103 阿泽: 0 messages",
        "    not read: the client refuses the history of private:103: '频率过快' (retcode 1200); try again later",
        "  people there: 101 小满 (49)",
    ]
    shown = json.loads(as_json.stdout)
    assert (shown["scenes"]["group:20001"]["name"], shown["groups"], shown["friends"]) == ("面包店", 1, 0)
    assert (shown["me"], list(shown["scenes"]), shown["people"]) == (
        ACCOUNT, ["group:20001"], {"101": {"name": "小满", "messages": 49}},
    )  # fmt: skip
    assert sum(c["action"].endswith("_msg_history") for c in client.calls) == 3
    assert not (config.load(bot_toml).data / "archive.db").exists()


SHAREGPT = b'[{"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}]'
NO_DIALOGUE = b'[{"conversations": [{"from": "human", "value": "x"}]}]'


def test_a_file_that_cannot_be_read_keeps_no_other_from_being_read(tmp_path: Path, bot_toml: Path) -> None:
    files = {"a.json": exports.QCE, "b.json": b"{}", "c.json": SHAREGPT, "d.csv": exports.FIVE_CSV, "e.txt": b""}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    paths = [tmp_path / name for name in (*files, "none.json")]
    done = twin(bot_toml, *paths)
    assert isinstance(done.exception, ImportFault), "which the command line prints and exits with 1"
    assert str(done.exception).startswith("4 of 6 paths were not read")
    assert [line.partition(": ")[0] for line in done.stdout.splitlines() if not line.startswith(" ")] == [
        "a.json", "d.csv",
    ]  # fmt: skip
    said = done.stderr.splitlines()
    assert [line.partition("'")[2].rpartition("/")[2].partition("'")[0] for line in said] == [
        "b.json", "c.json", "e.txt", "none.json",
    ]  # fmt: skip
    assert all(line.startswith("twin: ") for line in said)
    assert stored(bot_toml) == len(exports.QCE_TEXTS) + 4


def test_a_training_set_that_cannot_be_read_keeps_no_other_from_being_read(tmp_path: Path, bot_toml: Path) -> None:
    for name, content in {"a.json": NO_DIALOGUE, "b.json": SHAREGPT, "c.json": exports.QCE}.items():
        (tmp_path / name).write_bytes(content)
    paths = [tmp_path / name for name in ("none.json", "a.json", "b.json", "c.json")]
    done = twin(bot_toml, *paths, "--persona", "xiaoman")
    assert str(done.exception).startswith("2 of 4 paths were not read")
    assert [line.partition(":")[0] for line in done.stdout.splitlines() if not line.startswith(" ")] == [
        "b.json", "c.json",
    ]  # fmt: skip
    assert "none.json" in done.stderr
    assert "a.json" in done.stderr
    sets = list((config.load(bot_toml).data / "personas" / "xiaoman" / "sets").glob("b-*.jsonl"))
    assert len(sets) == 1
    assert stored(bot_toml) == len(exports.QCE_TEXTS)
    done = twin(bot_toml, tmp_path / "none.json", tmp_path / "b.json", "--persona", "xiaoman")
    assert str(done.exception).startswith("1 of 2 paths were not read"), "where sets alone are named, too"


def test_an_only_path_that_cannot_be_read_is_one_line(tmp_path: Path, bot_toml: Path) -> None:
    done = twin(bot_toml, tmp_path / "none.json")
    assert str(done.exception) == f"history file '{tmp_path / 'none.json'}' does not exist"
    assert (done.stdout, done.stderr) == ("", "")


def test_a_folder_is_read_as_its_files_named_would_be(tmp_path: Path, bot_toml: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    files = {"a.json": exports.QCE, "b.csv": exports.FIVE_CSV, "c.json": SHAREGPT, "d.txt": b"x\n", "e.txt": b"y\n"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    done = twin(bot_toml, folder, tmp_path / "none.json", "--persona", "xiaoman")
    assert str(done.exception).startswith("1 of 4 paths were not read")
    assert done.stdout.startswith(
        "mixed: a folder of which 3 histories are read\n  left out 2: of no format known here (d.txt, e.txt)\n"
    )
    assert [line.partition(":")[0] for line in done.stdout.splitlines() if line.startswith("mixed/")] == [
        "mixed/c.json", "mixed/a.json", "mixed/b.csv",
    ]  # fmt: skip
    assert stored(bot_toml) == len(exports.QCE_TEXTS) + 4
    told = [json.loads(line) for line in twin(bot_toml, folder, "--json").stdout.splitlines()]
    assert told[0]["folder"] == "mixed"
    assert sum(left["count"] for left in told[0]["left_out"].values()) == 3
    assert [one["added"] for one in told[1:]] == [0, 0]


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_me_who_is_nobody_there_is_an_error_before_anything_is_imported(
    tmp_path: Path, bot_toml: Path, more: list[str]
) -> None:
    paths = [tmp_path / "five.csv", tmp_path / "h.txt"]
    for path, content in zip(paths, (exports.FIVE_CSV, exports.QQ_TXT), strict=True):
        path.write_bytes(content)
    done = twin(bot_toml, *paths, "--me", "999", *more)
    assert isinstance(done.exception, ImportFault)
    assert str(done.exception) == (
        "--me '999': nobody of that id speaks there; these do: 100200 阿泽 (4), 100100 小满 (3), 100300 (1), "
        "li@example.org 老李 (1), 阿泽 (1)"
    )
    assert done.stdout == ""
    assert stored(bot_toml) == 0
    done = twin(bot_toml, *paths, "--me", "小满", *more)
    assert done.exit_code == 0, "who speaks in one of them is somebody"
    assert "you are 小满 with 1 message" in done.stdout


def test_the_folder_one_stands_in_is_read(tmp_path: Path, bot_toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "h.csv").write_bytes(exports.WECHAT_CSV)
    monkeypatch.chdir(tmp_path / "here")
    done = twin(bot_toml, ".")
    assert (done.exit_code, done.stdout.partition(";")[0]) == (0, "here: WeChat CSV")
