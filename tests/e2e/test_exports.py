"""`twin export …` on real runs of a tiny base: what is made, what is kept, and what can be published.

In this process: each command of its own would import torch again, three minutes in all.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import gguf
import lessons
import pytest
import tinymodel
from click.testing import Result
from daemon import Daemon, persona, settings
from loguru import logger
from napcat import ACCOUNT
from typer.testing import CliRunner

from bot import config
from bot.__main__ import app
from bot.bundle import SUFFIX
from bot.checksum import sha256
from bot.cli.options import whose
from bot.errors import TwinError
from bot.llama import Model
from bot.persona import Personas

# peft 0.21 asks transformers 5.23 for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
TRAINING = {
    "precision": "none", "r": 8, "lora_alpha": 16, "learning_rate": 1e-3, "num_train_epochs": 1, "max_steps": 2,
    "per_device_train_batch_size": 4, "model_max_length": 160, "threads": 1,
}  # fmt: skip


def installed(folder: Path, architecture: tinymodel.Architecture, rounds: int) -> Daemon:
    """An installation with 小满's history; its daemon is never started."""
    words = [*tinymodel.TEXTS, *lessons.words()]
    base = tinymodel.build(folder / "base", architecture, words, vocabulary=600).gguf
    found = Daemon(folder, settings(base, training=TRAINING))
    persona(found.data / "personas" / "xiaoman", lessons.NAME, [ACCOUNT])
    lessons.write(folder / "history.jsonl", rounds=rounds, held_out=True)
    done(found, "import", str(folder / "history.jsonl"))
    return found


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    return installed(tmp_path_factory.mktemp("exports"), "gemma3", rounds=12)


@pytest.fixture(scope="module", autouse=True)
def _as_it_was() -> Iterator[None]:
    """Commands that train set these for their own process."""
    names = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "TRANSFORMERS_OFFLINE", "TQDM_DISABLE")
    before = {name: os.environ.get(name) for name in names}
    yield
    logger.remove()
    for name, value in before.items():
        os.environ.pop(name, None)
        os.environ.update({} if value is None else {name: value})


def run(twin: Daemon, words: tuple[str, ...]) -> Result:
    return CliRunner().invoke(app, [*words, "--config", str(twin.config)])


def done(twin: Daemon, *words: str) -> Result:
    ended = run(twin, words)
    assert ended.exit_code == 0, (ended.output, ended.exception)
    return ended


def refused(twin: Daemon, *words: str, said: str) -> None:
    ended = run(twin, words)
    assert isinstance(ended.exception, TwinError), (ended.output, ended.exception)
    assert said in str(ended.exception)


@pytest.fixture(scope="module")
def trained(twin: Daemon) -> Path:
    """A run of `twin train` alone."""
    said = done(twin, "train").stdout.splitlines()[-1]
    return Path(said.removeprefix("run: "))


@pytest.fixture(scope="module")
def judged(twin: Daemon, trained: Path) -> Path:
    """A run that a night has judged; what it learned in two steps is published or refused, either will do."""
    outcome = json.loads(done(twin, "night", "--force", "--json").stdout.splitlines()[-1])
    assert outcome["outcome"] in ("published", "refused"), outcome["summary"]
    assert outcome["version"] != trained.name
    return trained.with_name(outcome["version"])


def test_a_run_becomes_a_lora_with_its_proof_and_what_lies_there_is_kept(twin: Daemon, trained: Path) -> None:
    proof = json.loads(done(twin, "export", "lora", str(trained)).stdout)
    assert (proof["passed"], proof["kind"], proof["merged"]) == (True, "F16", False)
    assert proof["n_decisions"] > 0
    assert proof["greedy"] == len(proof["greedy_texts"]) > 0
    assert (trained / "lora.gguf").is_file()

    out = trained / "lora-q8_0.gguf"
    out.write_bytes(b"mine")
    refused(twin, "export", "lora", str(trained), "--type", "Q8_0", said="exists already and is kept; --force")
    assert out.read_bytes() == b"mine"
    done(twin, "export", "lora", str(trained), "--type", "Q8_0", "--force")
    assert out.read_bytes()[:4] == b"GGUF"


def test_another_lora_at_the_default_place_is_kept_unless_forced(twin: Daemon, trained: Path) -> None:
    done(twin, "export", "lora", str(trained))
    out = trained / "lora.gguf"
    made = out.read_bytes()
    done(twin, "export", "lora", str(trained))  # its own, proven again
    out.write_bytes(b"another run's")
    refused(twin, "export", "lora", str(trained), said="exists already and is kept; --force replaces it")
    assert out.read_bytes() == b"another run's"
    done(twin, "export", "lora", str(trained), "--force")
    assert out.read_bytes() == made
    record = trained / "export.json"
    made_of = json.loads(record.read_text("utf-8"))
    record.write_text(json.dumps(made_of | {"made_of": "of the LoRA before"}), "utf-8")
    refused(twin, "export", "lora", str(trained), said="exists already and is kept; --force replaces it")
    assert out.read_bytes() == made
    done(twin, "export", "lora", str(trained), "--force")
    assert json.loads(record.read_text("utf-8")) == made_of


@pytest.mark.parametrize("what", ["lora", "gguf", "merge", "modelfile", "vllm"])
def test_what_lies_there_is_told_before_any_work(twin: Daemon, trained: Path, tmp_path: Path, what: str) -> None:
    out, nothing = tmp_path / "mine", tmp_path / "no run"
    out.write_bytes(b"mine")
    for folder in (trained, nothing):
        ended = run(twin, ("export", what, str(folder), "--out", str(out)))
        assert "exists already and is kept; --force replaces it" in str(ended.exception)
        assert ended.output == ""
    assert out.read_bytes() == b"mine"


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])  # gemma3 is every other test's
def test_a_run_on_any_base_goes_out_as_lora_and_as_one_gguf(
    tmp_path: Path, architecture: tinymodel.Architecture
) -> None:
    twin = installed(tmp_path, architecture, rounds=2)
    trained = done(twin, "train").stdout.splitlines()[-1].removeprefix("run: ")
    for words, kind in ((("lora",), "F16"), (("gguf", "--type", "Q8_0"), "Q8_0")):
        proof = json.loads(done(twin, "export", *words, trained).stdout)
        assert (proof["passed"], proof["kind"], proof["merged"]) == (True, kind, words[0] == "gguf")
        assert min(proof["n_tokens"], proof["n_decisions"], proof["greedy"]) > 0


def test_training_can_leave_a_merge_with_its_proof(twin: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWIN__TRAINING__MERGE_AND_SAVE", "true")
    run = Path(done(twin, "train").stdout.splitlines()[-1].removeprefix("run: "))
    kept = json.loads((run / "merged" / "parity.json").read_text("utf-8"))
    assert (kept["parity"]["passed"], kept["parity"]["kind"], kept["parity"]["merged"]) == (True, "BF16", True)
    assert (run / "merged" / "chat_template.jinja").is_file()


def test_training_alone_makes_nothing_that_can_be_published(twin: Daemon, trained: Path) -> None:
    target = trained / "merged-f16"
    ended = done(twin, "export", "gguf", str(trained), "--type", "F16")
    assert "no night has judged the run, so it cannot be published" in ended.stderr
    assert sorted(p.name for p in target.iterdir()) == ["model.gguf", "parity.json"]
    for folder in (trained, target):
        refused(twin, "persona", "publish", "xiaoman", str(folder), said="holds no readable manifest.json")
        refused(twin, "export", "modelfile", str(folder), said="has no manifest.json; give a version's folder")
    assert Personas(twin.data / "personas").versions("xiaoman") == []


def test_an_importance_matrix_of_held_out_chats_makes_another_file_and_the_proof_says_so(
    twin: Daemon, trained: Path, tmp_path: Path
) -> None:
    figures, tensors = [], []
    for flags in ((), ("--imatrix",)):
        out = tmp_path / f"made{len(flags)}"
        ended = done(twin, "export", "gguf", str(trained), "--type", "Q4_0", "--out", str(out), *flags)
        assert ("imatrix" in ended.stderr.splitlines()) is bool(flags)
        figures.append(json.loads(ended.stdout))
        assert json.loads((out / "parity.json").read_text("utf-8"))["parity"].items() <= figures[-1].items()
        tensors.append({t.name: t.data.tobytes() for t in gguf.GGUFReader(out / "model.gguf").tensors})
    assert [(f["passed"], f["kind"], f["imatrix"]) for f in figures] == [(True, "Q4_0", False), (True, "Q4_0", True)]
    assert figures[0]["loss_trained"] == figures[1]["loss_trained"]
    assert figures[0]["loss_served"] != figures[1]["loss_served"]
    changed = {name for name, values in tensors[0].items() if tensors[1][name] != values}
    assert len(changed) == 14
    assert all(name.startswith("blk.") for name in changed)


def test_a_lora_that_fails_its_proof_is_not_kept(twin: Daemon, trained: Path) -> None:
    done(twin, "export", "lora", str(trained))
    kept = json.loads((trained / "parity.json").read_text("utf-8"))
    kept["parity"] |= {"end_equal": False}
    (trained / "parity.json").write_text(json.dumps(kept), "utf-8")
    refused(twin, "export", "lora", str(trained), said="not what was trained, so it is not kept: end-of-turn is not")
    assert not (trained / "lora.gguf").exists()
    (trained / "parity.json").unlink()
    done(twin, "export", "lora", str(trained))


def test_a_run_is_exported_as_the_persona_it_is_of_whoever_speaks_now(twin: Daemon, trained: Path) -> None:
    persona(twin.data / "personas" / "other", "别人", ["4242"])
    refused(twin, "export", "gguf", str(trained), "--persona", "other", said="is of persona 'xiaoman', not of 'other'")
    before = twin.config.read_text("utf-8")
    twin.config.write_text(before.replace("[chat]", '[chat]\npersona = "other"', 1), "utf-8")
    try:
        assert whose(trained, None, config.load(twin.config)) == "xiaoman"
        assert whose(trained / "merged-q8_0", None, config.load(twin.config)) == "xiaoman"
        version = twin.data / "personas" / "other" / "versions" / "v1"
        assert whose(version, None, config.load(twin.config)) == "other"
        assert whose(twin.data, None, config.load(twin.config)) == "other"
    finally:
        twin.config.write_text(before, "utf-8")


def test_a_run_whose_checkpoint_has_other_weights_now_is_refused(twin: Daemon, trained: Path) -> None:
    """As a hub's newer files under the same name are: merged into them and proven against them, it would pass."""
    (weights,) = (twin.data / "models").glob("*/model.safetensors")
    before = weights.read_bytes()
    weights.write_bytes(before[:-2] + bytes([before[-2] ^ 64, before[-1] ^ 64]))
    try:
        refused(twin, "export", "merge", str(trained), said="was trained on other weights than ")
    finally:
        weights.write_bytes(before)


def test_a_run_that_did_not_finish_or_of_another_base_is_refused(twin: Daemon, trained: Path, tmp_path: Path) -> None:
    record = (trained / "train.json").rename(tmp_path / "train.json")
    refused(twin, "export", "merge", str(trained), said="did not finish (it has no train.json); `twin train` goes on")
    os.replace(record, trained / "train.json")
    config = twin.config.read_text("utf-8")
    other = tinymodel.build(tmp_path / "other", seed=1).gguf
    try:
        twin.config.write_text(config.replace(str(twin.folder / "base" / "model.gguf"), str(other)), "utf-8")
        refused(twin, "export", "gguf", str(trained), said="was trained on the base ")
        twin.config.write_text(config.replace("model.gguf", "gone.gguf"), "utf-8")
        refused(twin, "export", "gguf", str(trained), said="there is no such file; give the path of a GGUF")
    finally:
        twin.config.write_text(config, "utf-8")
    assert not (trained / "merged").exists()


def test_a_judged_run_is_published_merged_and_goes_out_in_every_shape(
    twin: Daemon, judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = judged / "merged-q8_0"
    done(twin, "export", "gguf", str(judged))
    done(twin, "persona", "publish", "xiaoman", str(merged), "--force")  # the gate may have refused it
    version = Personas(twin.data / "personas").load("xiaoman").version
    assert version is not None
    assert (version.name, version.manifest.kind) == (f"{judged.name}-q8_0", "merged")
    assert version.model is not None
    model = Model(version.model, 0)
    assert (model.metadata("general.name"), model.metadata("qqtwin.version")) == (lessons.NAME, version.name)
    model.close()

    done(twin, "export", "modelfile", str(version.folder))
    text = (version.folder / "Modelfile").read_text("utf-8")
    assert f"FROM {version.model}" in text
    assert "现在是QQ私聊。" in text
    refused(
        twin, "export", "modelfile", str(judged), said=f"merge it with `twin export gguf {judged}`"
    )  # gemma3's LoRA
    done(twin, "export", "modelfile", str(merged), "--out", str(tmp_path / "Modelfile"))
    assert f"FROM {merged / 'model.gguf'}\n" in (tmp_path / "Modelfile").read_text("utf-8")

    (tmp_path / "generation_config.json").write_text('{"top_k": 64}', "utf-8")
    monkeypatch.setenv("TWIN__TRAINING__BASE", str(tmp_path))
    done(twin, "export", "vllm", str(judged))
    monkeypatch.delenv("TWIN__TRAINING__BASE")
    assert json.loads((judged / "vllm" / "generation_config.json").read_text("utf-8"))["top_k"] == 64
    adapter = "adapter_model.safetensors"
    assert sha256(judged / "vllm" / adapter) == sha256(judged / "peft" / adapter)

    proof = json.loads(done(twin, "export", "merge", str(judged), "--out", str(tmp_path / "hf")).stdout)
    assert (proof["passed"], proof["merged"]) == (True, True)
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja", "parity.json"} <= {
        p.name for p in (tmp_path / "hf").iterdir()
    }

    bundle = tmp_path / f"x{SUFFIX}"
    done(twin, "persona", "pack", "xiaoman", "--out", str(bundle))
    done(twin, "persona", "unpack", str(bundle), "--name", "her-2")
    assert Personas(twin.data / "personas").load("her-2").version == version.__class__(
        twin.data / "personas" / "her-2" / "versions" / version.name, version.manifest
    )


def test_what_the_gate_refused_goes_out_with_a_word(twin: Daemon, judged: Path, tmp_path: Path) -> None:
    file = judged / "manifest.json"
    before = file.read_text("utf-8")
    known = json.loads(before) | {"gate": {"passed": False, "reasons": ["leaks"]}}
    file.write_text(json.dumps(known), "utf-8")
    words = f"The gate refused version {judged.name} (leaks).\n"
    try:
        for what in ("lora", "merge", "vllm"):
            assert words in done(twin, "export", what, str(judged), "--out", str(tmp_path / what)).stderr
        ended = done(twin, "export", "gguf", str(judged), "--type", "F16", "--out", str(tmp_path / "f16"))
        assert words in ended.stderr
        assert ended.stderr.endswith(f"{tmp_path / 'f16'} --force, for the gate refused it)\n")
    finally:
        file.write_text(before, "utf-8")
    ended = done(twin, "export", "modelfile", str(tmp_path / "f16"), "--persona", "xiaoman")
    assert "The gate refused version" in ended.stderr
    assert "# The gate refused version" in (tmp_path / "f16" / "Modelfile").read_text("utf-8")
