"""A version → an Ollama Modelfile with the prompt it was trained with, as far as Ollama keeps it.

https://docs.ollama.com/modelfile; of Ollama's source parser/parser.go (what of a text it keeps), template/template.go
(messages of one role are joined), fs/ggml/ggml.go (architectures of its own engine) and server/create.go (no LoRA any
more) were read. It was not run here; the template was, in Go 1.27's text/template with Ollama's data.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePath

from loguru import logger

from bot.errors import ExportError
from bot.persona import LORA_FILE, MODEL_FILE, Sampling
from export import place
from export.metadata import fields
from export.source import ASKING, Source, doubts
from export.template import go

_GEMMA = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
_NOT_OLLAMAS = ("logit_bias", "dry_multiplier")
_LLAMA_RUNNER = ("gemma2", "llama", "qwen2")
"""Architectures of our LoRAs that Ollama gave to llama.cpp; gemma3, qwen3 and qwen3moe went to an engine of its own."""
_NO_LORA = 'from 0.34.1 on `ollama create` refuses every LoRA ("LoRA adapters are no longer supported")'
_JOINED = (
    "- Ollama joins neighbouring messages of one role with a blank line, never trained: leave none side by side.",
    "- A system message of the request stands in place of SYSTEM below: so a group is asked.",
)


def ollama(
    found: Source, sampling: Sampling, out: Path, tell: Callable[[str], object] = logger.warning, *, force: bool = False
) -> Path:
    """Write a Modelfile for `ollama create NAME -f Modelfile`; gives `out`.

    Args:
        found: the version.
        sampling: persona.toml's.
        out: the file.
        tell: told what the file's user must know before anything else; it stands in the file, too.
        force: replace what lies at `out`.

    Raises:
        ExportError: Ollama cannot run it, or cannot hold its prompt; `out` exists, or a file it names is not there.
    """
    model, remarks = _model(found), doubts(found.manifest)
    if not found.manifest.merged:
        remarks.append(f"ADAPTER is for older versions of Ollama: {_NO_LORA}; then {_merge(found)}.")
    if lost := _dropped(found.system):
        remarks.append(
            f"Ollama drops {lost} from SYSTEM, so what it asks with is not the prompt that was trained: send that as a "
            "system message with every request, or take them out of it and train again."
        )
    here = Sampling()
    if elsewhere := [name for name in _NOT_OLLAMAS if getattr(sampling, name) != getattr(here, name)]:
        remarks.append(f"Ollama has no place for persona.toml's {', '.join(elsewhere)}: answers differ by that.")
    licence = _licence(model[0])
    lines = [
        *map(_comment, (f"Version {found.manifest.version} on {found.manifest.base.file}, by qqtwin.", *remarks)),
        *(f"# {line}" for line in (*ASKING, *_JOINED)),
        *(f"{word} {_path(file)}" for word, file in zip(("FROM", "ADAPTER"), model, strict=False)),
        f"TEMPLATE {_block(go(found.format))}",
        f"SYSTEM {_block(found.system)}",
        *(f"PARAMETER {name} {value}" for name, value in _parameters(found, sampling).items()),
        *([f"LICENSE {_block(licence)}"] if licence else []),
    ]
    with place.written(out, 0, force=force) as beside:
        beside.write_text("\n".join(lines) + "\n", "utf-8", newline="\n")  # Ollama keeps \r
    for remark in remarks:
        tell(remark)
    return out


def _model(found: Source) -> list[Path]:
    """The merged GGUF, or the base and the LoRA; raises ExportError."""
    manifest = found.manifest
    if found.base is None:
        files = [found.folder / MODEL_FILE]
    elif manifest.base.architecture in _LLAMA_RUNNER:
        files = [found.base, found.folder / LORA_FILE]
    else:
        raise ExportError(
            f"{manifest.version!r} is a LoRA on {manifest.base.architecture}, to which Ollama applies none (its own "
            f'engine ends the first answer with "loras are not yet implemented"; {_NO_LORA}): {_merge(found)}'
        )
    for file in files:
        if not file.is_file():
            raise ExportError(f"{manifest.version!r}: {file.name} is missing")
    return files


def _merge(found: Source) -> str:
    """The way for a LoRA that Ollama does not take."""
    if found.manifest.settings.get("imported"):
        return "serve it with llama-server: it was imported, and there is no run to merge it from"
    is_run = (found.folder / "train.json").is_file()
    run = f"{found.folder}`" if is_run else f"data/runs/PERSONA/{found.manifest.version}` where it was trained"
    return f"merge it with `twin export gguf {run}, and give `twin export modelfile` the folder that makes"


def _parameters(found: Source, sampling: Sampling) -> dict[str, object]:
    window = found.manifest.settings.get("model_max_length")
    return {
        "stop": json.dumps(found.format.end), "temperature": sampling.temperature, "top_p": sampling.top_p,
        "top_k": sampling.top_k, "min_p": sampling.min_p, "repeat_penalty": sampling.repeat_penalty,
        "repeat_last_n": 64, "num_predict": sampling.max_tokens,
        **({"num_ctx": window + sampling.max_tokens} if isinstance(window, int) else {}),
    }  # fmt: skip


def _dropped(text: str) -> str:
    """The characters that Ollama's parser leaves out of a text, by number and name; empty where there is none.

    It keeps what Go's strconv.IsPrint takes for printable, which is Python's `isprintable` (of its own Unicode), and
    blanks, tabs and line breaks: a full-width blank goes, and the joiner inside an emoji.
    """
    lost = Counter(c for c in text if not c.isprintable() and c not in "\t\r\n")
    return ", ".join(
        f"U+{ord(c):04X} {unicodedata.name(c, 'without a name')}" + (f" ({n} times)" if n > 1 else "")
        for c, n in sorted(lost.items())
    )


def _licence(gguf: Path) -> str:
    told = fields(gguf, "general.license").get("general.license")
    licence = "" if told is None else str(told.value)
    return _GEMMA if licence == "gemma" else licence


def _comment(text: str) -> str:
    """A text as one line: a second one would be an instruction."""
    return f"# {' '.join(text.split())}"


def _path(file: PurePath) -> str:
    """A path as it is: Ollama takes it to the end of the line, blanks included, and knows no escapes."""
    if not str(file).isprintable():
        raise ExportError(
            f"a Modelfile cannot name {str(file)!r}: Ollama drops what is not printable; rename the folder"
        )
    return str(file)


def _block(text: str) -> str:
    if '"""' in text or text.endswith('"'):
        raise ExportError(
            'a Modelfile cannot hold """ in a text, nor " at its end; take it out of the system prompt and train again'
        )
    return f'"""{text}"""'
