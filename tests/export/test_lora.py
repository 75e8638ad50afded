import json
import math
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import tinymodel
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bot.checksum import sha256
from bot.errors import EngineError, ExportError
from bot.llama import BASE_KEY, Model
from bot.persona import Base
from bot.scorer import Scorer
from export import deltas
from export.lora import _check_written, _halves, export, precision_of

# peft 0.21 asks transformers 5.23 for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ARCHITECTURES = ("gemma3", "qwen3", "llama")
IDS = torch.randint(300, 600, (48,), generator=torch.Generator().manual_seed(2)).tolist()
WANTED = [(i, t) for i in range(1, len(IDS)) for t in range(0, 600, 13)]


@pytest.fixture(scope="module")
def tinies(tmp_path_factory):
    return {a: tinymodel.build(tmp_path_factory.mktemp(a), a) for a in ARCHITECTURES}


@pytest.fixture(scope="module")
def loras(tinies, tmp_path_factory):
    return {a: tinymodel.random_lora(tinies[a], tmp_path_factory.mktemp("peft")) for a in ARCHITECTURES}


def base_of(tiny, architecture):
    return Base(file=tiny.gguf.name, sha256=sha256(tiny.gguf), architecture=architecture)


def in_transformers(tiny, peft):
    model = AutoModelForCausalLM.from_pretrained(tiny.hf, dtype=torch.float32)
    if peft is not None:
        model = PeftModel.from_pretrained(model, peft)
    with torch.inference_mode():
        rows = torch.log_softmax(model.eval()(torch.tensor([IDS])).logits[0].double(), -1)
    return np.array([rows[i - 1, t] for i, t in WANTED])


def in_llama(tiny, lora):
    scorer = Scorer(tiny.gguf, lora, 512, n_threads=1)
    try:
        return scorer.log_probs(IDS, WANTED)
    finally:
        scorer.close()


# Measured: F32 and F16 at most 0.0023, Q8_0 0.035 with the strongest LoRA; the LoRA's own effect is 0.4 to 2.2.
@pytest.mark.parametrize(("precision", "tolerance"), [("f32", 0.005), ("f16", 0.005), ("q8_0", 0.06)])
@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_llama_cpp_with_the_export_equals_transformers_with_the_lora(
    tinies, tmp_path, architecture, use_rslora, precision, tolerance
):
    tiny = tinies[architecture]
    peft = tinymodel.random_lora(tiny, tmp_path / "peft", use_rslora=use_rslora)
    out = tmp_path / "lora.gguf"

    done = export(peft, tiny.hf, base_of(tiny, architecture), out, precision)

    reference, bare = in_transformers(tiny, peft), in_transformers(tiny, None)
    assert np.abs(in_llama(tiny, out) - reference).max() < tolerance
    assert np.abs(reference - bare).max() > 0.3
    assert (done.rank, done.pairs) == (32, 14)
    assert done.alpha == pytest.approx(16 * math.sqrt(32) if use_rslora else 16)


@pytest.mark.parametrize("lora_alpha", [4, 32])
def test_strength_is_alpha_over_rank(tinies, tmp_path, lora_alpha):
    tiny = tinies["qwen3"]
    peft = tinymodel.random_lora(tiny, tmp_path / "peft", r=8, lora_alpha=lora_alpha)
    export(peft, tiny.hf, base_of(tiny, "qwen3"), tmp_path / "lora.gguf")
    assert np.abs(in_llama(tiny, tmp_path / "lora.gguf") - in_transformers(tiny, peft)).max() < 0.005


def test_a_lora_on_some_modules_only_is_exported_with_these(tinies, tmp_path):
    tiny = tinies["llama"]
    peft = tinymodel.random_lora(tiny, tmp_path / "peft", target_modules=["q_proj", "k_proj"])
    done = export(peft, tiny.hf, base_of(tiny, "llama"), tmp_path / "lora.gguf")
    assert done.pairs == 4
    assert np.abs(in_llama(tiny, tmp_path / "lora.gguf") - in_transformers(tiny, peft)).max() < 0.005


def test_the_file_names_its_base_and_an_engine_on_another_refuses_it(tinies, loras, tmp_path):
    tiny = tinies["gemma3"]
    base = base_of(tiny, "gemma3")
    export(loras["gemma3"], tiny.hf, base, tmp_path / "lora.gguf")
    assert gguf.GGUFReader(tmp_path / "lora.gguf").fields[BASE_KEY].contents() == base.sha256
    model = Model(tiny.gguf)
    model.free_lora(model.load_lora(tmp_path / "lora.gguf", base.sha256))
    with pytest.raises(EngineError, match="trained on the base"):
        model.load_lora(tmp_path / "lora.gguf", "0" * 64)
    model.close()


def test_rows_that_q8_0_cannot_hold_stay_f16(tinies, tmp_path):
    tiny = tinies["qwen3"]
    peft = tinymodel.random_lora(tiny, tmp_path / "peft", r=4)
    export(peft, tiny.hf, base_of(tiny, "qwen3"), tmp_path / "lora.gguf", "q8_0")
    kinds = {t.name.rsplit(".", 1)[1]: t.tensor_type for t in gguf.GGUFReader(tmp_path / "lora.gguf").tensors}
    assert kinds == {"lora_a": gguf.GGMLQuantizationType.Q8_0, "lora_b": gguf.GGMLQuantizationType.F16}


def test_a_type_is_known_in_any_case_and_another_is_told_with_the_known_ones():
    assert [precision_of(name) for name in ("F16", "f32", "Q8_0")] == ["f16", "f32", "q8_0"]
    with pytest.raises(ExportError, match="there is no LoRA type 'q4_0'; known are f16, f32, q8_0"):
        precision_of("q4_0")


CONFIG_FAULTS = [
    ({"use_dora": True}, "DoRA"),
    ({"bias": "all"}, "biases"),
    ({"lora_bias": True}, "lora_bias"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"target_parameters": ["x"]}, "target_parameters"),
    ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
    ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
    ({"init_lora_weights": "pissa"}, "pissa"),
    ({"peft_type": "LOHA"}, "LOHA"),
    ({"alora_invocation_tokens": [7]}, "begins in the middle of a prompt (alora_invocation_tokens [7])"),
    ({"use_of_tomorrow": True}, "not known here (use_of_tomorrow True)"),
    ({"lora_alpha": 0}, "must be above 0"),
    ({"lora_alpha": None}, "no number"),
    ({"r": 7}, "was it trained on another base"),
]


@pytest.mark.parametrize(("change", "named"), CONFIG_FAULTS)
def test_what_llama_cpp_cannot_apply_is_refused_by_name(tinies, loras, tmp_path, change, named):
    peft = shutil.copytree(loras["gemma3"], tmp_path / "peft")
    config = json.loads((peft / "adapter_config.json").read_text("utf-8"))
    (peft / "adapter_config.json").write_text(json.dumps(config | change), "utf-8")
    refused(peft, tinies["gemma3"], tmp_path, named)


def embedding(tensors, first):
    tensors["base_model.model.model.embed_tokens.lora_A.weight"] = tensors.pop(first)


def router(tensors, first):
    for key in [k for k in tensors if "layers.0.mlp.gate_proj" in k]:
        tensors[key.replace("gate_proj", "gate")] = tensors.pop(key)


def unknown_module(tensors, first):
    for key in [k for k in tensors if "layers.0" in k]:
        tensors[key.replace("layers.0", "layers.9")] = tensors.pop(key)


def half_missing(tensors, first):
    del tensors[first]


def transposed(tensors, first):
    tensors[first] = tensors[first].T.contiguous()


def not_a_number(tensors, first):
    tensors[first][0, 0] = math.nan


def too_large(tensors, first):
    tensors[first][0, 0] = 1e6


def no_lora_tensor(tensors, first):
    tensors["base_model.model.model.norm.weight"] = torch.ones(64)


def nothing(tensors, first):
    tensors.clear()


TENSOR_FAULTS = [
    (embedding, "embed_tokens"), (unknown_module, "no linear layer"), (half_missing, "other half"),
    (transposed, "another base"), (not_a_number, "diverged"), (too_large, "diverged"),
    (router, "a mixture's router"), (no_lora_tensor, "no part of a LoRA"),
    (nothing, "adapts nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "named"), TENSOR_FAULTS, ids=[c.__name__ for c, _ in TENSOR_FAULTS])
def test_tensors_that_do_not_fit_the_checkpoint_are_refused_by_name(tinies, loras, tmp_path, change, named):
    peft = shutil.copytree(loras["gemma3"], tmp_path / "peft")
    tensors = load_file(peft / "adapter_model.safetensors")
    change(tensors, next(k for k in tensors if "layers.0" in k and "lora_A" in k))
    save_file(tensors, peft / "adapter_model.safetensors")
    refused(peft, tinies["gemma3"], tmp_path, named)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b'{"truncated": '])
def test_a_run_that_did_not_finish_is_refused(tinies, loras, tmp_path, file, content):
    peft = shutil.copytree(loras["gemma3"], tmp_path / "peft")
    (peft / file).unlink()
    if content is not None:
        (peft / file).write_bytes(content)
    refused(peft, tinies["gemma3"], tmp_path, file)


def test_an_unknown_architecture_is_refused(tinies, loras, tmp_path):
    with pytest.raises(ExportError, match="'mamba' has no LoRA export"):
        export(loras["gemma3"], tinies["gemma3"].hf, Base(file="x", sha256="0", architecture="mamba"), tmp_path / "l")


def test_a_checkpoint_of_another_shape_is_refused(tinies, loras, tmp_path):
    other = tinymodel.build(tmp_path / "other", "gemma3", hidden=96)
    with pytest.raises(ExportError, match="another base"):
        export(loras["gemma3"], other.hf, base_of(other, "gemma3"), tmp_path / "lora.gguf")


def test_a_place_that_cannot_be_written_leaves_nothing_behind(tinies, loras, tmp_path):
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "lora.gguf"
    with pytest.raises(ExportError, match="cannot be written"):
        export(loras["gemma3"], tinies["gemma3"].hf, base_of(tinies["gemma3"], "gemma3"), place)


def test_an_existing_file_is_kept_unless_told_otherwise(tinies, loras, tmp_path):
    tiny, out = tinies["gemma3"], tmp_path / "lora.gguf"
    out.write_bytes(b"mine")
    with pytest.raises(ExportError, match="exists already and is kept; --force"):
        export(loras["gemma3"], tiny.hf, base_of(tiny, "gemma3"), out, force=False)
    assert out.read_bytes() == b"mine"


def test_a_mixtures_experts_are_exported_as_llama_cpp_applies_them(tmp_path):
    tiny = tinymodel.build(tmp_path / "moe", "qwen3moe")
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    peft = tinymodel.random_lora(
        tiny, tmp_path / "peft", r=8, target_modules=["q_proj", "o_proj"], target_parameters=parameters
    )
    done = export(peft, tiny.hf, base_of(tiny, "qwen3moe"), tmp_path / "lora.gguf")
    assert done.pairs == 2 * (2 + 3)
    reference = in_transformers(tiny, peft)
    assert np.abs(reference - in_transformers(tiny, None)).max() > 0.3
    assert np.abs(in_llama(tiny, tmp_path / "lora.gguf") - reference).max() < 0.01


@pytest.mark.parametrize("architecture", ["gemma2", "qwen2"])
def test_gemma2_and_qwen2_too(tmp_path, architecture):
    tiny = tinymodel.build(tmp_path / architecture, architecture)
    peft = tinymodel.random_lora(tiny, tmp_path / "peft")
    export(peft, tiny.hf, base_of(tiny, architecture), tmp_path / "lora.gguf")
    assert np.abs(in_transformers(tiny, peft) - in_transformers(tiny, None)).max() > 0.3
    assert np.abs(in_llama(tiny, tmp_path / "lora.gguf") - in_transformers(tiny, peft)).max() < 0.01


def test_a_mixtures_router_is_refused_by_name(tmp_path):
    tiny = tinymodel.build(tmp_path / "moe", "qwen3moe")
    peft = tinymodel.random_lora(tiny, tmp_path / "peft", target_modules=["q_proj", "mlp.gate"])
    with pytest.raises(ExportError, match=r"not exported here: fused parameters .*gate\.weight"):
        export(peft, tiny.hf, base_of(tiny, "qwen3moe"), tmp_path / "lora.gguf")


def refused(peft: Path, tiny, tmp_path: Path, named: str) -> None:
    """The export fails with `named` in one line, and what lay there before still lies there, alone."""
    place = tmp_path / "out"
    place.mkdir()
    (place / "lora.gguf").write_bytes(b"the version before")
    with pytest.raises(ExportError) as caught:
        export(peft, tiny.hf, base_of(tiny, "gemma3"), place / "lora.gguf")
    assert named.lower() in str(caught.value).lower()
    assert [p.name for p in place.iterdir()] == ["lora.gguf"]
    assert (place / "lora.gguf").read_bytes() == b"the version before"


DAMAGED = [
    ({"alpha": None}, "lost its alpha or base hash"), ({"alpha": 16.1}, "lost its alpha or base hash"),
    ({"base": None}, "lost its alpha or base hash"), ({"base": "0" * 64}, "lost its alpha or base hash"),
    ({"left_out": 1}, "does not hold the tensors"), ({"transposed": True}, "does not hold the tensors"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "named"), DAMAGED)
def test_what_a_writer_lost_is_found_when_the_file_is_read_back(tinies, loras, tmp_path, damage, named):
    tiny, out = tinies["qwen3"], tmp_path / "lora.gguf"
    base = base_of(tiny, "qwen3")
    found = deltas.read(loras["qwen3"], tiny.hf)
    halves = list(_halves(found, "qwen3", "it"))
    rewritten(export(loras["qwen3"], tiny.hf, base, tmp_path / "whole.gguf").path, out)
    _check_written(out, halves, found.alpha, base, "it")
    rewritten(tmp_path / "whole.gguf", out, **damage)
    with pytest.raises(ExportError, match=named):
        _check_written(out, halves, found.alpha, base, "it")


def rewritten(source, out, *, alpha=16.0, base="", left_out=0, transposed=False):
    """A LoRA GGUF written anew, with something wrong."""
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(out, "qwen3")
    if alpha is not None:
        writer.add_float32("adapter.lora.alpha", alpha)
    if base is not None:
        writer.add_string(BASE_KEY, base or reader.fields[BASE_KEY].contents())
    for number, tensor in enumerate(reader.tensors[left_out:]):
        values = np.array(tensor.data)
        writer.add_tensor(tensor.name, values.T.copy() if transposed and number == 0 else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
