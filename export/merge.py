"""Checkpoint + PEFT LoRA → a checkpoint with the LoRA in its weights, for people who need one model.

Every file of the checkpoint is copied and the adapted weights are overwritten in place, one at a time: W + alpha / r ·
B·A in float32, rounded to the type the weight is stored in, unless float32 is asked for: what a young LoRA changes is
often less than bf16 can tell. So a model larger than memory can be merged, shard by shard, under the same names. The
tokenizer comes along; the chat template becomes the one trained with, and its end of turn is among the tokens that who
serves the folder stops at.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bot.errors import ExportError
from bot.prompt import ChatFormat
from export import deltas, place, stops
from export.template import jinja
from export.tensors import Array, Stored, checkpoint_tensors, text_name, widen

TEMPLATE_FILE = "chat_template.jinja"
"""Where transformers and vLLM look first."""


def merge(
    peft: Path, checkpoint: Path, fmt: ChatFormat, out: Path, progress: Callable[[int, int], None], *,
    float32: bool = False, force: bool = False,
) -> Path:  # fmt: skip
    """Write the merged checkpoint; gives `out`.

    Args:
        peft: the trained LoRA.
        checkpoint: what it was trained on.
        fmt: the chat format it was trained with.
        out: the folder to make.
        progress: told (weights merged, of how many).
        float32: write every weight as float32; else as it is stored in the checkpoint.
        force: replace what lies at `out`.

    Raises:
        ExportError: the LoRA does not fit the checkpoint, `out` exists, there is too little room, or the vocabulary
            lacks the format's end of turn.
    """
    found = deltas.read(peft, checkpoint)
    files = [p for p in sorted(checkpoint.iterdir()) if p.is_file()]
    needed = sum(p.stat().st_size for p in files)
    if float32:
        needed += sum(4 * w.n_numbers - w.n_bytes for w in checkpoint_tensors(checkpoint).values())
    with place.written(out, needed, force=force) as beside:
        beside.mkdir()
        for file in files:
            copy = widen if float32 and file.suffix == ".safetensors" else shutil.copyfile
            copy(file, beside / file.name)
        copied, total = checkpoint_tensors(beside), sum(len(part.weights) for part in found.parts)
        for done, (weight, change) in enumerate(_changes(found), 1):
            into = copied[weight.name]
            with into.file.open("r+b") as f:
                into.overwrite(f, _finite(weight.read() + found.strength * change, into))
            progress(done, total)
        if float32:
            _name_float32(beside, sum(w.n_bytes for w in copied.values()))
        _put_template(beside, checkpoint, fmt)
        _put_end(beside, checkpoint, fmt)
    return out


def sums(peft: Path, checkpoint: Path) -> dict[str, Callable[[], Array]]:
    """Each adapted weight's `text_name` → makes it with the LoRA, float32, in the checkpoint's shape, nothing rounded.

    Raises:
        ExportError: the LoRA does not fit the checkpoint; or, when made, a file is damaged or the run diverged.
    """
    found = deltas.read(peft, checkpoint)
    return {
        text_name(weight.name): partial(_sum, part, expert, found.strength)
        for part in found.parts
        for expert, weight in enumerate(part.weights)
    }


def _sum(part: deltas.Delta, expert: int, strength: float) -> Array:
    weight = part.weights[expert]
    a, b = (half.reshape(len(part.weights), *half.shape[-2:])[expert] for half in (part.a(), part.b()))
    return _finite(weight.read() + strength * (b @ a), weight)


def _changes(found: deltas.Deltas) -> Iterator[tuple[Stored, Array]]:
    """Each changed weight with B·A, (out, in); the halves of a mixture's part are read once for all its experts."""
    for part in found.parts:
        a, b = (half.reshape(len(part.weights), *half.shape[-2:]) for half in (part.a(), part.b()))
        for expert, weight in enumerate(part.weights):
            yield weight, b[expert] @ a[expert]


def _finite(values: Array, weight: Stored) -> Array:
    if weight.dtype == "F16" and np.abs(values).max() >= 65504:
        raise ExportError(f"{weight.name!r} with the LoRA goes beyond float16's range; the run diverged")
    return values


def _name_float32(folder: Path, size: int) -> None:
    """Let config.json say what the weights are now, and the index how many bytes: loaded as bf16 they were rounded."""
    file = folder / "config.json"
    config = json.loads(file.read_text("utf-8"))
    for part in (config, config.get("text_config", {})):
        part.update({key: "float32" for key in ("dtype", "torch_dtype") if key in part})
    file.write_text(json.dumps(config, ensure_ascii=False, indent=1), "utf-8")
    for file in folder.glob("*.safetensors.index.json"):
        index = json.loads(file.read_text("utf-8"))
        index.setdefault("metadata", {})["total_size"] = size
        file.write_text(json.dumps(index, ensure_ascii=False, indent=1), "utf-8")


def _put_template(folder: Path, checkpoint: Path, fmt: ChatFormat) -> None:
    """Our rendering as the tokenizer's chat template; the base's own would be another prompt than the trained one."""
    settings = folder / "tokenizer_config.json"
    if not settings.is_file():
        raise ExportError("the checkpoint has no tokenizer_config.json; give a complete Hugging Face checkpoint")
    config = json.loads(settings.read_text("utf-8"))
    config.pop("chat_template", None)
    settings.write_text(json.dumps(config, ensure_ascii=False, indent=1), "utf-8")
    (folder / TEMPLATE_FILE).write_text(jinja(fmt, bos_text(checkpoint)), "utf-8")


def _put_end(folder: Path, checkpoint: Path, fmt: ChatFormat) -> None:
    """The end of turn as a token to stop at: a bare base's files may name its end of text alone, and never stop."""
    end = _tokenizer(checkpoint).token_to_id(fmt.end)
    if end is None:
        raise ExportError(f"the checkpoint's vocabulary has no {fmt.end!r}, which ends a turn in format {fmt.name!r}")
    stops.put(folder, end)


def bos_text(checkpoint: Path) -> str:
    """Text of the token that a checkpoint's tokenizer puts in front of a prompt, empty when it puts none.

    Raises:
        ExportError: there is no readable tokenizer.json.
    """
    tokenizer = _tokenizer(checkpoint)
    bare, dressed = (tokenizer.encode("a", add_special_tokens=x).ids for x in (False, True))
    first = dressed[0] if len(dressed) > len(bare) and dressed[:1] != bare[:1] else None
    return "" if first is None else str(tokenizer.id_to_token(first))


def _tokenizer(checkpoint: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    except Exception as e:  # tokenizers raises nothing narrower
        raise ExportError(f"tokenizer.json of checkpoint {checkpoint.name!r} is not readable ({e})") from e
