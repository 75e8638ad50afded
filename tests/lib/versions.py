"""A version's folder as a night or an import leaves it; nothing in it was trained."""

from pathlib import Path
from typing import Any

import gguf
from tinymodel import Tiny

from bot.checksum import sha256
from bot.persona import Base, Manifest
from export.metadata import fields

SYSTEM = '你是小满。\n说话：短句，"捏"。'
JUDGED = {"parity": {"passed": True}, "gate": {"passed": True, "reasons": []}}


def version(
    tiny: Tiny, folder: Path, *, merged: bool = False, architecture: str = "gemma2", name: str = "v1", **change: Any
) -> Path:
    """A folder with a manifest of a LoRA, or of a merged model, that was proven and passed the gate."""
    folder.mkdir(parents=True)
    file = "model.gguf" if merged else "lora.gguf"
    (folder / file).write_bytes(tiny.gguf.read_bytes() if merged else b"GGUF")
    manifest = Manifest(**{
        "version": name, "created": "2026-11-25T00:00:00+00:00", "format": "gemma", "system_prompt": SYSTEM,
        "base": Base(file=tiny.gguf.name, sha256=sha256(tiny.gguf), architecture=architecture),
        "files": {file: sha256(folder / file)}, "settings": {"model_max_length": 1024}, **JUDGED, **change,
    })  # fmt: skip
    (folder / "manifest.json").write_text(manifest.model_dump_json(), "utf-8")
    return folder


def header(of: Path, out: Path, *, without: tuple[str, ...] = (), **added: Any) -> Path:
    """A GGUF with another's keys, which is all that its vocabulary takes, and no weights.

    Args:
        of: the other.
        out: the file.
        without: keys that are left out.
        added: what GGUFWriter adds, `license="gemma"` by `add_license`.
    """
    told = fields(of, "")
    writer = gguf.GGUFWriter(out, told["general.architecture"].value)
    for key, found in told.items():
        if key != "general.architecture" and key not in without:
            writer.add_key_value(key, found.value, found.kind, sub_type=found.items)
    for key, value in added.items():
        getattr(writer, f"add_{key}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return out
