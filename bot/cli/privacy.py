"""`twin forget`: somebody is removed, by number; what `/forgetme` does, for whoever has no chat with the twin."""

import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Annotated

import typer

from bot import config
from bot.cli.options import CONFIG, ConfigOption, JsonOption, show


def forget(
    number: Annotated[str, typer.Argument(help="QQ number, or the id an imported history gives somebody.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    config_path: ConfigOption = CONFIG,
) -> None:
    """Remove somebody from the archive for good; later imports and messages do not bring them back."""
    from bot import corrections, forgetting, stickers
    from bot.archive import Archive

    settings = config.load(config_path)
    if not yes:
        typer.confirm(
            f"Remove every message of {number}, the private chat with them, their name and mentions, for good?",
            abort=True,
        )
    archive, moment = Archive(settings.archive_url), datetime.now(UTC)
    try:
        corrected = corrections.forget(archive, number)
        found = forgetting.from_archive(archive, number, moment, "owner")
        try:
            try:
                files = forgetting.from_files(settings)
            finally:
                gone = stickers.Stickers(stickers.folder(settings), settings.stickers).forget(number)
        finally:
            # A running twin may have written what it heard before it read of this.
            time.sleep(forgetting.UNTIL_READ_S)
            forgetting.from_archive(archive, number, moment, "owner")
            compacted = forgetting.compacted(archive)
    finally:
        archive.close()
    shown = asdict(
        replace(
            found, corrections=corrected, stickers=gone, files=files.files, written=files.written, compacted=compacted
        )
    )
    left = {kind: [str(path) for path in paths] for kind, paths in forgetting.left(settings).items()}
    if as_json:
        show({**shown, "left": left}, True)
        return
    typer.echo(
        f"removed: {found.messages} messages and commands, {found.private} of the private chat, {found.mentions} "
        f"mentions and quotes, {corrected} corrections, {gone} stickers, {files.files} files with excerpts"
    )
    if not compacted:
        typer.echo(
            "the archive's file could not be written anew, for others read it; what was deleted in it is zeros. Stop "
            "the twin or the night, and run this again"
        )
    typer.echo(
        f"what {len(left['versions'])} trained versions learned cannot be taken out of them: run `twin night --force` "
        'with [training] start = "fresh", then delete the older folders in data/personas/*/versions and data/runs; so '
        "with backups and exports. Restart a running `twin run`: what it read is still in its memory"
    )
