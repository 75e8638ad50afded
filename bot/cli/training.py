"""`twin train`, `twin eval` and `twin night`."""

import json
from typing import Annotated, Any

import typer

from bot import config
from bot.cli.options import CONFIG, ConfigOption, PersonaOption, night_of, show


def train(
    persona: PersonaOption = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps at most.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, nf4 or none (bf16 weights).")] = None,
    epochs: Annotated[float | None, typer.Option(min=0.01, help="Passes over the samples.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    config_path: ConfigOption = CONFIG,
) -> None:
    """Archive → run folder with a PEFT LoRA and its loss curve; resumes a run that was broken off."""
    wanted = {"max_steps": max_steps, "precision": precision, "num_train_epochs": epochs, "seed": seed}
    settings = _with_training(config.load(config_path), {k: v for k, v in wanted.items() if v is not None})
    night = night_of(settings, persona, config_path)
    typer.echo(f"run: {night.train()}")


def evaluate(
    persona: PersonaOption = None,
    version: Annotated[str | None, typer.Option(help="Version; default: the one serving.")] = None,
    config_path: ConfigOption = CONFIG,
) -> None:
    """Held-out figures of a version, as JSON."""
    show(night_of(config.load(config_path), persona, config_path).evaluate_version(version), True)


def night(
    persona: PersonaOption = None,
    force: Annotated[bool, typer.Option("--force", help="Also with too few new messages.")] = False,
    idle: Annotated[bool, typer.Option("--idle", help="At idle priority, as the daemon starts it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Progress and result as JSON lines.")] = False,
    config_path: ConfigOption = CONFIG,
) -> None:
    """The whole night by hand: train, export, parity, evaluate, gate, publish, report."""
    from bot import doctor

    if idle:
        doctor.be_idle()
    settings = config.load(config_path)
    lines = doctor.json_progress() if as_json else doctor.plain_progress()
    outcome = night_of(settings, persona, config_path, progress=lines).run(force=force)
    if as_json:
        typer.echo(json.dumps({"outcome": outcome.kind, "version": outcome.version, "summary": outcome.summary}))
    else:
        typer.echo(outcome.summary)
    if outcome.kind == "failed":
        raise typer.Exit(1)


def _with_training(settings: config.Settings, update: dict[str, Any]) -> config.Settings:
    checked = config.Training.model_validate({**settings.training.model_dump(), **update})
    return settings.model_copy(update={"training": checked})
