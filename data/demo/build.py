"""history.jsonl → the persona that ships: trains 小满 with a fixed seed and puts the version beside her persona.toml.

`make demo-persona`: about 40 minutes on two CPU cores. Goes on where it was broken off (data/demo-build/).
"""

import shutil
from pathlib import Path

import typer

from bot import base, checksum, config, doctor, log
from bot.archive import Archive
from bot.cli.options import hush
from bot.errors import TrainingError
from bot.persona import LORA_FILE, MANIFEST_FILE, Manifest, Personas

DEMO = Path(__file__).parent
ROOT = DEMO.parents[1]
PERSONA = "xiaoman"
TRAINING = {
    # Not "auto": on a GPU that is NF4, and another LoRA.
    "precision": "none",
    # Chosen by held-out loss and by reading (docs/decisions.md, "The demo persona").
    "num_train_epochs": 3,
    "learning_rate": 5e-4,
    "lora_dropout": 0.0,
    "r": 16,
    "lora_alpha": 32,
    "optim": "adamw_torch",
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "model_max_length": 1024,
    "logging_steps": 1,
    "seed": 42,
}
SHIPPED_MAX_BYTES = 8_000_000


def main() -> None:
    """Train, export, prove, judge; replace the shipped version only if the gate lets it through."""
    hush()
    log.setup("WARNING")
    from training import history
    from training.nightly import Night

    work = ROOT / "data" / "demo-build"
    settings = config.load(ROOT / "no-such.toml", {})
    settings = settings.model_copy(
        update={
            "paths": config.Paths(data=work),
            "training": config.Training.model_validate(TRAINING),
        }
    )
    archive = Archive(settings.archive_url)
    history.load(DEMO / "history.jsonl", archive)
    archive.close()
    persona = work / "personas" / PERSONA
    persona.mkdir(parents=True, exist_ok=True)
    shutil.copy2(DEMO / "personas" / PERSONA / "persona.toml", persona / "persona.toml")
    models = ROOT / "data"
    path = base.resolve(settings.engine.base, models, ROOT)
    night = Night(settings, PERSONA, path, checksum.digest(path), doctor.plain_progress(), None)
    outcome = night.run(force=True)
    typer.echo(outcome.summary)
    if outcome.kind != "published":
        raise TrainingError("the demo persona was not let through; the shipped one stays")
    ship(Personas(work / "personas"), DEMO / "personas" / PERSONA)


def ship(personas: Personas, target: Path) -> None:
    """Copy the published version without its PEFT files (they are remade by this script) into the checkout.

    Args:
        personas: where it was published.
        target: the persona's folder in the checkout; nothing changes there where the version is too big.

    Raises:
        TrainingError: nothing was published, or it is too big.
    """
    version = personas.load(PERSONA).version
    if version is None:
        raise TrainingError("nothing was published")
    shipped = {LORA_FILE: version.manifest.files[LORA_FILE]}
    manifest: Manifest = version.manifest.model_copy(update={"files": shipped})
    files = {name: (version.folder / name).read_bytes() for name in (LORA_FILE, "report.md")}
    files[MANIFEST_FILE] = (manifest.model_dump_json(indent=1) + "\n").encode()
    size = sum(map(len, files.values()))
    if size > SHIPPED_MAX_BYTES:  # before the old one goes
        raise TrainingError(f"the version has {size} bytes, more than the {SHIPPED_MAX_BYTES} that ship")
    shutil.rmtree(target / "versions", ignore_errors=True)
    folder = target / "versions" / version.name
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (target / "current").write_text(version.name + "\n", "utf-8")
    typer.echo(f"shipped {version.name}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
