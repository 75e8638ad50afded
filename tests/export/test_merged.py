"""Train → LoRA GGUF → llama.cpp, train → merge → quantize → llama.cpp, tiny; and the gate, broken on purpose."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import tinymodel
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Gemma3Config, SiglipVisionConfig

from bot.checksum import sha256
from bot.config import Training
from bot.errors import ExportError, TwinError
from bot.llama import BASE_KEY
from bot.persona import Base, Manifest
from bot.prompt import FORMATS, Piece, Tokenizer, encode
from bot.staging import SPARE_BYTES
from export import gguf as converter
from export import lora, merge, merged, parity, proof
from export.gguf import CORPUS_KEY, VERSION_KEY
from export.metadata import fields
from export.parity import Passage
from export.probes import PROBES
from export.quantize import quantized_bytes
from export.template import jinja
from export.tensors import checkpoint_tensors
from export.vocabulary import Vocabulary
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

    def __init__(self, folder: Path, architecture: str, tiny: tinymodel.Tiny | None = None) -> None:
        # K types take blocks of 256 weights: narrower rows would fall back to other types.
        self.tiny = tiny or tinymodel.build(folder, architecture, hidden=256)
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


def test_a_base_that_sees_pictures_too_is_trained_and_exported_as_its_text_model(tmp_path: Path) -> None:
    text = tinymodel.build(tmp_path / "text", "gemma3", hidden=256)
    both = shutil.copytree(text.hf, tmp_path / "both")
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    inner = AutoModelForCausalLM.from_pretrained(text.hf, dtype=torch.float32)
    config = Gemma3Config(text_config=inner.config, vision_config=vision, mm_tokens_per_image=4)
    seeing = AutoModelForCausalLM.from_config(config)
    seeing.get_decoder().load_state_dict(inner.get_decoder().state_dict())
    seeing.tie_weights()
    seeing.save_pretrained(both)

    run = Run(tmp_path / "run", "gemma3", tinymodel.Tiny(both, text.gguf))
    trained = load_file(run.trained.peft / "adapter_model.safetensors")
    assert len(trained) == 2 * 2 * 7
    assert all(".language_model.layers." in name for name in trained)
    out = tmp_path / "lora.gguf"
    assert proof.prove_lora(run.trained, text.gguf, run.base, out, "f16", run.held_out, force=False).parity.passed
    assert run.merge("F16", tmp_path / "merged").parity.passed
    assert merged.checkpoint(run.trained, tmp_path / "folder", run.held_out, lambda *_: None).parity.passed


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


def test_trained_and_merged_as_a_checkpoint_is_the_same_model(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    found = merged.checkpoint(run.trained, out, run.held_out, lambda *_: None)
    parity = found.parity
    assert (parity.passed, parity.kind, parity.merged) == (True, "F32", True)
    assert (parity.pieces_differing, parity.stops_differing, parity.templates_differing) == (0, 0, 0)
    assert parity.token_gap < 0.001
    assert parity.loss_served < 1.0
    assert (parity.n_decisions, parity.greedy, parity.greedy_equal) == (len(SAID),) * 3
    shown = json.loads((out / "parity.json").read_text("utf-8"))
    assert shown["parity"] == parity.model_dump(mode="json")
    assert [tuple(texts) for texts in shown["greedy"]] == list(found.texts)


def test_an_importance_matrix_lets_types_through_that_need_one(llama: Run, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="IQ3_XXS needs an importance matrix"):
        llama.merge("IQ3_XXS", tmp_path / "without")
    texts = [ids for ids, _ in llama.windows]
    found = merged.importance(llama.trained, llama.tiny.gguf, texts, lambda *_: None)
    assert len(found) == 14
    assert {v.shape for k, v in found.items() if "ffn_down" in k} == {(640,)}
    assert all(np.isfinite(v).all() and v.min() >= 0 and v.max() > 0 for v in found.values())
    assert llama.merge("IQ3_XXS", tmp_path / "with", imatrix=texts).parity.passed


@pytest.mark.parametrize("kind", ["BF16", "F32"])
def test_unquantized_types_are_written_as_asked(llama: Run, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "merged"
    parity = llama.merge(kind, out).parity
    assert (parity.passed, parity.kind, parity.token_gap_limit) == (True, kind, 0.02)
    stored = {t.name: t.tensor_type.name for t in gguf.GGUFReader(out / "model.gguf").tensors}
    assert stored["blk.0.attn_q.weight"] == kind


def test_of_a_bf16_base_no_change_is_rounded_away(llama: Run, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    base = shutil.copytree(llama.tiny.hf, tmp_path / "bf16")
    AutoModelForCausalLM.from_pretrained(llama.tiny.hf, dtype=torch.bfloat16).save_pretrained(base)
    young = tinymodel.random_lora(tinymodel.Tiny(base, llama.tiny.gguf), tmp_path / "young", strength=1e-5)
    out, sums = tmp_path / "whole.gguf", merge.sums(young, base)
    about = merged.about(llama.trained, llama.tiny.gguf, llama.base.sha256, "小满", "v1", {})
    converter.convert(base, out, "F32", about, llama.tiny.gguf, sums)
    (written,) = (t.data for t in gguf.GGUFReader(out).tensors if t.name == "blk.0.ffn_down.weight")
    stands = load_file(base / "model.safetensors")[name].float().numpy()
    halves = load_file(young / "adapter_model.safetensors")
    a, b = (halves[f"base_model.model.{name.removesuffix('.weight')}.lora_{half}.weight"].numpy() for half in "AB")
    np.testing.assert_allclose(written, stands + 16 / 32 * (b @ a), rtol=1e-6, atol=1e-9)


def test_what_a_bf16_checkpoint_would_round_away_is_told_with_the_way_to_keep_it(
    llama: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "TOKEN_GAP_MAX", 1e-4)  # a tiny model's loss hangs on few bits
    base = shutil.copytree(llama.tiny.hf, tmp_path / "bf16")
    AutoModelForCausalLM.from_pretrained(llama.tiny.hf, dtype=torch.bfloat16).save_pretrained(base)
    learned = replace(llama.trained, checkpoint=base)
    with pytest.raises(
        ExportError, match=r"single tokens differ .*; rounded to BF16 .* `twin export merge --type F32`"
    ):
        merged.checkpoint(learned, tmp_path / "rounded", llama.held_out, lambda *_: None)
    assert not (tmp_path / "rounded").exists()
    made = merged.checkpoint(learned, tmp_path / "exact", llama.held_out, lambda *_: None, float32=True)
    assert (made.parity.passed, made.parity.kind) == (True, "F32")
    assert made.parity.token_gap < 1e-4


def test_too_little_memory_for_the_proof_and_a_mixture_are_told_first(
    llama: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    about = merged.about(llama.trained, llama.tiny.gguf, llama.base.sha256, "小满", "v1", {})

    def step(name: str, *_: object) -> None:
        told.append(name)

    ways = {
        "gguf": lambda: merged.export(
            llama.trained, llama.tiny.gguf, about, "Q8_0", tmp_path / "out", llama.held_out, step
        ),
        "merge": lambda: merged.checkpoint(
            llama.trained, tmp_path / "out", llama.held_out, lambda s, *_: told.append(s)
        ),
        "lora": lambda: proof.prove_lora(
            llama.trained, llama.tiny.gguf, llama.base, tmp_path / "out", "f16", llama.held_out, force=False
        ),
    }  # fmt: skip
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1))
    monkeypatch.setattr("export.lora.export", lambda *_: told.append("lora"))
    for way in ways.values():
        with pytest.raises(ExportError, match="is held in float32"):
            way()
    monkeypatch.setattr(merged, "checkpoint_tensors", lambda _: {"model.layers.0.mlp.experts.gate_up_proj": None})
    with pytest.raises(ExportError, match="no importance matrix is made of a mixture"):
        llama.merge("Q4_0", tmp_path / "out", imatrix=[[1, 2]])
    assert told == []


def test_a_gguf_says_of_itself_what_it_is_and_no_more(llama: Run, tmp_path: Path) -> None:
    told = merged.about(llama.trained, llama.tiny.gguf, llama.base.sha256, "小满", "v1", {"turns": 6})
    assert (told.base, told.licence) == ("Hf", "")  # what the converter guessed, and nothing
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    converter.convert(llama.tiny.hf, first, "F16", replace(told, licence="gemma", name="Base"), llama.tiny.gguf)
    again = merged.about(llama.trained, first, llama.base.sha256, "小满", "v1", {})
    assert (again.base, again.licence) == ("Base", "gemma")
    converter.convert(llama.tiny.hf, second, "F16", again, first)
    said = {key: field.value for key, field in fields(second, "general.", "tokenizer.chat_template").items()}
    assert {k: v for k, v in said.items() if k in ("general.name", "general.license")} == {
        "general.name": "小满", "general.license": "gemma",
    }  # fmt: skip
    assert {k: v for k, v in said.items() if "base_model" in k} == {
        "general.base_model.count": 1, "general.base_model.0.name": "Base",
    }  # fmt: skip
    assert not {"general.basename", "general.finetune", "general.version"} & set(said)
    assert said["tokenizer.chat_template"] == jinja(FORMATS["chatml"], "")


def test_the_licence_is_the_bases_and_else_what_the_checkpoints_card_names(llama: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(llama.tiny.hf, tmp_path / "carded")
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: of-the-card\n---\n", "utf-8")
    told = merged.about(llama.trained, llama.tiny.gguf, llama.base.sha256, "小满", "v1", {})
    said = []
    for licence in ("", "gemma"):
        out = tmp_path / f"{licence}.gguf"
        converter.convert(folder, out, "F16", replace(told, licence=licence), llama.tiny.gguf)
        said.append({key: field.value for key, field in fields(out, "general.license").items()})
    assert said == [{"general.license": "other", "general.license.name": "of-the-card"}, {"general.license": "gemma"}]


def test_a_model_that_the_converter_does_not_know_is_told(llama: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(llama.tiny.hf, tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Odd"]}), "utf-8")
    about = merged.about(llama.trained, llama.tiny.gguf, llama.base.sha256, "小满", "v1", {})
    with pytest.raises(ExportError, match=r"checkpoint 'odd' cannot be written as GGUF \(.*Odd"):
        converter.convert(folder, tmp_path / "out.gguf", "F16", about, llama.tiny.gguf)


def test_room_for_all_that_is_made_on_the_way_is_asked_for_first(
    llama: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = checkpoint_tensors(llama.tiny.hf).values()
    both = quantized_bytes("F16", weights) + quantized_bytes("Q8_0", weights)  # they lie there at once
    needed = SPARE_BYTES + both
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(ExportError, match=r"^'asked' needs .* MB on the way"):
        llama.merge("Q8_0", tmp_path / "asked")
    assert list(tmp_path.iterdir()) == []


def test_with_a_manifest_the_folder_can_be_published(llama: Run, tmp_path: Path) -> None:
    manifest = Manifest(
        version="run", created="2026-11-25T00:00:00+00:00", base=llama.base, format="chatml",
        system_prompt="你是小满。", files={"lora.gguf": "0" * 64}, metrics={"loss": 1.0}, gate={"passed": True},
    )  # fmt: skip
    out = tmp_path / "merged"
    llama.merge("Q8_0", out, manifest=manifest)
    written = Manifest.model_validate_json((out / "manifest.json").read_text("utf-8"))
    assert (written.version, written.metrics) == ("run-q8_0", {"loss": 1.0})
    assert written.files == {"model.gguf": sha256(out / "model.gguf")}
    assert written.parity["merged"] is True
    assert written.gate == {"passed": True}


def test_a_verdict_is_not_inherited_by_what_quantizing_made_of_it(
    llama: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity.Parity, "as_judged", False)
    manifest = Manifest(
        version="run", created="2026-11-25T00:00:00+00:00", base=llama.base, format="chatml",
        system_prompt="你是小满。", files={"lora.gguf": "0" * 64}, gate={"passed": False, "reasons": ["leaks"]},
    )  # fmt: skip
    llama.merge("Q8_0", tmp_path / "merged", manifest=manifest)
    written = Manifest.model_validate_json((tmp_path / "merged" / "manifest.json").read_text("utf-8"))
    assert written.gate["passed"] is False
    assert written.gate["reasons"][0] == "leaks"
    assert written.gate["reasons"][1].startswith("as Q8_0 it differs by ")


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


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> tuple[proof.Trained, tinymodel.Tiny, Path]:
    """A tiny Qwen 3 with the added tokens of the real one that are not special, and a LoRA on it."""
    folder = tmp_path_factory.mktemp("marked")
    markers = ("</s>", "<think>", "</think>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")
    tiny = tinymodel.build(folder, "qwen3", hidden=128, markers=markers)  # NF4 takes rows of whole blocks
    peft, tokenizer = tinymodel.random_lora(tiny, folder / "peft"), HFTokenizer(tiny.hf)
    base = Base(file=tiny.gguf.name, sha256=sha256(tiny.gguf), architecture="qwen3")
    file = lora.export(peft, tiny.hf, base, folder / "lora.gguf").path
    return proof.Trained(tiny.hf, peft, tokenizer.format, tokenizer), tiny, file


ASKED = proof.HeldOut([Passage(tuple(range(300, 320)), (10, 15))], [Piece("再见</s><|fim_pad|>")], [], 64, 1)


def test_ends_that_llama_cpp_knows_by_their_spelling_alone_end_no_word(
    marked: tuple[proof.Trained, tinymodel.Tiny, Path],
) -> None:
    trained, tiny, file = marked
    assert proof.prove(trained, tiny.gguf, file, ASKED).parity.faults == []


def test_a_word_at_which_llama_cpp_ends_is_caught(
    marked: tuple[proof.Trained, tinymodel.Tiny, Path], tmp_path: Path
) -> None:
    trained, tiny, file = marked
    changed = Path(shutil.copyfile(tiny.gguf, tmp_path / "model.gguf"))
    gguf.GGUFReader(changed, "r+").fields["tokenizer.ggml.eos_token_id"].parts[-1][0] = 310
    assert trained.tokenizer.tokens("</s>", True) != [310]
    found = proof.prove(trained, changed, file, ASKED).parity
    assert found.faults == ["1 tokens end an answer on one side alone"]


def test_what_nf4_adds_is_measured_beside(marked: tuple[proof.Trained, tinymodel.Tiny, Path]) -> None:
    trained, tiny, file = marked
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    found = proof.prove(replace(trained, nf4=how), tiny.gguf, file, ASKED).parity
    assert found.passed
    assert found.loss_nf4 is not None
    assert 0.001 < abs(found.loss_nf4 - found.loss_trained) < 1.0


def test_what_people_type_is_read_in_a_folder_as_it_was_trained(
    marked: tuple[proof.Trained, tinymodel.Tiny, Path],
) -> None:
    trained, tiny, _ = marked
    said = [Piece(text) for text in ("再见</s>", "<think>嗯</think>", "<|fim_pad|>。")]
    served = Vocabulary(tiny.hf)
    assert parity.differing_pieces(said, trained.tokenizer, served) == (len(PROBES) + len(said), 0)
    assert served.tokens("</s>", True) == trained.tokenizer.tokens("</s>", True) != served.tokens("</s>", False)


def test_a_lora_that_fails_its_proof_is_not_kept(
    marked: tuple[proof.Trained, tinymodel.Tiny, Path], tmp_path: Path
) -> None:
    trained, tiny, _ = marked
    other, out = replace(trained, format=FORMATS["chatml"]), tmp_path / "lora.gguf"
    base = Base(file=tiny.gguf.name, sha256=sha256(tiny.gguf), architecture="qwen3")
    with pytest.raises(
        ExportError, match=r"'lora\.gguf' is not what was trained, so it is not kept: the chat template"
    ):
        proof.prove_lora(other, tiny.gguf, base, out, "f16", ASKED, force=False)
    assert list(tmp_path.iterdir()) == []


# -- the same of a merged checkpoint --------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(llama: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A faithful merge."""
    out = tmp_path_factory.mktemp("whole") / "merged"
    return merge.merge(llama.trained.peft, llama.tiny.hf, llama.trained.format, out, lambda *_: None)


def _another_weight(folder: Path, _: Run, layer: int = 0) -> None:
    # As if permuted for llama.cpp: the shapes are right, and the mean loss hardly moves.
    name = f"model.layers.{layer}.self_attn.q_proj.weight"
    weights = load_file(folder / "model.safetensors")
    weights[name] = _permuted(weights[name]).contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _permuted(weight: Any) -> Any:
    rows, columns = weight.shape
    return weight.reshape(4, 2, rows // 8, columns).swapaxes(1, 2).reshape(rows, columns)


def _no_lora(folder: Path, run: Run) -> None:
    shutil.copyfile(run.tiny.hf / "model.safetensors", folder / "model.safetensors")


def _another_template(folder: Path, _: Run) -> None:
    (folder / "chat_template.jinja").write_text(jinja(FORMATS["qwen3"], ""), "utf-8")


def _no_template(folder: Path, _: Run) -> None:
    (folder / "chat_template.jinja").unlink()


def _template_without_end(folder: Path, _: Run) -> None:
    (folder / "chat_template.jinja").write_text(jinja(replace(FORMATS["chatml"], end=""), ""), "utf-8")


def _no_stop(folder: Path, _: Run) -> None:
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"eos_token_id": None}), "utf-8")


def _end_gone(folder: Path, _: Run) -> None:
    for file in folder.glob("*token*.json"):
        file.write_text(file.read_text("utf-8").replace("<|im_end|>", "<|im_gone|>"), "utf-8")


def _another_vocabulary(folder: Path, _: Run) -> None:
    file = folder / "tokenizer.json"
    told = json.loads(file.read_text("utf-8"))
    told["model"]["merges"] = told["model"]["merges"][:100]
    file.write_text(json.dumps(told), "utf-8")


DAMAGES = [
    (_another_weight, "single tokens differ"), (_no_lora, "held-out loss differs"),
    (_another_template, "chat template renders"), (_no_template, "chat template renders 2 probes"),
    (_template_without_end, "chat template renders"), (_no_stop, "1 tokens end an answer on one side alone"),
    (_end_gone, "end-of-turn is not one and the same token"), (_another_vocabulary, "texts have other token ids"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "named"), DAMAGES, ids=[d.__name__ for d, _ in DAMAGES])
def test_a_merged_checkpoint_that_is_not_what_was_trained_is_caught(
    llama: Run, whole: Path, tmp_path: Path, damage: Callable[[Path, Run], None], named: str
) -> None:
    folder = shutil.copytree(whole, tmp_path / "merged")
    damage(folder, llama)
    found = proof.prove_merged(llama.trained, folder, llama.held_out).parity
    assert not found.passed
    assert named in "; ".join(found.faults)
    with pytest.raises(ExportError, match="is not kept"):
        proof.require_passed(found, "it")


def test_greedy_answers_are_shown_of_both_sides(llama: Run, whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "merged")
    _no_lora(folder, llama)
    found = proof.prove_merged(llama.trained, folder, llama.held_out)
    assert found.parity.greedy_equal < found.parity.greedy == len(SAID)
    assert [ours for ours, _ in found.texts[:3]] == ["早呀", "吃面\n加个蛋", "在的"]
    assert all(ours != theirs for ours, theirs in found.texts[:3])


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_merged_checkpoint_that_is_not_whole_is_an_error(llama: Run, whole: Path, tmp_path: Path, file: str) -> None:
    folder = shutil.copytree(whole, tmp_path / "merged")
    (folder / file).write_bytes((folder / file).read_bytes()[:-200])
    with pytest.raises(ExportError, match="cannot be loaded for parity"):
        proof.prove_merged(llama.trained, folder, llama.held_out)


def test_a_checkpoint_that_fails_its_proof_leaves_what_lay_there(llama: Run, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    out.touch()
    with pytest.raises(ExportError, match="exists already and is kept; --force"):
        merged.checkpoint(llama.trained, out, llama.held_out, lambda *_: None)
    other = replace(llama.trained, tokenizer=_Shifted(llama.trained.tokenizer))
    for before in ([out], []):
        with pytest.raises(ExportError, match=r"not what was trained, so it is not kept: .* other token ids"):
            merged.checkpoint(other, out, llama.held_out, lambda *_: None, force=True)
        assert list(tmp_path.iterdir()) == before
        out.unlink(missing_ok=True)


class _Shifted:
    """A vocabulary that holds another token for one word."""

    def __init__(self, whole: Tokenizer) -> None:
        self._whole, self.bos = whole, whole.bos

    def tokens(self, text: str, control: bool) -> list[int]:
        return [7] if text == "你好" else self._whole.tokens(text, control)


# In the last layer the file before quantization alone tells: F16 differs by 0.47 nats a token, Q8_0's mean loss by
# 0.0007.
@pytest.mark.parametrize("layer", [0, 1])
def test_a_projection_permuted_on_the_way_is_refused_when_it_is_quantized_too(
    llama: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: int
) -> None:
    faithful, name = merge.sums, f"model.layers.{layer}.self_attn.q_proj.weight"

    def permuted(*args: Any) -> dict[str, Callable[[], Any]]:
        made = faithful(*args)
        return made | {name: lambda: _permuted(made[name]())}

    monkeypatch.setattr(merge, "sums", permuted)
    with pytest.raises(ExportError, match=r"is not kept: .*single tokens differ"):
        llama.merge("F16", tmp_path / "f16")
    with pytest.raises(ExportError, match="is not kept"):
        llama.merge("Q8_0", tmp_path / "q8_0")
    assert list(tmp_path.iterdir()) == []


# -- what is kept ---------------------------------------------------------------------------------


def test_what_quantizing_rounds_away_is_refused_with_the_type_that_keeps_it(
    llama: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "LEARNED_LOST_MAX", -100.0)  # nothing may be lost, and more than that
    with pytest.raises(ExportError, match=r"% of what was learned .*; Q2_K may round away .*: `--type F16`"):
        llama.merge("Q2_K", tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


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
