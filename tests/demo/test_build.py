"""data/demo/build.py: what ships of a published version."""

from pathlib import Path

import pytest

from bot.checksum import sha256
from bot.errors import TrainingError
from bot.persona import Base, Manifest, Personas, new_persona
from data.demo.build import PERSONA, SHIPPED_MAX_BYTES, ship


def published(folder: Path, version: str, report: str) -> Personas:
    """Personas with 小满 in a version that has a report, and files that do not ship."""
    if not (folder / "personas").exists():
        new_persona(folder / "personas", PERSONA, "小满", ("30001",))
    made = folder / version
    made.mkdir()
    (made / "lora.gguf").write_bytes(b"GGUF" + version.encode())
    (made / "peft.bin").write_bytes(b"peft")
    (made / "report.md").write_text(report, "utf-8")
    manifest = Manifest(
        version=version, created="2026-12-01T00:00:00Z", format="gemma", system_prompt="你是小满。",
        base=Base(file="b", sha256="0", architecture="gemma3"),
        files={name: sha256(made / name) for name in ("lora.gguf", "peft.bin", "report.md")},
    )  # fmt: skip
    (made / "manifest.json").write_text(manifest.model_dump_json(), "utf-8")
    personas = Personas(folder / "personas")
    personas.publish(PERSONA, made)
    return personas


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_lora_its_report_and_a_manifest_of_it_replace_what_shipped(tmp_path: Path) -> None:
    target = tmp_path / "checkout" / PERSONA
    for version in ("20261201-040000", "20261202-040000"):
        ship(published(tmp_path, version, "报告"), target)
        held = f"versions/{version}/"
        assert {*files_of(target)} == {"current", *(held + n for n in ("lora.gguf", "manifest.json", "report.md"))}
        manifest = Manifest.model_validate_json((target / held / "manifest.json").read_text("utf-8"))
        assert manifest.files == {"lora.gguf": sha256(target / held / "lora.gguf")}
        assert (target / "current").read_text("utf-8") == version + "\n"


def test_a_version_that_is_too_big_leaves_the_shipped_one(tmp_path: Path) -> None:
    target = tmp_path / "checkout" / PERSONA
    ship(published(tmp_path, "20261201-040000", "报告"), target)
    shipped = files_of(target)
    too_big = published(tmp_path, "20261202-040000", "x" * SHIPPED_MAX_BYTES)
    with pytest.raises(TrainingError, match="more than the 8000000 that ship"):
        ship(too_big, target)
    assert files_of(target) == shipped
