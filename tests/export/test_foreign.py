"""A LoRA of another trainer becomes a version that answers as it did there; of another base it is refused."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tinymodel
from killing import killed_at
from safetensors.torch import load_file
from typer.testing import CliRunner

from bot.__main__ import app
from bot.checksum import sha256
from bot.errors import ExportError
from bot.persona import Base, Personas
from bot.prompt import FORMATS
from export import foreign

# peft 0.21 asks transformers 5.23 for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tinymodel.Tiny:
    """A tiny Qwen3."""
    return tinymodel.build(tmp_path_factory.mktemp("tiny"), "qwen3")


@pytest.fixture(scope="module")
def peft(tiny: tinymodel.Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA on it."""
    return tinymodel.random_lora(tiny, tmp_path_factory.mktemp("peft"))


def named(peft: Path, base: str) -> None:
    file = peft / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "base_model_name_or_path": base}), "utf-8")


def packed(peft: Path, file: Path, folder: str = "lora_adapter/", **renamed: str) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for path in peft.iterdir():
            archive.write(path, f"{folder}{renamed.get(path.stem, path.name)}")
        archive.writestr("lora_adapter/checkpoint-5/adapter_config.json", "{}")
    return file


def served(tiny: tinymodel.Tiny) -> Base:
    return Base(file=tiny.gguf.name, sha256=sha256(tiny.gguf), architecture="qwen3")


def test_a_zip_from_a_notebook_becomes_the_current_version(tiny: tinymodel.Tiny, peft: Path, tmp_path: Path) -> None:
    named(peft, "unsloth/Qwen3-0.6B-bnb-4bit")
    source = foreign.taken(packed(peft, tmp_path / "lora_adapter.zip"), tmp_path / "peft")
    names = ["Qwen/Qwen3-0.6B"]
    found = foreign.result(
        source, tiny.hf, served(tiny), names, FORMATS["qwen3"], "你是小满。", "colab-1", tmp_path / "result"
    )
    root = tmp_path / "personas"
    (root / "me").mkdir(parents=True)
    (root / "me" / "persona.toml").write_text('display_name = "小满"\n', "utf-8")
    version = Personas(root, sha256(tiny.gguf)).publish("me", found)
    assert (version.name, version.manifest.kind, version.manifest.format) == ("colab-1", "lora", "qwen3")
    assert version.manifest.system_prompt == "你是小满。"
    theirs = load_file(peft / "adapter_model.safetensors")
    ours = load_file(version.folder / "peft" / "adapter_model.safetensors")
    assert all((ours[n] == t).all() for n, t in theirs.items())
    assert version.lora is not None
    from bot.scorer import Scorer

    scores = []
    for lora in (version.lora, None):
        scorer = Scorer(tiny.gguf, lora, 64, n_threads=1)
        scores.append(scorer.log_probs(list(range(300, 320)), [(at, at + 5) for at in range(1, 20)]))
        scorer.close()
    assert np.abs(scores[0] - scores[1]).max() > 0.2


def test_a_lora_of_another_base_is_refused(tiny: tinymodel.Tiny, peft: Path, tmp_path: Path) -> None:
    named(peft, "Qwen/Qwen3-4B")
    other = tinymodel.build(tmp_path / "wider", "qwen3", hidden=96)

    def result(target: tinymodel.Tiny, out: str, **more: bool) -> Path:
        return foreign.result(
            peft, target.hf, served(target), ["Qwen/Qwen3-0.6B"], FORMATS["qwen3"], "", "v1", tmp_path / out, **more
        )

    with pytest.raises(ExportError, match=r"trained on 'Qwen/Qwen3-4B', and the base here is 'Qwen/Qwen3-0\.6B'"):
        result(tiny, "a")
    assert result(tiny, "b", force=True).is_dir()
    with pytest.raises(ExportError, match="Was it trained on another base"):
        result(other, "c", force=True)
    named(peft, "/content/qwen")  # a folder of another machine says nothing
    assert result(tiny, "d").is_dir()


def test_what_is_no_lora_is_told(peft: Path, tmp_path: Path) -> None:
    pickled = packed(peft, tmp_path / "bin.zip", adapter_model="adapter_model.bin")
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK\x03\x04 no more")
    faults = [
        (pickled, r"a pickle \(adapter_model\.bin\); save them with safe_serialization"),
        (nothing, r"it has 0 files adapter_config\.json"), (broken, "no readable zip"),
        (tmp_path / "gone.zip", "cannot be read"),
    ]  # fmt: skip
    for number, (path, words) in enumerate(faults):
        with pytest.raises(ExportError, match=words):
            foreign.taken(path, tmp_path / f"out{number}")


IMPORTS = """
import sys
from bot.__main__ import app
app(sys.argv[1:])
"""


def test_what_a_killed_import_left_is_removed_by_the_next(tiny: tinymodel.Tiny, peft: Path, tmp_path: Path) -> None:
    named(peft, "")
    config, personas = tmp_path / "bot.toml", tmp_path / "data" / "personas"
    config.write_text(f"[engine]\nbase = '{tiny.gguf}'\n[training]\nbase = '{tiny.hf}'\n", "utf-8")
    (personas / "me").mkdir(parents=True)
    (personas / "me" / "persona.toml").write_text('display_name = "小满"\n', "utf-8")
    command = ["persona", "import-lora", "me", str(peft), "--config", str(config)]
    killed_at("fsync", IMPORTS, *command)
    assert list(personas.glob(".*"))
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert not list(personas.glob(".*"))
