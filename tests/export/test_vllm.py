import json
from pathlib import Path

import jinja2
import pytest
import tinymodel
from versions import SYSTEM, header, version

from bot.checksum import sha256
from bot.errors import ExportError
from bot.prompt import FORMATS
from export import source, vllm
from export.template import PROBES, chat, jinja, rendered

BOS = "tokenizer.ggml.add_bos_token"
ENDS = [1, 5]
"""<eos> and <end_of_turn>."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tinymodel.build(tmp_path_factory.mktemp("tiny"), "gemma3")


def read(folder: Path, tiny: tinymodel.Tiny, base: Path | None = None) -> source.Source:
    return source.read(folder, lambda: (base or tiny.gguf, sha256(tiny.gguf)))


def lora(tiny: tinymodel.Tiny, folder: Path, **change) -> Path:
    version(tiny, folder, architecture="gemma3", **change)
    (folder / "peft").mkdir()
    (folder / "peft" / "adapter_config.json").write_text('{"r": 8}')
    return folder


def opened(out: Path, talk) -> str:
    template = jinja2.Environment().from_string((out / "chat_template.jinja").read_text("utf-8"))
    return template.render(messages=chat(talk), add_generation_prompt=True)


def test_vllm_gets_the_peft_files_as_they_are(tiny, tmp_path):
    folder = version(tiny, tmp_path / "v1", architecture="gemma3")
    found = read(folder, tiny)
    with pytest.raises(ExportError, match="has no peft/ folder"):
        vllm.export(found, "xiaoman", tmp_path / "out")
    (folder / "peft").mkdir()
    (folder / "peft" / "adapter_model.safetensors").touch()
    with pytest.raises(ExportError, match=r"adapter_config\.json is missing or damaged"):
        vllm.export(found, "xiaoman", tmp_path / "out")
    tinymodel.random_lora(tiny, folder / "peft", r=12)
    told = []
    out = vllm.export(found, "xiaoman", tmp_path / "out", None, told.append)
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"]
    names.append("generation_config.json")
    assert sorted(p.name for p in out.iterdir()) == names
    for name in names[1:3]:
        assert (out / name).read_bytes() == (folder / "peft" / name).read_bytes()
    for talk in PROBES:
        assert opened(out, talk) == "<bos>" + rendered(FORMATS["gemma"], talk)
    readme = (out / "README.md").read_text("utf-8")
    assert f"--max-lora-rank 16 --lora-modules xiaoman={out}" in readme
    assert SYSTEM in readme
    assert "\n".join(source.ASKING[1:]) in readme
    assert "**" not in readme
    assert told == []
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 12


def test_a_merged_version_is_no_lora_whatever_lies_beside_it(tiny, tmp_path):
    folder = version(tiny, tmp_path / "v1", merged=True)
    (folder / "peft").mkdir()
    (folder / "peft" / "adapter_config.json").write_text('{"r": 8}')
    with pytest.raises(ExportError, match="it is merged"):
        vllm.export(read(folder, tiny), "xiaoman", tmp_path / "out")


def test_what_nothing_proved_goes_out_with_a_word(tiny, tmp_path):
    told = []
    found = read(lora(tiny, tmp_path / "v1", parity={}, gate={"passed": False, "reasons": ["leaks\n# x"]}), tiny)
    out = vllm.export(found, "xiaoman", tmp_path / "out", None, told.append)
    assert told == [
        "The gate refused version v1 (leaks\n# x).", "Version v1 was never proven to be what was trained.",
    ]  # fmt: skip
    readme = (out / "README.md").read_text("utf-8")
    assert "**The gate refused version v1 (leaks # x).**" in readme
    assert "**Version v1 was never proven to be what was trained.**" in readme


@pytest.mark.parametrize(("add_bos", "front"), [(True, "<bos>"), (None, "<bos>"), (False, "")])
def test_vllms_template_opens_as_the_base_does_and_what_lies_there_is_kept(tiny, tmp_path, add_bos, front):
    folder, out = lora(tiny, tmp_path / "v1"), tmp_path / "out"
    added = {} if add_bos is None else {"add_bos_token": add_bos}
    found = read(folder, tiny, header(tiny.gguf, tmp_path / "base.gguf", without=(BOS,), **added))
    out.mkdir()
    with pytest.raises(ExportError, match="exists already and is kept"):
        vllm.export(found, "xiaoman", out)
    assert list(out.iterdir()) == []
    vllm.export(found, "xiaoman", out, force=True)
    assert opened(out, PROBES[0]) == front + rendered(FORMATS["gemma"], PROBES[0])
    assert json.loads((out / "generation_config.json").read_text("utf-8")) == {"eos_token_id": ENDS}
    assert f"--generation-config {out.resolve()}\n" in (out / "README.md").read_text("utf-8")


def test_a_vocabulary_of_bpe_opens_with_nothing_unless_it_says_so(tmp_path):
    bpe = tinymodel.build(tmp_path, "qwen2")
    folder = lora(bpe, tmp_path / "v1", format="chatml")
    silent = header(bpe.gguf, tmp_path / "base.gguf", without=(BOS,), bos_token_id=0)
    out = vllm.export(read(folder, bpe, silent), "xiaoman", tmp_path / "out")
    assert opened(out, PROBES[0]) == rendered(FORMATS["chatml"], PROBES[0])


def test_a_template_that_renders_otherwise_is_not_exported():
    gemma = jinja(FORMATS["gemma"], "<bos>")
    assert vllm._proven(gemma, FORMATS["gemma"], "<bos>") == gemma
    for fmt, bos in (("gemma", ""), ("chatml", "<bos>")):
        with pytest.raises(ExportError, match=f"renders {len(PROBES)} probes otherwise than format '{fmt}'"):
            vllm._proven(gemma, FORMATS[fmt], bos)


def test_such_a_template_never_gets_to_its_place(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm, "jinja", lambda _, bos: jinja(FORMATS["chatml"], bos))
    with pytest.raises(ExportError, match="probes otherwise than format 'gemma' was trained"):
        vllm.export(read(lora(tiny, tmp_path / "v1"), tiny), "xiaoman", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def put_own(folder: Path, **values) -> Path:
    folder.mkdir()
    (folder / "generation_config.json").write_text(json.dumps(values), "utf-8")
    return folder


OWN = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "max_new_tokens": 99, "do_sample": True}


@pytest.mark.parametrize(
    ("own", "noted", "kept", "said"),
    [
        (OWN | {"eos_token_id": [1, 7]}, True, OWN | {"eos_token_id": [1, 5, 7]},
         "in the one here: temperature 0.7, top_k 20, top_p 0.8."),
        ({"eos_token_id": 1}, True, {"eos_token_id": ENDS}, "sets nothing of sampling"),
        (None, True, {"temperature": 0.6, "top_k": 20, "eos_token_id": ENDS},
         "in the one here: temperature 0.6, top_k 20."),
        (None, False, {"eos_token_id": ENDS}, "was not at hand: what that sets of sampling"),
    ],
    ids=["checkpoint", "checkpoint without", "noted in the GGUF", "nowhere"],
)  # fmt: skip
def test_vllm_samples_as_the_base_is_meant_to_be(tiny, tmp_path, own, noted, kept, said):
    added = {"sampling_temp": 0.6, "sampling_top_k": 20} if noted else {}
    found = read(lora(tiny, tmp_path / "v1"), tiny, header(tiny.gguf, tmp_path / "base.gguf", **added))
    out = vllm.export(found, "xiaoman", tmp_path / "out", None if own is None else put_own(tmp_path / "hf", **own))
    assert json.loads((out / "generation_config.json").read_text("utf-8")) == kept
    assert said in (out / "README.md").read_text("utf-8")
