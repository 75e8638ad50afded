"""`twin import`: history → archive, training sets → a persona."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import SecretStr

from bot import config
from bot.cli.options import CONFIG, ConfigOption, JsonOption, personas_of
from bot.errors import ArchiveBusy, ImportFault, PersonaError

if TYPE_CHECKING:
    from bot.archive import Archive
    from bot.message import Scene
    from training.folders import Part
    from training.importers.source import Told


def import_(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="History files or folders; the format is found by content. Or what a running client still knows: "
            "onebot://HOST:PORT/group/ID, …/private/ID, or onebot://HOST:PORT for all."
        ),
    ],
    format: Annotated[str, typer.Option(help="A format's name, where the content does not tell.")] = "auto",  # noqa: A002
    me: Annotated[str | None, typer.Option(help="Your number there, where the file does not say it.")] = None,
    scene: Annotated[
        str | None,
        typer.Option(
            help="Which chat it is, where the file does not say it: private:NUMBER or group:NUMBER. Of one chat only."
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            envvar="TWIN_IMPORT_KEY",
            help="Key of an encrypted nt_msg.db. Set the variable rather than this: a command line stays in the "
            "shell's history and shows in the list of processes.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be imported; write nothing.")] = False,
    persona: Annotated[str | None, typer.Option(help="Training sets: who learns from them.")] = None,
    role: Annotated[list[str] | None, typer.Option(help="RoleBench: a role to take; once or more.")] = None,
    answers: Annotated[int, typer.Option(min=1, help="RoleBench: answers taken of each question.")] = 1,
    profiles: Annotated[Path | None, typer.Option(help="RoleBench: its desc.json, for the roles' prompts.")] = None,
    keep_prompts: Annotated[
        bool, typer.Option("--keep-prompts", help="Training sets: train their own system prompts, not the persona's.")
    ] = False,
    as_json: JsonOption = False,
    config_path: ConfigOption = CONFIG,
) -> None:
    """History → archive, training sets → a persona. Idempotent: a second import adds nothing twice."""
    from bot.archive import Archive
    from bot.progress import progress_bar
    from training import history
    from training.importers import ntqq_database, onebotlive
    from training.importers.source import Told

    settings, unread = config.load(config_path), _Unread(len(paths))
    ntqq_database.sweep()
    parts = _parts(paths, format, unread, with_sets=persona is not None, as_json=as_json)
    if persona is not None:
        options: dict[str, Any] = {"roles": role, "answers": answers, "profiles": profiles, "own_prompts": keep_prompts}
        parts = _import_sets(settings, parts, persona, options, unread, dry_run=dry_run, as_json=as_json)
        if not parts:
            unread.judge()
            return
    elif role or profiles or keep_prompts:
        raise ImportFault("--role, --profiles and --keep-prompts are of training sets: add --persona NAME")
    told = Told(me=me, zone=settings.zone, key=SecretStr(key) if key else None, scene=_scene(scene))
    _require_me(parts, format, told)
    archive = None if dry_run else Archive(settings.archive_url)
    try:
        for part in parts:
            with unread.told():
                if (url := onebotlive.url_of(part.path)) is not None:
                    if scene is not None:
                        raise ImportFault(
                            f"--scene is of files: say it as {url.partition('://')[0]}://HOST:PORT/private/ID"
                        )
                    _from_client(url, archive, settings, as_json=as_json)
                    continue
                source = part.source or history.recognised(part.path, format)
                with progress_bar(f"import {part.name}") as progress:
                    result = history.load(part.path, archive, progress, told=told, source=source)
                shown = history.summary(result, settings.zone)
                words = history.in_words(shown, part.name, dry_run=dry_run, personas=_people(settings))
                typer.echo(json.dumps(shown, ensure_ascii=False) if as_json else words)
    finally:
        if archive:
            archive.close()
    if archive and (archive.behind or archive.lost):
        lost = ImportFault(
            f"{archive.waiting + archive.lost} messages are not in the archive: it refused them, or could not be "
            "written; mend the lines named above, or the disk, and import again: nothing is added twice"
        )
        if not unread.faults:
            raise lost
        typer.echo(f"twin: {lost}", err=True)
    unread.judge()


def _people(settings: config.Settings) -> dict[str, tuple[str, ...]]:
    """The people of every persona whose file can be read."""
    from bot.persona import Personas

    found, there = dict[str, tuple[str, ...]](), Personas(settings.data / "personas")
    for name in there.names():
        with suppress(PersonaError):
            found[name] = there.spec(name).people
    return found


def _parts(paths: list[Path], wanted: str, unread: "_Unread", *, with_sets: bool, as_json: bool) -> list["Part"]:
    """What is to be read: folders as what they hold, with a word on what of them is left out."""
    from training import folders

    parts: list[Part] = []
    for path in paths:
        if not path.is_dir():
            parts.append(folders.Part(path, path.name))
            continue
        with unread.told():
            here, left = folders.found(path, wanted, with_sets=with_sets)
            parts += here
            unread.paths += len(here) - 1
            name = path.resolve().name
            shown: dict[str, Any] = {
                why: {"count": n, "places": left.places[why]} for why, n in left.skipped.most_common()
            }
            if as_json and shown:
                typer.echo(json.dumps({"folder": name, "left_out": shown}, ensure_ascii=False))
            elif shown:
                typer.echo(
                    f"{name}: a folder of which {len(here)} {'history is' if len(here) == 1 else 'histories are'} read"
                )
                for why, files in shown.items():
                    more = ", …" if files["count"] > len(files["places"]) else ""
                    typer.echo(f"  left out {files['count']}: {why} ({', '.join(files['places'])}{more})")
    return parts


def _require_me(parts: list["Part"], wanted: str, told: "Told") -> None:
    """Raise ImportFault where --me is nobody of these histories; what a client knows is not looked through."""
    from training import history, speakers
    from training.importers import onebotlive

    if told.me is None or any(onebotlive.url_of(part.path) is not None for part in parts):
        return
    histories = []
    for part in parts:
        with suppress(ImportFault):  # which is told when it is imported
            histories.append((part.path, part.source or history.recognised(part.path, wanted)))
    speakers.require(histories, told)


class _Unread:
    """Paths that could not be read: each is told at once, and the others are read all the same.

    Args:
        paths: how many there are.
    """

    def __init__(self, paths: int) -> None:
        self.paths, self.faults = paths, 0

    @contextmanager
    def told(self) -> Iterator[None]:
        """Where one path is read.

        Raises:
            ImportFault: it is the only path, or the fault is the archive's, which would be every path's.
        """
        try:
            yield
        except ImportFault as e:
            if self.paths == 1 or isinstance(e.__cause__, ArchiveBusy):
                raise
            self.faults += 1
            typer.echo(f"twin: {e}", err=True)

    def judge(self) -> None:
        """Raise ImportFault where there were faults."""
        if self.faults:
            raise ImportFault(
                f"{self.faults} of {self.paths} paths were not read, for what is said above; mend them and import "
                "again: nothing is added twice"
            )


def _scene(text: str | None) -> "Scene | None":
    from bot.message import Scene

    if text is None:
        return None
    try:
        return Scene.parse(text)
    except ValueError as e:
        raise ImportFault(f"--scene {text!r}: must be private:NUMBER or group:NUMBER") from e


def _import_sets(
    settings: config.Settings,
    parts: list["Part"],
    persona: str,
    options: dict[str, Any],
    unread: "_Unread",
    *,
    dry_run: bool,
    as_json: bool,
) -> list["Part"]:
    """Store the training sets among some files; gives the others."""
    from bot.progress import progress_bar
    from training import setimport, sets
    from training.importers import rolebench
    from training.importers.sets import recognised
    from training.importers.source import head

    folder = personas_of(settings).find(persona).folder / sets.FOLDER
    profiles = rolebench.profiles(options["profiles"]) if options["profiles"] else {}
    others = []
    for part in parts:
        with unread.told():
            head(part.path)  # says what is wrong with a file that is not there
            title = recognised(part.path)
            if title is None:
                others.append(part)
                continue
            choice = rolebench.Choice(tuple(options["roles"] or ()), options["answers"], profiles)
            with progress_bar(f"import {part.name}") as progress:
                taken = setimport.take(
                    part.path, title, folder, choice,
                    own_prompts=options["own_prompts"], dry_run=dry_run, progress=progress,
                )  # fmt: skip
            shown = setimport.summary(taken)
            words = setimport.in_words(shown, part.name, persona, folder, dry_run=dry_run)
            typer.echo(json.dumps(shown, ensure_ascii=False) if as_json else words)
    return others


def _from_client(url: str, archive: "Archive | None", settings: config.Settings, *, as_json: bool) -> None:
    """What a running OneBot client still knows → archive; says it by scene, then raises where one is not whole."""
    from bot.progress import progress_bar
    from training.importers import onebotlive, onebotlook

    token = config.access_token(settings)[0]
    with progress_bar(f"import {url}") as progress:
        if archive is None:
            summary, fault = asyncio.run(onebotlook.look(url, token, progress, settings.zone)), None
            words = onebotlook.in_words(summary, url)
        else:
            summary, fault = asyncio.run(onebotlive.fill(url, token, archive, progress))
            words = onebotlive.in_words(summary)
    typer.echo(json.dumps(summary, ensure_ascii=False) if as_json else words)
    if fault is not None:
        raise fault
