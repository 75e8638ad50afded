import json
import shlex
from pathlib import Path

import gguf
import jinja2
import pytest
import tinymodel

from bot.checksum import sha256
from bot.errors import ExportError
from bot.persona import Base, Manifest, Sampling
from bot.prompt import FORMATS
from export.modelfile import _block, ollama, source, vllm
from export.template import PROBES, chat, go, rendered

SYSTEM = '你是小满。\n说话：短句，"捏"。'


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tinymodel.build(tmp_path_factory.mktemp("tiny"), "gemma3")


def version(tiny, folder: Path, *, merged: bool = False, **change) -> Path:
    folder.mkdir()
    name = "model.gguf" if merged else "lora.gguf"
    (folder / name).write_bytes(tiny.gguf.read_bytes() if merged else b"GGUF")
    manifest = Manifest(**{
        "version": "v1", "created": "2026-11-25T00:00:00+00:00", "format": "gemma", "system_prompt": SYSTEM,
        "base": Base(file=tiny.gguf.name, sha256=sha256(tiny.gguf), architecture="gemma3"),
        "files": {name: sha256(folder / name)}, "settings": {"model_max_length": 1024}, **change,
    })  # fmt: skip
    (folder / "manifest.json").write_text(manifest.model_dump_json(), "utf-8")
    return folder


def parsed(modelfile: Path) -> dict[str, list[str]]:
    """Instructions of a Modelfile; texts stand between triple quotes."""
    found: dict[str, list[str]] = {}
    text = modelfile.read_text("utf-8")
    while text := text.lstrip():
        if text.startswith("#"):
            text = text.partition("\n")[2]
            continue
        word, _, rest = text.partition(" ")
        if rest.startswith('"""'):
            value, _, text = rest[3:].partition('"""')
        else:
            value, _, text = rest.partition("\n")
        found.setdefault(word, []).append(value)
    return found


def test_a_lora_is_put_on_its_base_with_the_trained_prompt(tiny, tmp_path):
    folder = version(tiny, tmp_path / "v1")
    found = source(folder, tiny.gguf, sha256(tiny.gguf))
    said = parsed(ollama(found, Sampling(temperature=0.6, max_tokens=100), folder / "Modelfile"))
    assert said["FROM"] == [str(tiny.gguf)]
    assert said["ADAPTER"] == [str(folder / "lora.gguf")]
    assert said["TEMPLATE"] == [go(FORMATS["gemma"])]
    assert said["SYSTEM"] == [f"{SYSTEM}\n现在是QQ私聊。"]
    parameters = dict(p.split(" ", 1) for p in said["PARAMETER"])
    assert parameters == {
        "stop": '"<end_of_turn>"', "temperature": "0.6", "top_p": "0.9", "top_k": "40", "min_p": "0.05",
        "repeat_penalty": "1.05", "repeat_last_n": "64", "num_predict": "100", "num_ctx": "1124",
    }  # fmt: skip


def test_what_failed_its_proof_or_is_another_file_goes_nowhere(tiny, tmp_path):
    broken = version(tiny, tmp_path / "v1", parity={"passed": False})
    with pytest.raises(ExportError, match=r"'v1' is not what was trained \(its proof failed\)"):
        source(broken, tiny.gguf, sha256(tiny.gguf))
    for merged, name in ((False, "lora.gguf"), (True, "model.gguf")):
        swapped = version(tiny, tmp_path / name, merged=merged)
        with (swapped / name).open("ab") as f:
            f.write(b"more")
        with pytest.raises(ExportError, match=f"{name} is not the file that was proven"):
            source(swapped, tiny.gguf, sha256(tiny.gguf))


def test_what_ollama_has_no_place_for_is_said_where_it_is_set(tiny, tmp_path):
    folder = version(tiny, tmp_path / "v1")
    found = source(folder, tiny.gguf, sha256(tiny.gguf))
    ollama(found, Sampling(), folder / "Modelfile")
    assert "Ollama has no place" not in (folder / "Modelfile").read_text("utf-8")
    ollama(found, Sampling(dry_multiplier=0.8), folder / "Modelfile", force=True)
    assert "# Ollama has no place for persona.toml's dry_multiplier: " in (folder / "Modelfile").read_text("utf-8")


def test_a_merged_model_stands_alone(tiny, tmp_path):
    folder = version(tiny, tmp_path / "with blank", merged=True)
    found = source(folder, tmp_path / "no base.gguf", "0" * 64)
    said = parsed(ollama(found, Sampling(), folder / "Modelfile"))
    assert shlex.split(said["FROM"][0]) == [str(folder / "model.gguf")]
    assert "ADAPTER" not in said


def test_what_lies_there_is_kept_unless_forced(tiny, tmp_path):
    found = source(version(tiny, tmp_path / "v1"), tiny.gguf, sha256(tiny.gguf))
    out = tmp_path / "Modelfile"
    out.write_text("mine")
    with pytest.raises(ExportError, match="exists already and is kept"):
        ollama(found, Sampling(), out)
    assert out.read_text() == "mine"
    ollama(found, Sampling(), out, force=True)
    assert out.read_text("utf-8").startswith("# Version v1")


def test_the_base_is_the_one_trained_on_or_it_is_refused(tiny, tmp_path):
    folder = version(tiny, tmp_path / "v1")
    with pytest.raises(ExportError, match=r"trained on the base model\.gguf .*set that base"):
        source(folder, tiny.gguf, "0" * 64)
    found = source(folder, tmp_path / "gone.gguf", sha256(tiny.gguf))
    with pytest.raises(ExportError, match=r"gone\.gguf is missing"):
        ollama(found, Sampling(), tmp_path / "Modelfile")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match=r"has no manifest\.json; give a version's folder"):
        source(tmp_path / "empty", tiny.gguf, "")
    (tmp_path / "empty" / "manifest.json").write_text("{}")
    with pytest.raises(ExportError, match="is not valid"):
        source(tmp_path / "empty", tiny.gguf, "")
    odd = version(tiny, tmp_path / "odd", format="alpaca")
    with pytest.raises(ExportError, match="format 'alpaca'"):
        source(odd, tiny.gguf, sha256(tiny.gguf))


def test_a_prompt_that_a_modelfile_cannot_hold_is_refused(tiny, tmp_path):
    found = source(version(tiny, tmp_path / "v1", system_prompt='a """ b'), tiny.gguf, sha256(tiny.gguf))
    with pytest.raises(ExportError, match="cannot hold"):
        ollama(found, Sampling(), tmp_path / "Modelfile")
    assert not (tmp_path / "Modelfile").exists()
    with pytest.raises(ExportError, match="cannot hold"):
        _block('he said "no"')


def test_vllm_gets_the_peft_files_as_they_are(tiny, tmp_path):
    folder = version(tiny, tmp_path / "v1")
    found = source(folder, tiny.gguf, sha256(tiny.gguf))
    with pytest.raises(ExportError, match="has no peft/ folder"):
        vllm(found, "xiaoman", tmp_path / "out")
    (folder / "peft").mkdir()
    (folder / "peft" / "adapter_model.safetensors").touch()
    with pytest.raises(ExportError, match=r"adapter_config\.json is missing or damaged"):
        vllm(found, "xiaoman", tmp_path / "out")
    tinymodel.random_lora(tiny, folder / "peft", r=12)
    out = vllm(found, "xiaoman", tmp_path / "out")
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"]
    names.append("generation_config.json")
    assert sorted(p.name for p in out.iterdir()) == names
    for name in names[1:3]:
        assert (out / name).read_bytes() == (folder / "peft" / name).read_bytes()
    template = jinja2.Environment().from_string((out / "chat_template.jinja").read_text("utf-8"))
    for talk in PROBES:
        text = template.render(messages=chat(talk), add_generation_prompt=True)
        assert text == "<bos>" + rendered(FORMATS["gemma"], talk)
    readme = (out / "README.md").read_text("utf-8")
    assert f"--max-lora-rank 16 --lora-modules xiaoman={out}" in readme
    assert SYSTEM in readme
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 12


def base_with(file: Path, licence: str = "", *, add_bos: bool | None = True, noted: bool = False) -> Path:
    """A GGUF's header: of a base, all that is read here."""
    writer = gguf.GGUFWriter(file, "gemma3")
    if noted:
        writer.add_sampling_temp(0.6)
        writer.add_sampling_top_k(20)
    if licence:
        writer.add_license(licence)
    writer.add_token_list(["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return file


@pytest.mark.parametrize(
    ("licence", "said"),
    [
        ("apache-2.0", ["apache-2.0"]), ("", None),
        ("gemma", ["Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("merged", [False, True])
def test_the_licence_goes_along(tiny, tmp_path, licence, said, merged):
    folder = version(tiny, tmp_path / "v1", merged=merged)
    base = base_with(tmp_path / "base.gguf", "of another" if merged else licence)
    if merged:
        base_with(folder / "model.gguf", licence)
        manifest = Manifest.model_validate_json((folder / "manifest.json").read_text("utf-8"))
        proven = manifest.model_copy(update={"files": {"model.gguf": sha256(folder / "model.gguf")}})
        (folder / "manifest.json").write_text(proven.model_dump_json(), "utf-8")
    modelfile = parsed(ollama(source(folder, base, sha256(tiny.gguf)), Sampling(), tmp_path / "Modelfile"))
    assert modelfile.get("LICENSE") == said


@pytest.mark.parametrize(("add_bos", "front"), [(True, "<bos>"), (None, "<bos>"), (False, "")])
def test_vllms_template_opens_as_the_base_does_and_what_lies_there_is_kept(tiny, tmp_path, add_bos, front):
    folder, out = version(tiny, tmp_path / "v1"), tmp_path / "out"
    (folder / "peft").mkdir()
    (folder / "peft" / "adapter_config.json").write_text('{"r": 8}')
    found = source(folder, base_with(tmp_path / "base.gguf", add_bos=add_bos), sha256(tiny.gguf))
    out.mkdir()
    with pytest.raises(ExportError, match="exists already and is kept"):
        vllm(found, "xiaoman", out)
    assert list(out.iterdir()) == []
    vllm(found, "xiaoman", out, force=True)
    template = jinja2.Environment().from_string((out / "chat_template.jinja").read_text("utf-8"))
    text = template.render(messages=chat(PROBES[0]), add_generation_prompt=True)
    assert text == front + rendered(FORMATS["gemma"], PROBES[0])
    assert json.loads((out / "generation_config.json").read_text("utf-8")) == {"eos_token_id": [1, 4]}
    assert f"--generation-config {out.resolve()}\n" in (out / "README.md").read_text("utf-8")


def put_own(folder: Path, **values) -> Path:
    folder.mkdir()
    (folder / "generation_config.json").write_text(json.dumps(values), "utf-8")
    return folder


OWN = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "max_new_tokens": 99, "do_sample": True}


@pytest.mark.parametrize(
    ("own", "noted", "kept", "said"),
    [
        (OWN | {"eos_token_id": [1, 7]}, True, OWN | {"eos_token_id": [1, 4, 7]},
         "in the one here: temperature 0.7, top_k 20, top_p 0.8."),
        ({"eos_token_id": 1}, True, {"eos_token_id": [1, 4]}, "sets nothing of sampling"),
        (None, True, {"temperature": 0.6, "top_k": 20, "eos_token_id": [1, 4]},
         "in the one here: temperature 0.6, top_k 20."),
        (None, False, {"eos_token_id": [1, 4]}, "was not at hand: what that sets of sampling"),
    ],
    ids=["checkpoint", "checkpoint without", "noted in the GGUF", "nowhere"],
)  # fmt: skip
def test_vllm_samples_as_the_base_is_meant_to_be(tiny, tmp_path, own, noted, kept, said):
    folder = version(tiny, tmp_path / "v1")
    (folder / "peft").mkdir()
    (folder / "peft" / "adapter_config.json").write_text('{"r": 8}')
    found = source(folder, base_with(tmp_path / "base.gguf", noted=noted), sha256(tiny.gguf))
    out = vllm(found, "xiaoman", tmp_path / "out", None if own is None else put_own(tmp_path / "hf", **own))
    assert json.loads((out / "generation_config.json").read_text("utf-8")) == kept
    assert said in (out / "README.md").read_text("utf-8")
