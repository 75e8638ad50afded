"""A version → an Ollama Modelfile, or a folder for vLLM: with the prompt it was trained with, to the byte.

Modelfile: https://docs.ollama.com/modelfile. vLLM takes PEFT's files as they are: https://docs.vllm.ai (LoRA adapters).
To be answered as in QQ a client must do the rest itself: open a conversation with `【周五 23:10】`, put one bubble a
line, in groups `昵称：` before each, and send a silence as an empty assistant message. Neither server was run here; the
templates were, the Go one in Go 1.27's text/template with Ollama's data.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bot.checksum import digest, sha256
from bot.errors import ExportError
from bot.message import Scene
from bot.persona import LORA_FILE, MANIFEST_FILE, MODEL_FILE, Manifest, Sampling
from bot.prompt import FORMATS, ChatFormat, scene_line
from export import place, stops
from export.metadata import fields
from export.template import go, jinja

_GEMMA = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
_NOT_OLLAMAS = ("logit_bias", "dry_multiplier")
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 512)
"""What vLLM's --max-lora-rank takes."""
_SAMPLING_KEY = "general.sampling."
_SAMPLING = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}  # fmt: skip
"""What llama.cpp's converter notes in a GGUF of a base's generation_config.json, as that calls it."""


@dataclass(frozen=True, slots=True)
class Source:
    """A folder with a manifest: a published version, a run that a night has judged, or its merged folder.

    Args:
        folder: where its files lie.
        manifest: what it is.
        base: the base GGUF.
    """

    folder: Path
    manifest: Manifest
    base: Path

    @property
    def format(self) -> ChatFormat:
        """The chat format it was trained with."""
        return FORMATS[self.manifest.format]

    @property
    def system(self) -> str:
        """The system prompt as a private chat has it."""
        return f"{self.manifest.system_prompt}\n{scene_line(Scene('private', '0'), '')}"


def source(folder: Path, base: Path, base_sha256: str) -> Source:
    """Read a folder.

    Raises:
        ExportError: it has no valid manifest, its proof failed or its files are others, or its LoRA is of another base
            than ours.
    """
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_text("utf-8"))
    except OSError as e:
        raise ExportError(
            f"{str(folder)!r} has no {MANIFEST_FILE}; give a version's folder, a run that a night has judged, or what "
            "`twin export gguf` made of one"
        ) from e
    except ValidationError as e:
        raise ExportError(f"{str(folder)!r}: {MANIFEST_FILE} is not valid ({str(e).splitlines()[0]})") from e
    if manifest.format not in FORMATS:
        raise ExportError(f"{manifest.version!r} was trained with the format {manifest.format!r}, which is not known")
    if MODEL_FILE not in manifest.files and manifest.base.sha256 != base_sha256:
        raise ExportError(
            f"{manifest.version!r} was trained on the base {manifest.base.file} ({manifest.base.sha256[:12]}…), and "
            f"[engine] base is {base.name!r} ({base_sha256[:12]}…); set that base"
        )
    if manifest.parity.get("passed") is False:
        raise ExportError(f"{manifest.version!r} is not what was trained (its proof failed); export it again")
    for name, wanted in manifest.files.items():
        there = folder / name
        if there.is_file() and (digest(there) if name == MODEL_FILE else sha256(there)) != wanted:
            raise ExportError(f"{manifest.version!r}: {name} is not the file that was proven; export it again")
    return Source(folder.resolve(), manifest, base.resolve())


def ollama(found: Source, sampling: Sampling, out: Path, *, force: bool = False) -> Path:
    """Write a Modelfile for `ollama create NAME -f Modelfile`; gives `out`.

    Raises:
        ExportError: it exists, or a file it names is not there.
    """
    model, lora = found.folder / MODEL_FILE, found.folder / LORA_FILE
    merged = MODEL_FILE in found.manifest.files
    for file in (model,) if merged else (found.base, lora):
        if not file.is_file():
            raise ExportError(f"{found.manifest.version!r}: {file.name} is missing")
    window = found.manifest.settings.get("model_max_length")
    parameters: dict[str, object] = {
        "stop": json.dumps(found.format.end), "temperature": sampling.temperature, "top_p": sampling.top_p,
        "top_k": sampling.top_k, "min_p": sampling.min_p, "repeat_penalty": sampling.repeat_penalty,
        "repeat_last_n": 64, "num_predict": sampling.max_tokens,
    }  # fmt: skip
    if isinstance(window, int):
        parameters["num_ctx"] = window + sampling.max_tokens
    licence = _licence(model if merged else found.base)
    here = Sampling()
    elsewhere = [name for name in _NOT_OLLAMAS if getattr(sampling, name) != getattr(here, name)]
    lines = [
        f"# Version {found.manifest.version} on {found.manifest.base.file}, by qqtwin.",
        *(
            [f"# Ollama has no place for persona.toml's {', '.join(elsewhere)}: answers differ by that."]
            if elsewhere
            else []
        ),
        f"FROM {_path(model if merged else found.base)}",
        *([] if merged else [f"ADAPTER {_path(lora)}"]),
        f"TEMPLATE {_block(go(found.format))}",
        f"SYSTEM {_block(found.system)}",
        *(f"PARAMETER {name} {value}" for name, value in parameters.items()),
        *([f"LICENSE {_block(licence)}"] if licence else []),
    ]
    with place.written(out, 0, force=force) as beside:
        beside.write_text("\n".join(lines) + "\n", "utf-8")
    return out


def vllm(found: Source, name: str, out: Path, checkpoint: Path | None = None, *, force: bool = False) -> Path:
    """Make a folder that vLLM loads as a LoRA: PEFT's files, chat template, ends of an answer, and how to start it.

    Args:
        found: the version.
        name: the persona's.
        out: the folder to make.
        checkpoint: the base's, where it is at hand: its sampling defaults come along.
        force: replace what lies at `out`.

    Raises:
        ExportError: the version has no PEFT folder, or `out` exists.
    """
    peft = found.folder / "peft"
    files = sorted(p for p in peft.glob("adapter_*") if p.is_file())
    if not files:
        raise ExportError(f"{found.manifest.version!r} has no peft/ folder: it is merged, or was shipped as GGUF alone")
    try:
        rank = int(json.loads((peft / "adapter_config.json").read_text("utf-8"))["r"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ExportError(f"{found.manifest.version!r}: peft/adapter_config.json is missing or damaged") from e
    with place.written(out, sum(p.stat().st_size for p in files), force=force) as beside:
        beside.mkdir()
        for file in files:
            shutil.copyfile(file, beside / file.name)
        (beside / "chat_template.jinja").write_text(jinja(found.format, _bos_text(found.base)), "utf-8")
        own = (stops.generation(checkpoint) if checkpoint else {}) or _noted(found.base)
        ends = _ends(found.base, found.format) | (stops.named(checkpoint) if checkpoint else frozenset())
        stops.write(beside, own, ends)
        (beside / "README.md").write_text(_readme(found, name, out, rank, _said_of(own, checkpoint)), "utf-8")
    return out


def _noted(gguf: Path) -> dict[str, Any]:
    """How a base's makers want it sampled, as its GGUF has noted it."""
    told = {key.removeprefix(_SAMPLING_KEY): field.value for key, field in fields(gguf, _SAMPLING_KEY).items()}
    # A float32 of 0.6 is 0.6000000238.
    return {name: round(told[key], 6) for key, name in _SAMPLING.items() if key in told}


def _said_of(own: dict[str, Any], checkpoint: Path | None) -> str:
    """What the README says of sampling."""
    told = ", ".join(f"{key} {own[key]}" for key in _SAMPLING.values() if key in own)
    if told:
        return f"What the base's own file sets of sampling is in the one here: {told}."
    if checkpoint:
        return "The base's own file sets nothing of sampling."
    return (
        "BASE's own generation_config.json, in whose place it stands, was not at hand: what that sets of sampling "
        "(temperature, top_p, top_k, …) belongs into the one here."
    )


def _readme(found: Source, name: str, out: Path, rank: int, sampling: str) -> str:
    room = next((r for r in _VLLM_RANKS if r >= rank), rank)
    return f"""# {name}, version {found.manifest.version}

A LoRA in PEFT's layout, rank {rank}, trained on {found.manifest.base.file}. BASE: that base's Hugging Face checkpoint:

```
vllm serve BASE --enable-lora --max-lora-rank {room} --lora-modules {name}={out.resolve()} \\
  --chat-template {out.resolve() / "chat_template.jinja"} --generation-config {out.resolve()}
```

The last option ends answers at `{found.format.end}`, which a bare base's own files do not name; without it every
request must say `"stop": ["{found.format.end}"]`. {sampling} Ask for the model `{name}`, with this system prompt:

```
{found.system}
```
"""


def _ends(gguf: Path, fmt: ChatFormat) -> set[int]:
    """Ids at which an answer ends: the base's own, and the end of turn it was trained with."""
    keys = ("tokenizer.ggml.tokens", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
    told = fields(gguf, *keys)
    ends = {int(told[key].value) for key in keys[1:] if key in told}
    return ends | {number for number, token in enumerate(told[keys[0]].value) if token == fmt.end}


def _bos_text(gguf: Path) -> str:
    keys = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.tokens")
    told = fields(gguf, *keys)
    if (keys[0] in told and not told[keys[0]].value) or keys[1] not in told:
        return ""
    return str(told[keys[2]].value[told[keys[1]].value])


def _licence(gguf: Path) -> str:
    told = fields(gguf, "general.license").get("general.license")
    licence = "" if told is None else str(told.value)
    return _GEMMA if licence == "gemma" else licence


def _path(file: Path) -> str:
    return json.dumps(str(file), ensure_ascii=False) if " " in str(file) else str(file)


def _block(text: str) -> str:
    if '"""' in text or text.endswith('"'):
        raise ExportError(
            'a Modelfile cannot hold """ in a text, nor " at its end; take it out of the system prompt and train again'
        )
    return f'"""{text}"""'
