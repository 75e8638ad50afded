"""The `twin` command line as a process: what a person reads, and the exit status a program reads."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tinymodel
from chats import ME, say

from bot import config as settings
from bot.archive import Archive
from training.stats import CLEANED

ROOT = Path(__file__).parents[2]


def twin(*words: str, config: Path) -> subprocess.CompletedProcess[str]:
    """Run a command on the data folder beside `config`."""
    return subprocess.run(
        [sys.executable, "-m", "bot", *words, "--config", str(config)], cwd=ROOT, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture
def bot_toml(tmp_path: Path) -> Path:
    return tmp_path / "bot.toml"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["chat", "--backend", "onnx"], "--backend 'onnx': must be llama or transformers"),
        (["chat", "--merged", "--lora", "a.gguf"], "--lora applies a LoRA and --merged applies none"),
        (["chat", "--model", "a", "--gguf", "b.gguf"], "--model is a checkpoint, and --gguf asks for a GGUF"),
        (
            ["chat", "--model", "a", "--backend", "llama"],
            "--model is a checkpoint, and --backend llama asks for a GGUF",
        ),
        (["bench", "nothing"], "no bench 'nothing'; there are: first-light"),
        (["persona", "show", "nobody"], "no persona 'nobody' in"),
        (["persona", "new", "a/b", "--people", "1"], "must be letters, digits"),
        (["import", "nowhere.jsonl"], "history file 'nowhere.jsonl' does not exist"),
        (["import", "nowhere.jsonl", "--persona", "xiaoman"], "history file 'nowhere.jsonl' does not exist"),
        (["import", "nowhere.jsonl", "--role", "李白"], "are of training sets: add --persona NAME"),
        (["corpus", "export", "--out", "x", "--format", "xml"], "--format 'xml': must be sharegpt, openai, alpaca"),
        (["persona", "new", "libai", "--role", "李白"], "--role and --profiles go together"),
        (["chat", "--system-prompt", "\udcff"], "--system-prompt holds bytes that are no UTF-8"),
        (["compare", "--prompts", "nowhere.txt"], "prompts 'nowhere.txt' cannot be read"),
        (["compare", "--personas", "base,base"], "--personas 'base,base': name each persona once"),
        (["eval", "--blind-result", "nowhere.json"], "'nowhere.json' is no file that the blind test's page saved"),
        (["export", "merge", "nowhere", "--type", "q8_0"], "written as its base is stored, or in F32, not as 'q8_0'"),
        (["export", "lora", "nowhere", "--type", "q3"], "there is no LoRA type 'q3'; known are f16, f32, q8_0"),
        (["export", "gguf", "nowhere", "--type", "Q9"], "there is no quantization type 'Q9'; known are F32, F16"),
        (["export", "gguf", "nowhere", "--type", "IQ2_S"], "IQ2_S needs an importance matrix: give --imatrix"),
    ],
)
def test_a_known_error_is_one_line_and_exit_1(bot_toml: Path, words: list[str], said: str) -> None:
    done = twin(*words, config=bot_toml)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert done.stderr.startswith("twin: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("what", ["lora", "merge", "gguf"])
def test_of_a_folder_that_is_no_run_nothing_but_that_is_told(bot_toml: Path, what: str) -> None:
    done = twin("export", what, "nowhere", config=bot_toml)
    told = [line for line in done.stderr.splitlines() if not line.startswith("The embedded base is ")]
    assert told == ["twin: 'nowhere' is no run folder (it has no readable snapshot.json)"]


def test_wrong_usage_is_exit_2(bot_toml: Path) -> None:
    assert twin("persona", "publish", config=bot_toml).returncode == 2


def test_the_version_is_told() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bot", "--version"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("qqtwin 0.")


@pytest.mark.parametrize("person", ["10001", "wxid_abc123", "小满"])
def test_a_persona_is_of_whoever_an_import_names(bot_toml: Path, person: str) -> None:
    assert twin("persona", "new", "me", "--people", f"{person}, 2", config=bot_toml).returncode == 0
    shown = json.loads(twin("persona", "show", "me", config=bot_toml).stdout)
    assert shown["spec"]["people"] == [person, "2"]


def test_a_persona_is_called_what_its_person_last_was_in_the_archive(bot_toml: Path) -> None:
    archive = Archive(settings.load(bot_toml).archive_url)
    archive.append([say(0, ME, "早", sender_name="阿满"), say(9, ME, "在", sender_name="小满")], "import")
    archive.close()
    for words in (["me"], ["you", "--display-name", "你"]):
        assert twin("persona", "new", *words, "--people", f"7,{ME}", config=bot_toml).returncode == 0
    listed = json.loads(twin("persona", "list", "--json", config=bot_toml).stdout)
    assert [listed[name]["display_name"] for name in ("me", "you")] == ["小满", "你"]


def test_a_persona_of_somebody_who_says_nothing_is_warned_of(bot_toml: Path) -> None:
    unknown = twin("persona", "new", "early", "--people", "999", config=bot_toml)
    assert (unknown.returncode, unknown.stderr) == (0, ""), "history may come later"
    archive = Archive(settings.load(bot_toml).archive_url)
    archive.append([say(n, 7, "早", sender_name="七") for n in range(3)], "import")
    archive.append([say(9, ME, "在", sender_name="小满")], "import")
    archive.close()
    done = twin("persona", "new", "late", "--people", f"999,{ME},998", config=bot_toml)
    assert done.returncode == 0
    assert done.stderr == (
        f"--people 999,998: nobody of that id speaks in the archive yet; these do: 7 七 (3), {ME} 小满 (1)\n"
    )
    assert twin("persona", "new", "me", "--people", str(ME), config=bot_toml).stderr == ""


def test_one_broken_persona_hides_no_other(bot_toml: Path) -> None:
    assert twin("persona", "new", "me", "--people", "1", config=bot_toml).returncode == 0
    assert "me: me, no version yet" in twin("persona", "list", config=bot_toml).stdout
    broken = bot_toml.parent / "data" / "personas" / "me" / "persona.toml"
    broken.write_text("x = [", "utf-8")
    done = twin("persona", "list", config=bot_toml)
    assert done.returncode == 0
    assert "xiaoman: 小满, version 2" in done.stdout
    assert "me: refused: " in done.stdout
    assert "persona.toml is not readable as TOML" in done.stdout


def test_what_would_be_learned_is_told_as_json(bot_toml: Path) -> None:
    told = json.loads(twin("corpus", "stats", "--json", config=bot_toml).stdout)
    assert (told["turns"], told["redaction_on_test_table"]["marked"]) == (0, 217)
    assert {told[name] for name in CLEANED} == {0}
    masks = json.loads(twin("corpus", "clean", "--json", "--show", "1", config=bot_toml).stdout)
    assert (masks["masked_repeat"], masks["examples"]) == (0, {})
    assert masks.keys() == {"turns", "examples", *CLEANED}


@pytest.mark.parametrize("option", [["--merged"], ["--lora", "a.gguf"]])
def test_a_lora_of_this_machine_is_no_servers(bot_toml: Path, option: list[str]) -> None:
    bot_toml.write_text(
        '[engine]\nbackend = "remote"\nremote_url = "http://127.0.0.1:9/v1"\nremote_format = "qwen3"\n', "utf-8"
    )
    done = twin("chat", *option, config=bot_toml)
    assert (done.returncode, done.stdout) == (1, "")
    assert f'twin: {option[0]} is of a model on this machine, and [engine] backend = "remote"' in done.stderr


def test_the_doctor_tells_what_is_missing_from_what_may_be(tinies: dict[str, tinymodel.Tiny], bot_toml: Path) -> None:
    """The exit status says whether a twin can run here; a port that is taken is the running daemon's."""
    with socket.create_server(("127.0.0.1", 0)) as running:
        port = running.getsockname()[1]
        lines = f'[paths]\ndata = "{bot_toml.parent}"\n[onebot]\nport = {port}\n[engine]\nbase = '
        bot_toml.write_text(f'{lines}"{tinies["gemma3"].gguf}"\n', "utf-8")
        well = twin("doctor", config=bot_toml)
        bot_toml.write_text(f'{lines}"{bot_toml.parent}/none.gguf"\n', "utf-8")
        ill = twin("doctor", config=bot_toml)
    assert (well.returncode, ill.returncode) == (0, 1)
    marks = {line[5:].partition(":")[0]: line[:4] for line in well.stdout.splitlines()}
    assert marks["port"] == "note"
    assert {mark for name, mark in marks.items() if name != "port"} <= {"ok  ", "note"}
    assert "FAIL base: " in ill.stdout
    assert "none.gguf" in ill.stdout
