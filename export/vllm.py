"""A version → a folder that vLLM loads as a LoRA: PEFT's files, chat template, ends of an answer, how to start and ask.

vLLM takes PEFT's files as they are: https://docs.vllm.ai (LoRA adapters). It was not run here; the template was.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loguru import logger

from bot.errors import ExportError
from bot.llama import Model
from bot.prompt import ChatFormat
from export import place, stops
from export.merge import TEMPLATE_FILE
from export.metadata import fields
from export.source import ASKING, Source, doubts
from export.template import differing, jinja

_RANKS = (8, 16, 32, 64, 128, 256, 512)
"""What vLLM's --max-lora-rank takes."""
_SAMPLING_KEY = "general.sampling."
_SAMPLING = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}  # fmt: skip
"""What llama.cpp's converter notes in a GGUF of a base's generation_config.json, as that calls it."""


def export(
    found: Source, name: str, out: Path, checkpoint: Path | None = None,
    tell: Callable[[str], object] = logger.warning, *, force: bool = False,
) -> Path:  # fmt: skip
    """Make the folder; gives `out`.

    Args:
        found: the version.
        name: the persona's.
        out: the folder to make.
        checkpoint: the base's, where it is at hand: its sampling defaults come along.
        tell: told what the folder's user must know before anything else; its README says so, too.
        force: replace what lies at `out`.

    Raises:
        ExportError: the version has no PEFT folder, or `out` exists.
        EngineError: llama.cpp cannot read the base's vocabulary.
    """
    peft = found.folder / "peft"
    files = sorted(p for p in peft.glob("adapter_*") if p.is_file())
    if not files or found.base is None:
        raise ExportError(f"{found.manifest.version!r} has no peft/ folder: it is merged, or was shipped as GGUF alone")
    try:
        rank = int(json.loads((peft / "adapter_config.json").read_text("utf-8"))["r"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ExportError(f"{found.manifest.version!r}: peft/adapter_config.json is missing or damaged") from e
    with place.written(out, sum(p.stat().st_size for p in files), force=force) as beside:
        bos = _bos_text(found.base)
        beside.mkdir()
        for file in files:
            shutil.copyfile(file, beside / file.name)
        (beside / TEMPLATE_FILE).write_text(_proven(jinja(found.format, bos), found.format, bos), "utf-8")
        own = (stops.generation(checkpoint) if checkpoint else {}) or _noted(found.base)
        ends = _ends(found.base, found.format) | (stops.named(checkpoint) if checkpoint else frozenset())
        stops.write(beside, own, ends)
        (beside / "README.md").write_text(_readme(found, name, out, rank, _said_of(own, checkpoint)), "utf-8")
    for doubt in doubts(found.manifest):
        tell(doubt)
    return out


def _proven(template: str, fmt: ChatFormat, bos: str) -> str:
    """The template, if it renders what `bot.prompt` does; else raises ExportError."""
    if n := differing(template, fmt, bos):
        raise ExportError(f"the chat template renders {n} probes otherwise than format {fmt.name!r} was trained")
    return template


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
    room = next((r for r in _RANKS if r >= rank), rank)
    warned = "".join(f"**{' '.join(doubt.split())}**\n\n" for doubt in doubts(found.manifest))
    asking = "\n".join((ASKING[0], "", *ASKING[1:]))
    return f"""# {name}, version {found.manifest.version}

{warned}A LoRA in PEFT's layout, rank {rank}, trained on {found.manifest.base.file}.
BASE: that base's Hugging Face checkpoint:

```
vllm serve BASE --enable-lora --max-lora-rank {room} --lora-modules {name}={out.resolve()} \\
  --chat-template {out.resolve() / TEMPLATE_FILE} --generation-config {out.resolve()}
```

The last option ends answers at `{found.format.end}`, which a bare base's own files do not name; without it every
request must say `"stop": ["{found.format.end}"]`. {sampling} Ask for the model `{name}`, with this system prompt:

```
{found.system}
```

{asking}
"""


def _ends(gguf: Path, fmt: ChatFormat) -> set[int]:
    """Ids at which an answer ends: the base's own, and the end of turn it was trained with."""
    keys = ("tokenizer.ggml.tokens", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
    told = fields(gguf, *keys)
    ends = {int(told[key].value) for key in keys[1:] if key in told}
    return ends | {number for number, token in enumerate(told[keys[0]].value) if token == fmt.end}


def _bos_text(gguf: Path) -> str:
    """Text of the token that llama.cpp puts in front of a prompt, empty where it puts none.

    Whether it does depends on the kind of vocabulary where the file does not say.
    """
    model = Model(gguf, 0, vocab_only=True)
    try:
        return "" if model.bos is None else model.piece(model.bos, control=True).decode("utf-8")
    finally:
        model.close()
