"""`twin chat` as a process, with models that no bot.toml names, LoRAs, other prompts and settings."""

import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
import tinylora
import tinymodel

from bot.archive import Archive
from bot.checksum import sha256
from bot.message import Message, Origin
from bot.persona import Base
from bot.terminal import ACCOUNT, ME, SCENE
from export.lora import export

ROOT = Path(__file__).parents[2]
BEGAN = datetime(2026, 1, 1, 12, tzinfo=UTC)
"""When the chat began. This stands in its prompt, and no later time: nothing is a new conversation here."""
DRAWN = ("--seed", "2", "--temperature", "1", "--max-tokens", "16")
GREEDY = ("--seed", "1", "--temperature", "0", "--max-tokens", "6")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tinymodel.Tiny:
    return tinymodel.build(tmp_path_factory.mktemp("tiny") / "gemma3")


@pytest.fixture
def bot_toml(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "personas" / "me"
    folder.mkdir(parents=True)
    (folder / "persona.toml").write_text('display_name = "阿满"\n[reply]\nbias = 30.0\n', "utf-8")
    file = tmp_path / "bot.toml"
    file.write_text(
        '[engine]\nbase = "nowhere.gguf"\nn_ctx = 512\nn_threads = 1\n[chat]\npersona = "me"\n'
        "[conversation]\nconversation_gap_s = 1000000000\n", "utf-8",
    )  # fmt: skip
    return file


def chat(bot_toml: Path, options: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """One line said in a chat that is under way."""
    for left in bot_toml.parent.glob("data/terminal.db*"):
        left.unlink()
    archive = Archive(f"sqlite:///{bot_toml.parent / 'data' / 'terminal.db'}")
    archive.append(
        [
            Message("1", SCENE, ME, "你", BEGAN, "在吗", Origin.HUMAN),
            Message("2", SCENE, ACCOUNT, "阿满", BEGAN, "在", Origin.TWIN),
        ]
    )
    archive.close()
    return subprocess.run(
        [sys.executable, "-m", "bot", "chat", *options, "--config", str(bot_toml)], cwd=ROOT,
        input="今天吃什么？\n/quit\n", capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def answers(bot_toml: Path, *options: str) -> list[str]:
    """What 阿满 answers."""
    done = chat(bot_toml, [*DRAWN, *options])
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines()[1:] if line.startswith("阿满 ")]


def test_a_gguf_a_lora_a_prompt_and_settings_are_those_of_the_command_line(
    bot_toml: Path, tiny: tinymodel.Tiny, tmp_path: Path
) -> None:
    lora, gguf = str(tinylora.write(tmp_path / "mine.gguf", tiny.gguf, seed=1)), ("--gguf", str(tiny.gguf))
    bare = answers(bot_toml, *gguf)
    assert bare
    assert answers(bot_toml, *gguf, "--merged") == bare
    for changed in (
        ("--lora", lora), ("--system-prompt", "你是一只鸟，只说鸟语。"), ("--max-tokens", "2"),
        ("--temperature", "2"), ("--top-p", "0.000001"),
    ):  # fmt: skip
        assert answers(bot_toml, *gguf, *changed) != bare, changed


def test_a_checkpoint_and_its_peft_lora_say_what_their_ggufs_say(
    bot_toml: Path, tiny: tinymodel.Tiny, tmp_path: Path
) -> None:
    peft, base = tinymodel.random_lora(tiny, tmp_path / "peft", strength=0.3), sha256(tiny.gguf)
    lora = export(peft, tiny.hf, Base(file="", sha256=base, architecture="gemma3"), tmp_path / "lora.gguf", "f32").path
    checkpoint, gguf = ("--model", str(tiny.hf)), ("--gguf", str(tiny.gguf))
    there = answers(bot_toml, *GREEDY, *checkpoint, "--lora", str(peft))
    assert there
    assert answers(bot_toml, *GREEDY, *gguf, "--lora", str(lora)) == there
    assert answers(bot_toml, *GREEDY, *checkpoint) != there


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--gguf", "missing.gguf"], "missing.gguf"),
        (["--gguf", "{gguf}", "--lora", "missing.gguf"], "is no file; give a LoRA GGUF"),
        (["--gguf", "{gguf}", "--lora", "{gguf}"], "does not load"),
        (["--gguf", "{gguf}", "--temperature", "9"], "is out of range"),
    ],
)
def test_what_cannot_be_used_is_told_without_a_traceback(
    bot_toml: Path, tiny: tinymodel.Tiny, options: list[str], told: str
) -> None:
    done = chat(bot_toml, [option.format(gguf=tiny.gguf) for option in options])
    assert told in (done.stdout + done.stderr).replace("\n", "")
    assert "Traceback" not in done.stdout + done.stderr
