"""`twin chat` as a process, with models that no bot.toml names: GGUFs, checkpoints, LoRAs, other prompts and settings."""

import subprocess
import sys
from pathlib import Path

import pytest
import tinylora
import tinymodel

ROOT = Path(__file__).parents[2]
SETTLED = ("--seed", "1", "--temperature", "0", "--max-tokens", "6")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tinymodel.Tiny:
    return tinymodel.build(tmp_path_factory.mktemp("tiny") / "gemma3")


@pytest.fixture
def bot_toml(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "personas" / "me"
    folder.mkdir(parents=True)
    (folder / "persona.toml").write_text('display_name = "阿满"\n[reply]\nbias = 30.0\n', "utf-8")
    file = tmp_path / "bot.toml"
    file.write_text('[engine]\nbase = "nowhere.gguf"\nn_ctx = 512\nn_threads = 1\n[chat]\npersona = "me"\n', "utf-8")
    return file


def answers(bot_toml: Path, *options: str, said: str = "今天吃什么？") -> list[str]:
    """What 阿满 answers in a new chat."""
    for left in bot_toml.parent.glob("data/terminal.db*"):
        left.unlink()
    done = subprocess.run(
        [sys.executable, "-m", "bot", "chat", *SETTLED, *options, "--config", str(bot_toml)], cwd=ROOT,
        input=f"{said}\n/quit\n", capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("阿满 ")]


def test_a_gguf_a_lora_a_prompt_and_settings_are_those_of_the_command_line(
    bot_toml: Path, tiny: tinymodel.Tiny, tmp_path: Path
) -> None:
    lora, gguf = str(tinylora.write(tmp_path / "mine.gguf", tiny.gguf, seed=1)), ("--gguf", str(tiny.gguf))
    bare = answers(bot_toml, *gguf)
    assert bare == answers(bot_toml, *gguf)
    assert bare == answers(bot_toml, *gguf, "--merged")
    others = [
        answers(bot_toml, *gguf, "--lora", lora),
        answers(bot_toml, *gguf, "--system-prompt", "你是一只鸟，只说鸟语。"),
        answers(bot_toml, *gguf, "--temperature", "2", "--top-p", "1"),
        answers(bot_toml, *gguf, "--max-tokens", "1"),
    ]
    assert bare
    assert all(others)
    assert all(other != bare for other in others)
    assert answers(bot_toml, *gguf, "--temperature", "2", "--top-p", "0.000001") == bare, "the likeliest word alone"


def test_a_checkpoint_and_its_peft_lora_say_what_their_ggufs_say(
    bot_toml: Path, tiny: tinymodel.Tiny, tmp_path: Path
) -> None:
    from export import lora as exporting

    peft = tinymodel.random_lora(tiny, tmp_path / "peft", strength=0.3)
    gguf = tmp_path / "lora.gguf"
    raise NotImplementedError(exporting, peft, gguf)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--gguf", "missing.gguf"), "missing.gguf'"),
        (("--gguf", "{gguf}", "--lora", "missing.gguf"), "is no file; give a LoRA GGUF"),
        (("--gguf", "{gguf}", "--lora", "{gguf}"), "does not load"),
        (("--model", "missing"), "'missing' is no folder"),
        (("--gguf", "{gguf}", "--temperature", "9"), "is out of range"),
    ],
)
def test_what_cannot_be_used_is_one_line_with_the_remedy(
    bot_toml: Path, tiny: tinymodel.Tiny, options: tuple[str, ...], told: str
) -> None:
    words = [option.format(gguf=tiny.gguf) for option in options]
    done = subprocess.run(
        [sys.executable, "-m", "bot", "chat", *words, "--config", str(bot_toml)], cwd=ROOT,
        input="在吗\n/quit\n", capture_output=True, text=True, timeout=120, check=False, env=None,
    )  # fmt: skip
    assert told in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
