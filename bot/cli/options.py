"""Options that several commands take, and the parts made from them."""

import contextlib
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bot import config

if TYPE_CHECKING:
    from bot.persona import Personas
    from training.nightly import Night

ConfigOption = Annotated[Path, typer.Option("--config", help="bot.toml to read; paths in it count from its folder.")]
PersonaOption = Annotated[str | None, typer.Option("--persona", help="Persona; default: [chat] persona.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what lies there.")]
CONFIG = Path("bot.toml")


def show(value: Any, as_json: bool) -> None:
    """Print a value: JSON for a program, one `name: value` a line for a person."""
    if as_json or not isinstance(value, dict):
        typer.echo(json.dumps(value, ensure_ascii=False, indent=1, default=str))
        return
    for name, item in value.items():
        shown = item if isinstance(item, str | int | float) else json.dumps(item, ensure_ascii=False, default=str)
        typer.echo(f"{name}: {shown}")


def personas_of(settings: config.Settings) -> "Personas":
    """The persona folders, with what ships in place."""
    from bot.persona import Personas
    from bot.twin import install_shipped

    install_shipped(settings.data / "personas")
    return Personas(settings.data / "personas")


def base_of(settings: config.Settings, path: Path) -> tuple[Path, str]:
    """The base GGUF and its hash."""
    from bot import base, checksum

    found = base.resolve(settings.engine.base, settings.data, path.resolve().parent)
    return found, checksum.digest(found)


def hush(*, on_hub: bool = False) -> None:
    """Keep what trains from asking a hub, reporting to one, and drawing bars into a file; before it is imported.

    Args:
        on_hub: the base to train is on one.
    """
    offline = "0" if on_hub else "1"
    os.environ.update(HF_HUB_OFFLINE=offline, HF_HUB_DISABLE_TELEMETRY="1", TRANSFORMERS_OFFLINE=offline)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    # At every import it asks for a package of kernels that nothing here needs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft asks by the old name


def to_stderr(words: str) -> None:
    """What is told on the way."""
    typer.echo(words, err=True)


def whose(folder: Path, persona: str | None, settings: config.Settings) -> str:
    """The persona a run's or version's folder is of: as given, as the folder tells, else [chat] persona."""
    if persona is not None:
        return persona
    here = folder.resolve()
    for place in (here, here.parent):  # a run, or its merged folder
        with contextlib.suppress(OSError, ValueError):
            told = json.loads((place / "snapshot.json").read_text("utf-8")).get("persona", place.parent.name)
            if isinstance(told, str) and (settings.data / "personas" / told).is_dir():
                return told
    if here.parent.name == "versions":
        return here.parent.parent.name
    return settings.chat.persona


def night_of(
    settings: config.Settings, persona: str | None, path: Path, run: Path | None = None, progress: Any = None
) -> "Night":
    """A persona's night, with what trains at hand.

    Args:
        settings: of bot.toml.
        persona: folder; None: the run's, else [chat] persona.
        path: of bot.toml.
        run: a run folder; None: of the persona, the unfinished one or a new one.
        progress: gets lines; None prints them.
    """
    from bot import doctor
    from bot.twin import install_shipped

    doctor.require_training()
    hush(on_hub=settings.training.base is not None and not Path(settings.training.base).is_dir())
    install_shipped(settings.data / "personas")
    from training.nightly import Night

    name = whose(run, persona, settings) if run is not None else persona or settings.chat.persona
    return Night(settings, name, *base_of(settings, path), progress or doctor.plain_progress(), run)
