"""`twin bench` and `twin doctor`: what this machine can do."""

from typing import Annotated

import typer

from bot import config
from bot.cli.options import CONFIG, ConfigOption, JsonOption, hush, show
from bot.errors import TwinError

BENCHES = {
    "first-light": "first_light",
    "engine": "engine",
    "personas": "personas",
    "traffic": "traffic",
    "pairing": "pairing",
    "import": "imports",
    "fuzz-import": "fuzz_import",
    "export": "exporting",
    "chat": "chatting",
    "likeness": "likeness",
    "train": "training",
    "night": "whole_night",
}
"""Modules of bench/ by name."""


def bench(
    name: Annotated[str, typer.Argument(help=", ".join(BENCHES))],
    full: Annotated[
        bool,
        typer.Option("--full", help="Also the long part, minutes to hours; some needs histories that are not shipped."),
    ] = False,
    as_json: JsonOption = False,
    config_path: ConfigOption = CONFIG,
) -> None:
    """The project's own figures, each beside its peer in the same run."""
    import importlib

    hush()  # no bench asks a hub
    if name not in BENCHES:
        raise TwinError(f"no bench {name!r}; there are: {', '.join(BENCHES)}")
    try:
        module = importlib.import_module(f"bench.{BENCHES[name]}")
    except ImportError as e:
        raise TwinError(f"bench {name!r} needs a checkout in which `make test` made .venv ({e})") from e
    module.main(config.load(config_path), config_path.resolve().parent, full=full, as_json=as_json)


def doctor(as_json: JsonOption = False, config_path: ConfigOption = CONFIG) -> None:
    """What works on this machine, and the remedy for what doesn't."""
    from bot import doctor as checks

    found = checks.examine(config.load(config_path), config_path.resolve().parent)
    if as_json:
        show([c.__dict__ for c in found], True)
    else:
        for check in found:
            mark = "ok  " if check.ok else "FAIL" if check.needed else "note"
            typer.echo(f"{mark} {check.name}: {check.text}")
    if any(not c.ok and c.needed for c in found):
        raise typer.Exit(1)
