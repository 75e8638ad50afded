"""The `twin` command line put together: the composition root. What it runs stands in bot/cli/."""

import sys
from typing import Annotated

import typer

from bot import child
from bot.cli import compare, corpus, export, importing, machine, persona, privacy, serving, training
from bot.errors import TwinError

_TRAINING = ("train", "night")

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.add_typer(persona.app, name="persona")
app.add_typer(corpus.app, name="corpus")
app.add_typer(export.app, name="export")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"qqtwin {version('qqtwin')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """A digital twin in QQ: history in, a trained persona out, answering as that person would."""
    from bot import log

    log.setup("WARNING")


app.command()(serving.run)
app.command()(serving.chat)
app.command(name="import")(importing.import_)
app.command()(privacy.forget)
app.command()(training.train)
app.command(name="eval")(training.evaluate)
app.command()(training.night)
app.command()(compare.compare)
app.command()(machine.bench)
app.command()(machine.doctor)


def main() -> None:
    """Exit 0; 1 with one line for a known error; 2 for wrong usage."""
    if sys.argv[1:2] and sys.argv[1] in _TRAINING:
        child.restart()
    try:
        app(standalone_mode=True)
    except TwinError as e:
        typer.echo(f"twin: {e}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
