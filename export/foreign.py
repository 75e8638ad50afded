"""A PEFT LoRA trained elsewhere (a folder, or a `lora_adapter.zip` as notebooks make) → a version on our base.

What another trainer says of its base is a name alone, so the LoRA is held against the checkpoint's own shapes, tensor
by tensor (`export.deltas`), and against the name where both have one. Pickled weights are refused: loading runs them.
"""

import json
import shutil
import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from bot.checksum import sha256
from bot.errors import ExportError
from bot.persona import LORA_FILE, MANIFEST_FILE, Base, Manifest
from bot.prompt import ChatFormat
from export import lora

PEFT_FOLDER = "peft"
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_LARGEST_BYTES = 8 * 2**30


def taken(path: Path, into: Path) -> Path:
    """The two files of a PEFT LoRA, copied to `into`; a zip may hold them in a folder.

    Raises:
        ExportError: they are not there, or more than one LoRA is.
    """
    into.mkdir(parents=True)
    try:
        if path.is_dir():
            for name in (_CONFIG, _WEIGHTS):
                shutil.copyfile(path / _one([p.name for p in path.iterdir()], name, path), into / name)
        else:
            with zipfile.ZipFile(path) as archive:
                members = [i.filename for i in archive.infolist() if not i.is_dir()]
                for name in (_CONFIG, _WEIGHTS):
                    member = archive.getinfo(_one(members, name, path))
                    if member.file_size > _LARGEST_BYTES:
                        raise ExportError(f"{path.name!r}: {name} is too large for a LoRA ({member.file_size} bytes)")
                    with archive.open(member) as source, (into / name).open("wb") as target:
                        shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as e:
        raise ExportError(f"{path.name!r} is no readable zip ({e}); give the zip, or the folder it was made of") from e
    except OSError as e:
        raise ExportError(f"LoRA {str(path)!r} cannot be read ({e.strerror or e})") from e
    return into


def _one(members: Sequence[str], name: str, path: Path) -> str:
    found = [m for m in members if PurePosixPath(m).name == name and "checkpoint-" not in m]
    if len(found) != 1:
        bins = any(m.endswith("adapter_model.bin") for m in members)
        why = (
            "its weights are a pickle (adapter_model.bin); save them with safe_serialization=True"
            if bins
            else (f"it has {len(found)} files {name}, and must have one")
        )
        raise ExportError(f"{path.name!r} is no PEFT LoRA to import: {why}")
    return found[0]


def result(
    source: Path, checkpoint: Path, base: Base, names: Sequence[str], fmt: ChatFormat, system_prompt: str, version: str,
    out: Path, *, force: bool = False,
) -> Path:  # fmt: skip
    """A folder that `Personas.publish` takes.

    Args:
        source: from `taken`.
        checkpoint: the base's weights.
        base: the GGUF it will be served on.
        names: what the base may be called: the checkpoint's name, a hub id.
        fmt: chat format it will be asked in.
        system_prompt: it will be asked with.
        version: the name of the version.
        out: the folder to make.
        force: also where the LoRA names another base; its shapes must fit all the same.

    Raises:
        ExportError: the LoRA is of another base, or what is not exported here.
    """
    if not force:
        _check_name(source, names)
    out.mkdir(parents=True)
    exported = lora.export(source, checkpoint, base, out / LORA_FILE)
    shutil.copytree(source, out / PEFT_FOLDER)
    files = {LORA_FILE: sha256(out / LORA_FILE)}
    files |= {f"{PEFT_FOLDER}/{name}": sha256(out / PEFT_FOLDER / name) for name in (_CONFIG, _WEIGHTS)}
    manifest = Manifest(
        version=version, created=datetime.now(UTC).isoformat(timespec="seconds"), base=base, format=fmt.name,
        system_prompt=system_prompt, files=files, settings={"imported": True, "r": exported.rank},
    )  # fmt: skip
    (out / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=1), "utf-8")
    return out


def _check_name(source: Path, names: Sequence[str]) -> None:
    """Refuse a LoRA that names a model of another size or family; a folder's name of another machine says nothing."""
    try:
        told = str(json.loads((source / _CONFIG).read_text("utf-8")).get("base_model_name_or_path") or "")
    except ValueError as e:
        raise ExportError(f"LoRA: {_CONFIG} is not JSON") from e
    theirs = _bare(told)
    if "/" in told and theirs and not any(theirs == _bare(n) for n in names) and not Path(told).is_absolute():
        raise ExportError(
            f"the LoRA was trained on {told!r}, and the base here is {names[0]!r}; set [engine] base to a GGUF of that "
            "model and [training] base to its checkpoint, or --force if they are the same under two names"
        )


def _bare(name: str) -> str:
    """A model's name without owner, quantization and spelling: `unsloth/Qwen3-0.6B-bnb-4bit` → `qwen306b`."""
    last = PurePosixPath(name.replace("\\", "/")).name.lower()
    for ending in ("-unsloth-bnb-4bit", "-bnb-4bit", "-gguf"):
        last = last.removesuffix(ending)
    return "".join(c for c in last if c.isalnum())
