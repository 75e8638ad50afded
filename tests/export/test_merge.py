import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import tinymodel
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from bot.errors import ExportError
from bot.prompt import FORMATS
from export import stops
from export.merge import merge
from export.place import require_room, written
from export.template import PROBES, chat, rendered
from export.tensors import checkpoint_tensors, stored, stored_as

# peft 0.21 asks transformers 5.23 for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
IDS = torch.arange(300, 348).unsqueeze(0)
FUSED = {
    "r": 8, "target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
}  # fmt: skip


def nothing(*_: int) -> None:
    """Progress nobody watches."""


def logits(folder: Path, peft: Path | None = None) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if peft is not None:
        model = PeftModel.from_pretrained(model, peft)
    with torch.inference_mode():
        return model.eval()(IDS).logits.numpy()


@pytest.mark.parametrize(
    ("architecture", "fmt", "config"),
    [
        ("gemma3", "gemma", {}), ("llama", "chatml", {"use_rslora": True}), ("qwen3", "qwen3", {"lora_alpha": 4}),
        ("qwen3moe", "qwen3", FUSED),
    ],
)  # fmt: skip
def test_the_merged_checkpoint_says_what_checkpoint_and_lora_say(tmp_path, architecture, fmt, config):
    tiny = tinymodel.build(tmp_path / "base", architecture)
    peft = tinymodel.random_lora(tiny, tmp_path / "peft", **config)
    seen = []
    out = merge(peft, tiny.hf, FORMATS[fmt], tmp_path / "merged", lambda *done: seen.append(done))
    with_lora, bare = logits(tiny.hf, peft), logits(tiny.hf)
    assert np.abs(with_lora - bare).max() > 0.1
    assert np.abs(logits(out) - with_lora).max() < 1e-4
    assert seen[-1] == (len(seen), len(seen))


def test_shards_are_merged_one_by_one_and_types_stay(tmp_path):
    tiny = tinymodel.build(tmp_path / "base", "qwen3")
    peft = tinymodel.random_lora(tiny, tmp_path / "peft")
    sharded = tmp_path / "sharded"
    model = AutoModelForCausalLM.from_pretrained(tiny.hf, dtype=torch.bfloat16)
    model.save_pretrained(sharded, max_shard_size="200KB")
    for file in tiny.hf.glob("tokenizer*"):
        shutil.copy2(file, sharded)
    assert len(list(sharded.glob("*.safetensors"))) > 1

    out = merge(peft, sharded, FORMATS["qwen3"], tmp_path / "merged", nothing)

    reference = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(sharded, dtype=torch.float32), peft
    ).merge_and_unload().state_dict()  # fmt: skip
    assert stored_as(checkpoint_tensors(out)) == "BF16"
    count = 0
    for file in sorted(out.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            assert tensor.dtype == torch.bfloat16
            # One rounding of a float32 sum: half a unit in the last of eight bits.
            assert torch.allclose(tensor.float(), reference[name], rtol=2**-8, atol=1e-6), name
            count += 1
    assert count > 20


def test_in_float32_nothing_is_rounded_and_shards_and_config_say_so(tmp_path):
    tiny = tinymodel.build(tmp_path / "base", "qwen3")
    peft = tinymodel.random_lora(tiny, tmp_path / "peft")
    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(tiny.hf, dtype=torch.bfloat16).save_pretrained(sharded, max_shard_size="200KB")
    for file in tiny.hf.glob("tokenizer*"):
        shutil.copy2(file, sharded)

    out = merge(peft, sharded, FORMATS["qwen3"], tmp_path / "merged", nothing, float32=True)

    base = AutoModelForCausalLM.from_pretrained(sharded, dtype=torch.float32)
    expected = PeftModel.from_pretrained(base, peft).merge_and_unload().state_dict()
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert loaded.dtype == torch.float32
    assert len(list(out.glob("*.safetensors"))) == len(list(sharded.glob("*.safetensors"))) > 1
    eps = torch.finfo(torch.float32).eps  # processors add in another order; bfloat16 rounds 30,000 times as much
    for name, tensor in loaded.state_dict().items():
        assert (tensor - expected[name]).abs().max() <= 2 * eps * expected[name].abs().max(), name
    index = json.loads((out / "model.safetensors.index.json").read_text("utf-8"))
    assert index["metadata"]["total_size"] == 4 * sum(w.n_numbers for w in checkpoint_tensors(out).values())


def test_tokenizer_and_template_come_along(tmp_path):
    tiny = tinymodel.build(tmp_path / "base", "gemma3")
    peft = tinymodel.random_lora(tiny, tmp_path / "peft")
    settings = tiny.hf / "tokenizer_config.json"
    told = json.loads(settings.read_text("utf-8"))
    settings.write_text(json.dumps(told | {"chat_template": "of the base"}), "utf-8")
    out = merge(peft, tiny.hf, FORMATS["gemma"], tmp_path / "merged", nothing)
    assert json.loads((out / "tokenizer_config.json").read_text("utf-8")) == told
    tokenizer = AutoTokenizer.from_pretrained(out)
    for talk in PROBES:
        text = tokenizer.apply_chat_template(chat(talk), tokenize=False, add_generation_prompt=True)
        assert text == "<bos>" + rendered(FORMATS["gemma"], talk)


def test_who_serves_the_folder_stops_at_the_end_of_a_turn(tmp_path):
    tiny = tinymodel.build(tmp_path / "base", "gemma3")  # its files name <eos> alone, as a bare base's do
    peft = tinymodel.random_lora(tiny, tmp_path / "peft")
    tokenizer = AutoTokenizer.from_pretrained(tiny.hf)
    eos, end = tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])
    assert stops.named(tiny.hf) == {eos}
    out = merge(peft, tiny.hf, FORMATS["gemma"], tmp_path / "merged", nothing)
    assert GenerationConfig.from_pretrained(out).eos_token_id == [eos, end]
    assert stops.served(out) == {eos, end}
    before, after = (json.loads((f / "generation_config.json").read_text("utf-8")) for f in (tiny.hf, out))
    assert {**before, "eos_token_id": after["eos_token_id"]} == after

    (tiny.hf / "generation_config.json").unlink()
    out = merge(peft, tiny.hf, FORMATS["gemma"], tmp_path / "bare", nothing)
    assert GenerationConfig.from_pretrained(out).eos_token_id == [eos, end]
    with pytest.raises(ExportError, match=r"vocabulary has no '<\|im_end\|>', which ends a turn in format 'chatml'"):
        merge(peft, tiny.hf, FORMATS["chatml"], tmp_path / "wrong", nothing)
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    ("generation", "config", "named", "served"),
    [
        ([1, 2], 3, {1, 2, 3}, {1, 2}), (4, [5], {4, 5}, {4}), (None, 3, {3}, {3}), ({}, 3, {3}, set()),
        (None, {"text_config": {"eos_token_id": [6]}}, {6}, {6}), ("broken", 3, {3}, set()),
    ],
)  # fmt: skip
def test_stops_are_read_where_servers_read_them(tmp_path, generation, config, named, served):
    for name, value in (("generation_config.json", generation), ("config.json", config)):
        told = value if isinstance(value, dict) else {"eos_token_id": value}
        if value is not None:
            (tmp_path / name).write_text("{" if value == "broken" else json.dumps(told), "utf-8")
    assert (stops.named(tmp_path), stops.served(tmp_path)) == (named, served)


def test_what_lies_there_is_kept_unless_forced(tmp_path):
    tiny = tinymodel.build(tmp_path / "base", "llama")
    peft = tinymodel.random_lora(tiny, tmp_path / "peft")
    out = tmp_path / "merged"
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(ExportError, match="exists already and is kept; --force replaces it"):
        merge(peft, tiny.hf, FORMATS["chatml"], out, nothing)
    assert (out / "mine").exists()
    merge(peft, tiny.hf, FORMATS["chatml"], out, nothing, force=True)
    assert not (out / "mine").exists()


def test_too_little_room_is_told_before_anything_is_written(tmp_path):
    tiny = tinymodel.build(tmp_path / "base", "llama")
    peft = tinymodel.random_lora(tiny, tmp_path / "peft")
    with (tiny.hf / "huge.bin").open("wb") as f:
        f.truncate(2**43)  # eight terabytes of hole
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**26, limits[1]))  # else a merge that does not ask fills the disk
    try:
        with pytest.raises(ExportError, match=r"needs 8,796.* MB on the way and .* MB free; make room"):
            merge(peft, tiny.hf, FORMATS["chatml"], tmp_path / "out" / "merged", nothing)
        named = rf"^'merged' needs .* MB on the way and '{tmp_path}/out' has"
        with pytest.raises(ExportError, match=named), written(tmp_path / "out" / "merged", 0, force=False) as beside:
            merge(peft, tiny.hf, FORMATS["chatml"], beside, nothing)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "out").iterdir()) == []
    require_room(tmp_path, 0, "nothing")


def test_what_the_checkpoint_lacks_is_told_of_the_checkpoint(tmp_path):
    tiny = tinymodel.build(tmp_path / "base", "llama")
    peft = tinymodel.random_lora(tiny, tmp_path / "peft")
    for name, told in (
        ("tokenizer.json", r"tokenizer\.json of checkpoint 'lacking' is not readable"),
        ("config.json", r"^checkpoint 'lacking': config\.json is missing or not JSON; give a complete Hugging Face ch"),
    ):
        lacking = shutil.copytree(tiny.hf, tmp_path / "lacking", dirs_exist_ok=True)
        (lacking / name).unlink()
        with pytest.raises(ExportError, match=told):
            merge(peft, lacking, FORMATS["chatml"], tmp_path / "merged", nothing)
    assert not (tmp_path / "merged").exists()


def test_an_error_on_the_way_leaves_nothing_behind(tmp_path):
    def broken():
        with written(tmp_path / "out", 0, force=False) as beside:
            beside.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert list(tmp_path.iterdir()) == []


def test_a_float16_weight_that_the_lora_takes_beyond_its_range_is_refused(tmp_path):
    tiny = tinymodel.build(tmp_path / "base", "llama")
    peft = tinymodel.random_lora(tiny, tmp_path / "peft", r=4)
    model = AutoModelForCausalLM.from_pretrained(tiny.hf, dtype=torch.float16)
    model.save_pretrained(tmp_path / "half")
    for file in tiny.hf.glob("tokenizer*"):
        shutil.copy2(file, tmp_path / "half")
    tensors = {k: v.sign() * 2000 for k, v in load_file(peft / "adapter_model.safetensors").items()}
    save_file(tensors, peft / "adapter_model.safetensors")
    with pytest.raises(ExportError, match="beyond float16's range"):
        merge(peft, tmp_path / "half", FORMATS["chatml"], tmp_path / "merged", nothing)


@pytest.mark.parametrize("cut", [0, 4, 100, -10])
def test_a_damaged_file_is_told_by_name(tmp_path, cut):
    save_file({"x": torch.ones(40, 40)}, tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:cut])
    with pytest.raises(ExportError, match=r"a\.safetensors is missing or damaged"):
        stored(tmp_path / "a.safetensors")


def test_integers_are_refused_and_floats_come_back_as_they_are(tmp_path):
    save_file({"x": torch.ones(2, 2, dtype=torch.int8)}, tmp_path / "int.safetensors")
    with pytest.raises(ExportError, match="stored as I8"):
        stored(tmp_path / "int.safetensors")
    values = torch.randn(64, 33)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        save_file({"x": values.to(dtype)}, tmp_path / "f.safetensors")
        tensor = stored(tmp_path / "f.safetensors")["x"]
        assert np.array_equal(tensor.read(), values.to(dtype).float().numpy())
        with (tmp_path / "f.safetensors").open("r+b") as f:
            tensor.overwrite(f, (values * 3).numpy())
        assert torch.equal(load_file(tmp_path / "f.safetensors")["x"], (values * 3).to(dtype))
    assert json.loads(json.dumps(tensor.shape)) == [64, 33]
