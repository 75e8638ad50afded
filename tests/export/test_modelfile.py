import unicodedata
from pathlib import Path, PureWindowsPath

import pytest
import tinymodel
from daemon import persona, settings, toml
from typer.testing import CliRunner
from versions import SYSTEM, header, version

from bot.__main__ import app
from bot.checksum import sha256
from bot.errors import EngineError, ExportError
from bot.persona import Manifest, Sampling
from bot.prompt import FORMATS
from export import source
from export.modelfile import _block, _path, ollama
from export.template import go


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tinymodel.build(tmp_path_factory.mktemp("tiny"), "gemma2")


def read(folder: Path, tiny: tinymodel.Tiny) -> source.Source:
    return source.read(folder, lambda: (tiny.gguf, sha256(tiny.gguf)))


def parsed(modelfile: Path) -> dict[str, list[str]]:
    """Instructions of a Modelfile as Ollama's parser takes them: of a value it keeps printable characters, blanks, tabs
    and line breaks; it ends with its line, or where its quotes do; nothing is escaped."""
    found: dict[str, list[str]] = {}
    rest = modelfile.read_bytes().decode("utf-8")
    while rest := rest.lstrip(" \t\r\n"):
        if rest.startswith("#"):
            rest = rest.partition("\n")[2]
            continue
        word, _, rest = rest.partition(" ")
        kept, end = "", 0
        for end, c in enumerate(rest):  # noqa: B007
            value = unquoted(kept.strip())
            if c in "\r\n" and value is not None:
                break
            if c in " \t\r\n" or unicodedata.category(c)[0] in "LMNPS":
                kept += c
        assert value is not None
        found.setdefault(word, []).append(value)
        rest = rest[end:]
    return found


def unquoted(text: str) -> str | None:
    """A value without its quotes; None where they are not closed yet."""
    for quote in ('"""', '"'):
        if text.startswith(quote):
            closed = len(text) >= 2 * len(quote) and text.endswith(quote)
            return text[len(quote) : -len(quote)] if closed else None
    return text


def comments(modelfile: Path) -> str:
    return "\n".join(x for x in modelfile.read_text("utf-8").splitlines() if x.startswith("# "))


@pytest.mark.parametrize("architecture", ["gemma2", "llama", "qwen2"])
def test_a_lora_is_put_on_its_base_with_the_trained_prompt(tiny, tmp_path, architecture):
    folder, told = version(tiny, tmp_path / "v1", architecture=architecture), []
    file = ollama(read(folder, tiny), Sampling(temperature=0.6, max_tokens=100), folder / "Modelfile", told.append)
    said = parsed(file)
    assert said["FROM"] == [str(tiny.gguf)]
    assert said["ADAPTER"] == [str(folder / "lora.gguf")]
    assert said["TEMPLATE"] == [go(FORMATS["gemma"])]
    assert said["SYSTEM"] == [f"{SYSTEM}\n现在是QQ私聊。"]
    parameters = dict(p.split(" ", 1) for p in said["PARAMETER"])
    assert parameters == {
        "stop": '"<end_of_turn>"', "temperature": "0.6", "top_p": "0.9", "top_k": "40", "min_p": "0.05",
        "repeat_penalty": "1.05", "repeat_last_n": "64", "num_predict": "100", "num_ctx": "1124",
    }  # fmt: skip
    (remark,) = told
    assert "from 0.34.1 on `ollama create` refuses every LoRA" in remark
    assert "merge it with `twin export gguf data/runs/PERSONA/v1` where it was trained" in remark
    assert f"# {remark}" in comments(file)


@pytest.mark.parametrize("architecture", ["gemma3", "qwen3", "qwen3moe"])
def test_a_lora_that_ollama_would_not_apply_is_refused_and_the_way_out_is_named(tiny, tmp_path, architecture):
    folder = version(tiny, tmp_path / "v1", architecture=architecture)
    way = "merge it with `twin export gguf {}, and give `twin export modelfile` the folder that makes"
    for run in ("data/runs/PERSONA/v1` where it was trained", f"{folder}`"):
        with pytest.raises(ExportError, match=f"LoRA on {architecture}, to which Ollama applies none") as refused:
            ollama(read(folder, tiny), Sampling(), folder / "Modelfile")
        assert str(refused.value).endswith(way.format(run))
        (folder / "train.json").write_text("{}")  # a run, from now on
    assert not (folder / "Modelfile").exists()


def test_an_imported_lora_has_no_run_to_merge(tiny, tmp_path):
    folder = version(tiny, tmp_path / "v1", architecture="gemma3", settings={"imported": True})
    with pytest.raises(ExportError, match="serve it with llama-server: it was imported"):
        ollama(read(folder, tiny), Sampling(), folder / "Modelfile")


def test_a_merged_model_stands_alone_whatever_its_architecture(tiny, tmp_path):
    folder = version(tiny, tmp_path / "with blank", merged=True, architecture="gemma3")
    told = []
    said = parsed(ollama(read(folder, tiny), Sampling(), folder / "Modelfile", told.append))
    assert said["FROM"] == [str(folder / "model.gguf")]
    assert "ADAPTER" not in said
    assert told == []


def test_what_ollama_has_no_place_for_is_said_where_it_is_set(tiny, tmp_path):
    folder = version(tiny, tmp_path / "v1")
    found = read(folder, tiny)
    assert "Ollama has no place" not in comments(ollama(found, Sampling(), folder / "Modelfile"))
    file = ollama(found, Sampling(dry_multiplier=0.8), folder / "Modelfile", force=True)
    assert "# Ollama has no place for persona.toml's dry_multiplier: " in comments(file)


def test_what_ollama_would_drop_of_the_prompt_is_named(tiny, tmp_path):
    prompt = "\ufeff你是小满。\u3000\u3000短句，\u00a0爱用👨\u200d👩\u200d👧。\r\n\t末行❤\ufe0f"
    folder, told = version(tiny, tmp_path / "v1", merged=True, system_prompt=prompt), []
    file = ollama(read(folder, tiny), Sampling(), folder / "Modelfile", told.append)
    assert prompt.encode() in file.read_bytes()  # as it was trained, for an Ollama that keeps it
    assert parsed(file)["SYSTEM"] == ["你是小满。短句，爱用👨👩👧。\r\n\t末行❤\ufe0f\n现在是QQ私聊。"]
    (remark,) = told
    for name in (
        "U+00A0 NO-BREAK SPACE,", "U+200D ZERO WIDTH JOINER (2 times)", "U+3000 IDEOGRAPHIC SPACE (2 times)",
        "U+FEFF ZERO WIDTH NO-BREAK SPACE",
    ):  # fmt: skip
        assert name in remark
    assert remark.count("U+") == 4
    assert f"# {remark}" in comments(file)


@pytest.mark.parametrize("path", [r"C:\Users\小 满\new\model.gguf", r"C:\新\model.gguf"])
def test_a_path_is_named_as_it_is(tmp_path, path):
    file = tmp_path / "Modelfile"
    file.write_text(f"FROM {_path(PureWindowsPath(path))}\nSYSTEM x\n", "utf-8")
    assert parsed(file) == {"FROM": [path], "SYSTEM": ["x"]}


def test_a_path_that_ollama_would_shorten_is_refused(tiny, tmp_path):
    folder = version(tiny, tmp_path / "新建\u3000文件夹", merged=True)
    with pytest.raises(ExportError, match="Ollama drops what is not printable; rename the folder"):
        ollama(read(folder, tiny), Sampling(), tmp_path / "Modelfile")
    assert not (tmp_path / "Modelfile").exists()


def test_how_it_must_be_asked_stands_in_the_file(tiny, tmp_path):
    said = comments(ollama(read(version(tiny, tmp_path / "v1"), tiny), Sampling(), tmp_path / "Modelfile"))
    for line in source.ASKING:
        assert f"# {line}\n" in said
    assert "# - Ollama joins neighbouring messages of one role with a blank line" in said


def test_what_the_gate_refused_goes_out_with_its_reasons(tiny, tmp_path):
    gate, told = {"passed": False, "reasons": ["leaks\nSYSTEM 别的"]}, []
    found = read(version(tiny, tmp_path / "v1", merged=True, gate=gate), tiny)
    file = ollama(found, Sampling(), tmp_path / "Modelfile", told.append)
    assert "# The gate refused version v1 (leaks SYSTEM 别的).\n" in comments(file)
    assert told == ["The gate refused version v1 (leaks\nSYSTEM 别的)."]
    assert len(parsed(file)["SYSTEM"]) == 1


def test_what_lies_there_is_kept_unless_forced(tiny, tmp_path):
    found = read(version(tiny, tmp_path / "v1"), tiny)
    out = tmp_path / "Modelfile"
    out.write_text("mine")
    with pytest.raises(ExportError, match="exists already and is kept"):
        ollama(found, Sampling(), out)
    assert out.read_text() == "mine"
    ollama(found, Sampling(), out, force=True)
    assert out.read_text("utf-8").startswith("# Version v1")


def test_a_base_that_is_gone_is_told(tiny, tmp_path):
    found = source.read(version(tiny, tmp_path / "v1"), lambda: (tmp_path / "gone.gguf", sha256(tiny.gguf)))
    with pytest.raises(ExportError, match=r"gone\.gguf is missing"):
        ollama(found, Sampling(), tmp_path / "Modelfile")


def test_a_prompt_that_a_modelfile_cannot_hold_is_refused(tiny, tmp_path):
    found = read(version(tiny, tmp_path / "v1", system_prompt='a """ b'), tiny)
    with pytest.raises(ExportError, match="cannot hold"):
        ollama(found, Sampling(), tmp_path / "Modelfile")
    assert not (tmp_path / "Modelfile").exists()
    with pytest.raises(ExportError, match="cannot hold"):
        _block('he said "no"')


@pytest.mark.parametrize(
    ("licence", "said"),
    [
        ("apache-2.0", ["apache-2.0"]), ("", None),
        ("gemma", ["Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("merged", [False, True])
def test_the_licence_goes_along(tiny, tmp_path, licence, said, merged):
    folder, named = version(tiny, tmp_path / "v1", merged=merged), {"license": licence} if licence else {}
    base = header(tiny.gguf, tmp_path / "base.gguf", **({"license": "of another"} if merged else named))
    if merged:
        header(tiny.gguf, folder / "model.gguf", **named)
        manifest = Manifest.model_validate_json((folder / "manifest.json").read_text("utf-8"))
        proven = manifest.model_copy(update={"files": {"model.gguf": sha256(folder / "model.gguf")}})
        (folder / "manifest.json").write_text(proven.model_dump_json(), "utf-8")
    found = source.read(folder, lambda: (base, sha256(tiny.gguf)))
    assert parsed(ollama(found, Sampling(), tmp_path / "Modelfile")).get("LICENSE") == said


def test_of_a_merged_version_the_command_needs_no_base(tiny, tmp_path):
    config = tmp_path / "bot.toml"
    config.write_text(toml(settings(tmp_path / "gone.gguf")), "utf-8")
    kept = tmp_path / "data" / "personas" / "xiaoman"
    persona(kept, "小满", ["1"])
    refused = {"passed": False, "reasons": ["leaks"]}
    merged = version(tiny, kept / "versions" / "m1", merged=True, name="m1", gate=refused)
    ended = CliRunner().invoke(app, ["export", "modelfile", str(merged), "--config", str(config)])
    assert ended.exit_code == 0, ended.exception
    assert parsed(merged / "Modelfile")["FROM"] == [str(merged / "model.gguf")]
    assert ended.stderr == "The gate refused version m1 (leaks).\n"
    lora = version(tiny, kept / "versions" / "v1")
    ended = CliRunner().invoke(app, ["export", "modelfile", str(lora), "--config", str(config)])
    assert isinstance(ended.exception, EngineError)
    assert "there is no such file; give the path of a GGUF" in str(ended.exception)
