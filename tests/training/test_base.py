"""A GGUF becomes a checkpoint once; ids are llama.cpp's; what cannot be trained is refused by name."""

import json
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import tinymodel
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import killed_at
from transformers import AutoModelForCausalLM

from bot import staging
from bot.checksum import sha256
from bot.config import Training
from bot.errors import TrainingError
from bot.llama import Model
from bot.prompt import clean
from training.base import checkpoint, fingerprint, load
from training.hf import HFTokenizer
from training.precision import Precision
from training.targets import targets

PLAIN = Precision("none", torch.bfloat16)
ARCHITECTURES = ("gemma3", "qwen3", "llama")
DEQUANTIZES = """
import sys
from pathlib import Path
from training.base import checkpoint
checkpoint(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.fixture(scope="session", params=ARCHITECTURES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tinymodel.Tiny:
    """One model of each architecture."""
    return tinymodel.build(tmp_path_factory.mktemp(request.param), request.param)


def test_a_gguf_is_dequantized_once_into_the_same_weights(tiny: tinymodel.Tiny, tmp_path: Path) -> None:
    told: list[str] = []
    folder = checkpoint(tiny.gguf, tmp_path / "models", told.append)
    assert folder.name == f"model-{sha256(tiny.gguf)[:12]}"
    assert told == [f"dequantizing base {tiny.gguf.name} into {folder.name}; a minute, and only once"]
    ours = load(folder, PLAIN).state_dict()
    truth = AutoModelForCausalLM.from_pretrained(tiny.hf, dtype=torch.bfloat16).state_dict()
    assert set(ours) == set(truth)
    for name in truth:
        torch.testing.assert_close(ours[name].float(), truth[name].float(), rtol=0.01, atol=1e-3)
    stamp = (folder / "config.json").stat().st_mtime_ns
    assert checkpoint(tiny.gguf, tmp_path / "models", told.append) == folder
    assert len(told) == 1
    assert (folder / "config.json").stat().st_mtime_ns == stamp
    assert [p.name for p in (tmp_path / "models").iterdir()] == [folder.name]


def test_a_checkpoint_of_the_same_name_and_shape_and_other_weights_is_another(
    tiny: tinymodel.Tiny, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny.hf, tmp_path / tiny.hf.name)
    (copy / "README.md").write_text("x")
    assert fingerprint(copy) == fingerprint(tiny.hf)
    weights = copy / "model.safetensors"
    held = bytearray(weights.read_bytes())
    held[-1] ^= 1
    weights.write_bytes(held)
    assert fingerprint(copy) != fingerprint(tiny.hf)


def test_ids_are_llama_cpps_in_every_format(tiny: tinymodel.Tiny) -> None:
    ours, theirs = HFTokenizer(tiny.hf), Model(tiny.gguf)
    assert (ours.bos, ours.format) == (theirs.bos, theirs.format)
    fmt = ours.format
    controls = [fmt.system_open, fmt.system_close, fmt.user_open, fmt.user_close, fmt.assistant_open, fmt.end]
    for text in controls:
        assert ours.tokens(text, control=True) == theirs.tokens(text, control=True)
        assert ours.tokens(text, control=False) == theirs.tokens(text, control=False)

    @settings(max_examples=200, deadline=None)
    @given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40))
    def same(text: str) -> None:
        assert ours.tokens(clean(text), control=False) == theirs.tokens(clean(text), control=False)

    same()
    theirs.close()


def test_a_typed_marker_stays_plain_text(tiny: tinymodel.Tiny) -> None:
    tokenizer = HFTokenizer(tiny.hf)
    (end,) = tokenizer.tokens(tokenizer.format.end, control=True)
    assert end not in tokenizer.tokens(f"哈{tokenizer.format.end}哈", control=False)


def test_lora_goes_on_every_linear_layer_but_the_output(tiny: tinymodel.Tiny) -> None:
    wanted = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    found = targets(load(tiny.hf, PLAIN), Training())
    assert sorted({name.rpartition(".")[2] for name in found.modules}) == wanted
    assert len(found.modules) == 14
    assert not found.parameters


def test_a_checkpoint_folder_is_taken_as_it_is(tiny: tinymodel.Tiny, tmp_path: Path) -> None:
    assert checkpoint(tiny.hf, tmp_path / "models") == tiny.hf


def test_bases_that_cannot_be_read_are_refused_by_name_and_leave_nothing(tiny: tinymodel.Tiny, tmp_path: Path) -> None:
    models = tmp_path / "models"
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny.gguf.read_bytes()[:5000])
    empty = tmp_path / "empty"
    empty.mkdir()
    faults = [(cut, "cut.gguf.*transformers"), (tmp_path / "no.gguf", "does not exist"), (empty, "config.json")]
    for base, words in faults:
        with pytest.raises(TrainingError, match=words):
            checkpoint(base, models)
    assert not models.exists() or not list(models.iterdir())


def test_room_for_a_checkpoint_is_asked_for_before_the_base_is_read(
    tiny: tinymodel.Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = checkpoint(tiny.gguf, tmp_path / "roomy") / "model.safetensors"
    told: list[str] = []
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=weights.stat().st_size))
    takes = (weights.stat().st_size + 128 * 2**20) / 1e6
    with pytest.raises(TrainingError, match=rf"'{tmp_path}/full': that takes {takes:.0f} MB, and . MB are free; make"):
        checkpoint(tiny.gguf, tmp_path / "full", told.append)
    assert told == []
    assert not (tmp_path / "full").exists()


def test_a_disk_that_fills_up_meanwhile_is_told_and_nothing_half_written_stays(
    tiny: tinymodel.Tiny, tmp_path: Path
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"cannot be unpacked into .*File too large.*; is there room\?"):
            checkpoint(tiny.gguf, tmp_path / "models")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "models").iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tiny = tinymodel.build(tmp_path_factory.mktemp("llama"), "llama")
    killed_at("fsync", DEQUANTIZES, tiny.gguf, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    name = f"model-{sha256(tiny.gguf)[:12]}"
    with staging.beside(tmp_path / name) as another:
        assert list(tmp_path.iterdir()) == [another.parent]
        another.mkdir()
        assert checkpoint(tiny.gguf, tmp_path).name == name
        assert another.is_dir()
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_base_without_known_markers_is_refused(tiny: tinymodel.Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "unmarked"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny.hf / "config.json").read_bytes())
    words = json.loads((tiny.hf / "tokenizer.json").read_text("utf-8"))
    for token in words["added_tokens"]:
        token["special"] = False
    (folder / "tokenizer.json").write_text(json.dumps(words), "utf-8")
    with pytest.raises(TrainingError, match="no known chat format"):
        HFTokenizer(folder)
