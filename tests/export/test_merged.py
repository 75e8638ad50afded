"""Train → LoRA GGUF → llama.cpp, train → merge → quantize → llama.cpp, tiny; and the gate, broken on purpose."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tinymodel
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from bot.checksum import sha256
from bot.config import Training
from bot.errors import ExportError, TwinError
from bot.llama import BASE_KEY
from bot.persona import Base, Manifest
from bot.prompt import FORMATS, Piece, encode
from export import gguf as converter
from export import lora, merge, merged, proof
from export.gguf import CORPUS_KEY, VERSION_KEY
from export.metadata import fields
from export.parity import Passage
from export.template import jinja
from training.hf import HFTokenizer
from training.targets import targets

# peft 0.21 asks transformers 5.23 for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TINY = {"gemma3": "gemma", "qwen3": "qwen3", "llama": "chatml"}
SAID = {
    "早": "早呀",
    "吃什么": "吃面\n加个蛋",
    "在吗": "在的",
    "去爬山吗": "好耶",
    "哈哈哈": "",
    "晚安": "晚安，明天见",
}


class Run:
    """A tiny model that learned a few answers by heart, and what an export of it is asked."""

    def __init__(self, folder: Path, architecture: str) -> None:
        # K types take blocks of 256 weights: narrower rows would fall back to other types.
        self.tiny = tinymodel.build(folder, architecture, hidden=256)
        self.architecture = architecture
        fmt = FORMATS[TINY[architecture]]
        tokenizer = HFTokenizer(self.tiny.hf)
        self.windows = [_window(heard, said, fmt, tokenizer) for heard, said in SAID.items()]
        self.trained = proof.Trained(self.tiny.hf, folder / "peft", fmt, tokenizer)
        _learn(self.tiny, self.windows, self.trained.peft)
        passages = [
            Passage(ids, tuple(range(start, len(ids))), (start,), tuple(range(1, start))) for ids, start in self.windows
        ]
        prompts = [ids[:start] for ids, start in self.windows]
        pieces = [Piece(text) for pair in SAID.items() for text in pair]
        self.held_out = proof.HeldOut(passages, pieces, prompts, 256, 1)

    @property
    def base(self) -> Base:
        return Base(file=self.tiny.gguf.name, sha256=sha256(self.tiny.gguf), architecture=self.architecture)

    def merge(self, kind: str, out: Path, **options: Any) -> proof.Proof:
        about = merged.about(
            self.trained, self.tiny.gguf, self.base.sha256, "小满", f"run-{kind.lower()}", {"turns": 6}
        )
        return merged.export(self.trained, self.tiny.gguf, about, kind, out, self.held_out, lambda *_: None, **options)


def _window(heard: str, said: str, fmt: Any, tokenizer: Any) -> tuple[tuple[int, ...], int]:
    """Ids of one exchange, and where its answer begins; the last token is the end of turn."""
    system, first = "你是小满。", fmt.first_user_open
    asked = [
        Piece(fmt.system_open, True), Piece(system), Piece(fmt.system_close, True),
        *([Piece(first, True)] if first else []), Piece(heard), Piece(fmt.user_close, True),
        Piece(fmt.assistant_open, True),
    ]  # fmt: skip
    start = len(encode(asked, tokenizer)[0])
    answer = [*([Piece(said)] if said else []), Piece(fmt.end, True)]
    return tuple(encode([*asked, *answer], tokenizer)[0]), start


def _learn(tiny: tinymodel.Tiny, windows: list[tuple[tuple[int, ...], int]], folder: Path) -> None:
    """Full-batch AdamW on the answers: a few seconds."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(tiny.hf, dtype=torch.float32)
    config = LoraConfig(
        r=16, lora_alpha=32, target_modules=list(targets(model, Training()).modules), task_type="CAUSAL_LM"
    )
    tuned = get_peft_model(model, config)
    length = max(len(ids) for ids, _ in windows)
    rows = torch.tensor([[*ids, *[0] * (length - len(ids))] for ids, _ in windows])
    labels = torch.full_like(rows, -100)
    for row, (ids, start) in enumerate(windows):
        labels[row, start : len(ids)] = rows[row, start : len(ids)]
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=4e-3)
    for _ in range(40):
        loss = tuned(input_ids=rows, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.0
    tuned.save_pretrained(str(folder))


@pytest.fixture(scope="module", params=TINY)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("llama"), "llama")


def test_trained_and_exported_as_lora_is_the_same_model(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "lora.gguf"
    found = proof.prove_lora(run.trained, run.tiny.gguf, run.base, out, "f16", run.held_out, force=False)
    parity = found.parity
    assert (parity.passed, parity.kind, parity.merged) == (True, "F16", False)
    assert abs(parity.loss_gap) < 0.005
    assert parity.loss_trained < 1.0
    assert (parity.greedy, parity.greedy_equal) == (len(SAID), len(SAID))
    assert found.texts[0][0] == found.texts[0][1]
    assert out.is_file()


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_K_M"])
def test_trained_merged_and_quantized_is_the_same_model(run: Run, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "merged"
    parity = run.merge(kind, out).parity
    assert (parity.passed, parity.kind, parity.merged) == (True, kind, True)
    assert (parity.pieces_differing, parity.stops_differing, parity.templates_differing) == (0, 0, 0)
    if kind == "F16":
        assert parity.token_gap < 0.01
    assert sorted(p.name for p in out.iterdir()) == ["model.gguf", "parity.json"]
    said = fields(out / "model.gguf", "general.", BASE_KEY, VERSION_KEY, CORPUS_KEY)
    assert said["general.name"].value == "小满"
    assert said[BASE_KEY].value == run.base.sha256
    assert said[VERSION_KEY].value == f"run-{kind.lower()}"
    assert said[f"{CORPUS_KEY}.turns"].value == len(SAID)
    assert json.loads((out / "parity.json").read_text("utf-8"))["parity"]["kind"] == kind


def test_an_importance_matrix_lets_types_through_that_need_one(llama: Run, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="IQ3_XXS needs an importance matrix"):
        llama.merge("IQ3_XXS", tmp_path / "without")
    texts = [ids for ids, _ in llama.windows]
    found = merged.importance(llama.trained, llama.tiny.gguf, texts, lambda *_: None)
    assert len(found) == 14
    assert {v.shape for k, v in found.items() if "ffn_down" in k} == {(640,)}
    assert all(np.isfinite(v).all() and v.min() >= 0 and v.max() > 0 for v in found.values())
    assert llama.merge("IQ3_XXS", tmp_path / "with", imatrix=texts).parity.passed


def test_with_a_manifest_the_folder_can_be_published(llama: Run, tmp_path: Path) -> None:
    manifest = Manifest(
        version="run", created="2026-11-25T00:00:00+00:00", base=llama.base, format="chatml",
        system_prompt="你是小满。", files={"lora.gguf": "0" * 64}, metrics={"loss": 1.0},
    )  # fmt: skip
    out = tmp_path / "merged"
    llama.merge("Q8_0", out, manifest=manifest)
    written = Manifest.model_validate_json((out / "manifest.json").read_text("utf-8"))
    assert (written.version, written.metrics) == ("run-q8_0", {"loss": 1.0})
    assert written.files == {"model.gguf": sha256(out / "model.gguf")}
    assert written.parity["merged"] is True


# -- the gate, broken on purpose ----------------------------------------------------------------


def refused(run: Run, lora_file: Path | None, model: Path, named: str) -> None:
    found = proof.prove(run.trained, model, lora_file, run.held_out).parity
    assert not found.passed
    assert named in "; ".join(found.faults)
    with pytest.raises(ExportError, match="is not kept"):
        proof.require_passed(found, "it")


def test_a_projection_that_is_not_permuted_is_caught(llama: Run, tmp_path: Path) -> None:
    # As if the base were of an architecture without permutation: q and k keep Hugging Face's order of rows.
    good = lora.export(llama.trained.peft, llama.tiny.hf, llama.base, tmp_path / "good.gguf").path
    bad = _rewritten(good, tmp_path / "bad.gguf")
    refused(llama, bad, llama.tiny.gguf, "single tokens differ")


def _unpermuted(b: Any) -> Any:
    rows, rank = b.shape
    return np.ascontiguousarray(b.reshape(4, rows // 8, 2, rank).swapaxes(1, 2).reshape(rows, rank))


def _rewritten(source: Path, out: Path) -> Path:
    """A LoRA GGUF with the rows of q in Hugging Face's order."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, "llama")
    for key, found in fields(source, "adapter.", "qqtwin.", "general.type").items():
        writer.add_key_value(key, found.value, found.kind, sub_type=found.items)
    for tensor in reader.tensors:
        values = np.array(tensor.data)
        writer.add_tensor(tensor.name, _unpermuted(values) if "attn_q.weight.lora_b" in tensor.name else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def test_a_template_other_than_the_trained_one_is_caught(llama: Run, tmp_path: Path) -> None:
    made = _with_template(llama, tmp_path, jinja(FORMATS["qwen3"], ""))
    refused(llama, None, made, "chat template renders")


def test_a_template_that_drops_the_end_of_a_turn_is_caught(llama: Run, tmp_path: Path) -> None:
    wrong = jinja(replace(FORMATS["chatml"], end=""), "")
    refused(llama, None, _with_template(llama, tmp_path, wrong), "chat template renders")


def _with_template(run: Run, tmp_path: Path, template: str) -> Path:
    whole = merge.merge(run.trained.peft, run.tiny.hf, run.trained.format, tmp_path / "hf", lambda *_: None)
    about = merged.about(run.trained, run.tiny.gguf, run.base.sha256, "小满", "v", {})
    converter.convert(whole, tmp_path / "m.gguf", "F16", replace(about, template=template), run.tiny.gguf)
    return tmp_path / "m.gguf"


def test_a_lora_trained_in_another_format_than_the_base_is_served_in_is_caught(llama: Run, tmp_path: Path) -> None:
    file = lora.export(llama.trained.peft, llama.tiny.hf, llama.base, tmp_path / "lora.gguf").path
    other = replace(llama.trained, format=FORMATS["qwen3"])
    found = proof.prove(other, llama.tiny.gguf, file, llama.held_out).parity
    assert any("chat template renders" in fault for fault in found.faults)


def test_an_end_of_turn_that_the_gguf_lost_is_caught(llama: Run, tmp_path: Path) -> None:
    # Another text for the token: no chat format has its end in such a vocabulary, and llama.cpp would never stop.
    lost = tmp_path / "lost"
    shutil.copytree(llama.tiny.hf, lost)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (lost / name).is_file():
            text = (lost / name).read_text("utf-8").replace("<|im_end|>", "<|im_gone|>")
            (lost / name).write_text(text, "utf-8")
    tinymodel.write_gguf(lost, tmp_path / "lost.gguf", False)
    with pytest.raises(TwinError, match="no known chat format"):
        proof.prove(llama.trained, tmp_path / "lost.gguf", None, llama.held_out)


def test_a_stop_token_that_llama_cpp_does_not_stop_at_is_caught(llama: Run, tmp_path: Path) -> None:
    changed = shutil.copytree(llama.tiny.hf, tmp_path / "hf")
    config = json.loads((changed / "generation_config.json").read_text("utf-8"))
    config["eos_token_id"] = [config["eos_token_id"], 7]
    (changed / "generation_config.json").write_text(json.dumps(config), "utf-8")
    file = lora.export(llama.trained.peft, llama.tiny.hf, llama.base, tmp_path / "lora.gguf").path
    found = proof.prove(replace(llama.trained, checkpoint=changed), llama.tiny.gguf, file, llama.held_out).parity
    assert found.faults == ["1 tokens end an answer on one side alone"]


def test_what_fails_its_proof_is_not_kept(llama: Run, tmp_path: Path) -> None:
    about = merged.about(llama.trained, llama.tiny.gguf, llama.base.sha256, "小满", "v", {})
    with pytest.raises(ExportError, match="not what was trained, so it is not kept: the chat template"):
        merged.export(
            llama.trained, llama.tiny.gguf, replace(about, template="{{ messages }}"), "F16", tmp_path / "merged",
            llama.held_out, lambda *_: None,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept_and_an_unknown_type_lists_the_known(llama: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ExportError, match="exists already and is kept; --force"):
        llama.merge("Q8_0", tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "x"
    with pytest.raises(ExportError, match=r"no quantization type 'Q9'; known are F32, .*Q4_K_M.*IQ1_S"):
        llama.merge("Q9", tmp_path / "other")
