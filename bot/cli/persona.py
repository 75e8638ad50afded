"""`twin persona …`: folders and their versions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bot import config
from bot.cli.options import CONFIG, ConfigOption, ForceOption, JsonOption, base_of, personas_of, show, to_stderr
from bot.errors import PersonaError

if TYPE_CHECKING:
    from bot.persona import Personas, Version

app = typer.Typer(no_args_is_help=True, help="Personas and their versions.")


@app.command("list")
def persona_list(as_json: JsonOption = False, config_path: ConfigOption = CONFIG) -> None:
    """All personas with the version that serves and its kind: lora, or merged (a model of its own)."""
    personas = personas_of(config.load(config_path))
    rows: dict[str, Any] = {}
    for name in personas.names():
        current = personas.current(name)
        kind = _kind(personas, name, current) if current else None
        try:
            rows[name] = {"display_name": personas.spec(name).display_name, "current": current, "kind": kind}
        except PersonaError as e:
            rows[name] = {"refused": str(e)}
    show(rows if as_json else {name: _told(row) for name, row in rows.items()}, as_json)


def _told(row: dict[str, Any]) -> str:
    if "refused" in row:
        return f"refused: {row['refused']}"
    version = f"version {row['current']} ({row['kind']})" if row["current"] else "no version yet: the bare base"
    return f"{row['display_name']}, {version}"


@app.command("new")
def persona_new(
    name: Annotated[str, typer.Argument(help="Folder name, such as `me`.")],
    people: Annotated[
        str,
        typer.Option(
            help="QQ numbers of the person, or ids as `twin import` told them, comma-separated; none: it learns from "
            "training sets alone."
        ),
    ] = "",
    display_name: Annotated[
        str | None, typer.Option(help="The name people see; default: the newest one in the archive, else NAME.")
    ] = None,
    role: Annotated[str | None, typer.Option(help="A role of RoleBench to play; with --profiles.")] = None,
    profiles: Annotated[Path | None, typer.Option(help="RoleBench's desc.json, which describes the role.")] = None,
    config_path: ConfigOption = CONFIG,
) -> None:
    """Make a persona folder with a commented persona.toml to fill in."""
    from bot.persona import new_persona

    identity = ""
    if role is not None and profiles is not None:
        from training.importers import rolebench

        described = rolebench.profiles(profiles)
        if role not in described:
            raise PersonaError(f"{profiles.name!r} describes no {role!r}; it has {'、'.join(described)}")
        identity = rolebench.identity(described[role])
    elif role is not None or profiles is not None:
        raise PersonaError("--role and --profiles go together: the role's name, and the desc.json that describes it")
    numbers = tuple(p.strip() for p in people.split(",") if p.strip())
    settings = config.load(config_path)
    newest, warning = _looked_up(settings, numbers)
    called = display_name or role or newest or name
    file = new_persona(personas_of(settings).root, name, called, numbers, identity)
    to_do = f"twin night --persona {name}" if numbers else f"twin import SET --persona {name}"
    typer.echo(f"made {file} for {called}; describe the person in it, then: {to_do}")
    if warning:
        typer.echo(warning, err=True)


def _looked_up(settings: config.Settings, numbers: tuple[str, ...]) -> tuple[str | None, str]:
    """The newest name of these people in the archive, and a warning of those who say nothing in it."""
    from bot.archive import Archive
    from training import speakers

    archive, warning = Archive(settings.archive_url), ""
    try:
        silent = [number for number in numbers if not archive.count([number])]
        if silent and (people := archive.people(speakers.TOLD)):
            warning = (
                f"--people {','.join(silent)}: nobody of that id speaks in the archive yet; these do: "
                f"{speakers.in_words(people)}"
            )
        return next(filter(None, map(archive.name_of, numbers)), None), warning
    finally:
        archive.close()


@app.command("show")
def persona_show(name: str, config_path: ConfigOption = CONFIG) -> None:
    """A persona's settings, versions with their kinds, and system prompt, as JSON."""
    personas = personas_of(config.load(config_path))
    loaded = personas.find(name)
    shown = {
        "name": loaded.name, "spec": loaded.spec.model_dump(),
        "versions": {v: _kind(personas, loaded.name, v) for v in personas.versions(loaded.name)},
        "current": personas.current(loaded.name), "system_prompt": loaded.system_prompt,
        "metrics": loaded.version.manifest.metrics if loaded.version else {},
    }  # fmt: skip
    show(shown, True)


@app.command("publish")
def persona_publish(
    name: str,
    result: Annotated[Path, typer.Argument(help="Folder with manifest.json and the files it lists.")],
    force: Annotated[
        bool, typer.Option("--force", help="Also what the gate refused; its manifest says so from then on.")
    ] = False,
    config_path: ConfigOption = CONFIG,
) -> None:
    """Copy a finished version in and make it current; a running daemon swaps by itself."""
    _tell_current(personas_of(config.load(config_path)).publish(name, result, by_hand=True, force=force))


@app.command("rollback")
def persona_rollback(
    name: str,
    version: Annotated[str | None, typer.Argument(help="Version; default: the one before.")] = None,
    config_path: ConfigOption = CONFIG,
) -> None:
    """Make an older version current."""
    _tell_current(personas_of(config.load(config_path)).rollback(name, version))


@app.command("verify")
def persona_verify(name: str, config_path: ConfigOption = CONFIG) -> None:
    """Check every version's files against its manifest."""
    personas = personas_of(config.load(config_path))
    for version in personas.versions(name):
        verified = personas.verify(name, version, anew=True)
        typer.echo(f"{version}: ok ({verified.manifest.kind})")


@app.command("pack")
def persona_pack(
    name: str,
    version: Annotated[str | None, typer.Option(help="Version; default: the one serving.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file; default: NAME-VERSION.qqtwin here.")] = None,
    force: ForceOption = False,
    config_path: ConfigOption = CONFIG,
) -> None:
    """A version → one file for another machine. It holds QQ numbers and what was learned: mind who gets it."""
    from bot import bundle

    personas = personas_of(config.load(config_path))
    chosen = version or personas.current(personas.find(name).name)
    file = bundle.pack(personas, name, chosen, out or Path(f"{name}-{chosen}{bundle.SUFFIX}"), force=force)
    typer.echo(f"packed {file}")


@app.command("unpack")
def persona_unpack(
    file: Annotated[Path, typer.Argument(help="A file that `twin persona pack` made.")],
    name: Annotated[str | None, typer.Option(help="Folder name here; default: the one it had.")] = None,
    config_path: ConfigOption = CONFIG,
) -> None:
    """Check a bundle's hashes and base, then make its version current; an existing persona.toml is kept."""
    from bot import bundle
    from bot.persona import Personas

    settings = config.load(config_path)
    _, base_sha256 = base_of(settings, config_path)
    version = bundle.unpack(Personas(personas_of(settings).root, base_sha256), file, name)
    unpacked = version.folder.parent.parent.name
    typer.echo(f"{unpacked}: current is {version.name}; talk to it: twin chat --persona {unpacked}")


@app.command("import-lora")
def persona_import_lora(
    name: str,
    lora: Annotated[Path, typer.Argument(help="A PEFT LoRA: its folder, or a zip with it (lora_adapter.zip).")],
    version: Annotated[str | None, typer.Option(help="Name of the version; default: imported- and the time.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also where it names another base.")] = False,
    config_path: ConfigOption = CONFIG,
) -> None:
    """A LoRA trained elsewhere, in Colab say, becomes the current version, if it fits the base."""
    from datetime import UTC, datetime

    from bot import doctor, staging
    from bot.llama import Model
    from bot.persona import Base, Personas

    doctor.require_training()
    from export import foreign
    from training import base as training_base

    settings = config.load(config_path)
    personas, (path, digest) = personas_of(settings), base_of(settings, config_path)
    spec = personas.find(name).spec
    checkpoint = training_base.of(settings.training, path, settings.data / "models", to_stderr)
    model = Model(path, vocab_only=True)
    fmt, served = model.format, Base(file=path.name, sha256=digest, architecture=model.architecture)
    model.close()
    called = version or f"imported-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    names = [settings.training.base or path.stem, checkpoint.name, path.stem]
    with staging.scratch(personas.root, "import") as made:
        source = foreign.taken(lora, made / "peft")
        found = foreign.result(
            source, checkpoint, served, names, fmt, spec.system_prompt, called, made / "result", force=force
        )
        _tell_current(Personas(personas.root, digest).publish(name, found))
    told = "when it speaks is decided by hand-set rules, and no gate has judged it: try `twin eval` and `twin chat`"
    typer.echo(told, err=True)


def _kind(personas: "Personas", name: str, version: str) -> str:
    """What a version is; its files are not read for it."""
    try:
        return personas.manifest(name, version).kind
    except PersonaError:
        return "unreadable"


def _tell_current(version: "Version") -> None:
    typer.echo(f"current: {version.name} ({version.manifest.kind})")
