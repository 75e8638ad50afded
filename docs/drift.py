"""Keeps docs/cli.md equal to the command line: `python -m docs.drift` checks, `--write` writes it anew."""

import sys
from pathlib import Path

import click
import typer

from bot.__main__ import app

PAGE = Path(__file__).parent / "cli.md"


def page() -> str:
    """docs/cli.md as it should be: every command's --help."""
    parts = ["# The command line", "", "Written by `python -m docs.drift --write`; `make check` compares it."]
    for path, command in _commands(typer.main.get_command(app), "twin"):
        with click.Context(command, info_name=path, max_content_width=100, terminal_width=100) as context:
            parts += ["", f"## `{path}`", "", "```", command.get_help(context).rstrip(), "```"]
    return "\n".join(parts) + "\n"


def _commands(command: click.Command, path: str):  # type: ignore[no-untyped-def]
    yield path, command
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        yield from _commands(inner, f"{path} {name}")


def main() -> int:
    """0 when the page is right, or was written."""
    if "--write" in sys.argv:
        PAGE.write_text(page(), "utf-8")
        return 0
    if not PAGE.exists() or PAGE.read_text("utf-8") != page():
        print("docs/cli.md differs from the command line; run: python -m docs.drift --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
