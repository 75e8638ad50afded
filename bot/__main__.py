"""The `twin` command line: the composition root. It may import everything, and imports it only when asked to."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import SecretStr

from bot import config
from bot.errors import ConfigError, ImportFault, PersonaError, TwinError

if TYPE_CHECKING:
    from bot.archive import Archive
    from bot.engine import ReplyEngine
    from bot.persona import Personas, Version
    from training.corpus import Corpus
    from training.nightly import Night

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
persona_app = typer.Typer(no_args_is_help=True, help="Personas and their versions.")
corpus_app = typer.Typer(no_args_is_help=True, help="What the archive would teach, before any training.")
export_app = typer.Typer(no_args_is_help=True, help="A run → the files llama.cpp serves.")
app.add_typer(persona_app, name="persona")
app.add_typer(corpus_app, name="corpus")
app.add_typer(export_app, name="export")

ConfigOption = Annotated[Path, typer.Option("--config", help="bot.toml to read; paths in it count from its folder.")]
PersonaOption = Annotated[str | None, typer.Option("--persona", help="Persona; default: [chat] persona.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
RunArgument = Annotated[Path, typer.Argument(help="A run folder, as `twin train` printed it.")]
VersionArgument = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="A version's folder, a run a night has judged, or its merged one.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what lies there.")]
CONFIG = Path("bot.toml")
BENCHES = {
    "first-light": "first_light",
    "engine": "engine",
    "personas": "personas",
    "traffic": "traffic",
    "pairing": "pairing",
    "import": "imports",
    "fuzz-import": "fuzz_import",
    "export": "exporting",
}
"""Modules of bench/ by name."""


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


@app.command()
def run(config_path: ConfigOption = CONFIG) -> None:
    """Run the daemon: OneBot clients (NapCat, LLBot, Lagrange) connect to it."""
    from bot import daemon, doctor

    settings = config.load(config_path)
    typer.echo(doctor.welcome(settings))
    daemon.serve(settings, config_path.resolve())


@app.command()
def chat(
    persona: PersonaOption = None,
    backend: Annotated[str, typer.Option(help="llama (GGUF), or transformers: checkpoint and PEFT LoRA.")] = "llama",
    model: Annotated[str | None, typer.Option(help="transformers: a checkpoint's folder or hub id.")] = None,
    gguf: Annotated[Path | None, typer.Option(help="A base GGUF in place of [engine] base.")] = None,
    lora: Annotated[Path | None, typer.Option(help="A LoRA GGUF; with transformers, a PEFT folder.")] = None,
    merged: Annotated[bool, typer.Option("--merged", help="Apply no LoRA: the model was merged with one.")] = False,
    system_prompt: Annotated[str | None, typer.Option(help="In place of persona.toml's.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; default: persona.toml's.")] = None,
    top_p: Annotated[float | None, typer.Option(help="0 to 1; default: persona.toml's.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of one answer; default: persona.toml's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same words: same answers.")] = None,
    config_path: ConfigOption = CONFIG,
) -> None:
    """Talk to a persona in the terminal: /persona /why /clear /quit. Nothing said here is learned."""
    import random
    import tempfile

    from rich.console import Console

    from bot import log, terminal
    from bot.byhand import ByHand
    from bot.twin import Twin

    if backend not in ("llama", "transformers"):
        raise ConfigError(f"--backend {backend!r}: must be llama or transformers")
    settings = _by_hand_settings(config.load(config_path), gguf)
    log.setup("WARNING")
    root = config_path.resolve().parent
    on_torch = backend == "transformers" or model is not None
    wanted = ByHand(
        None if on_torch else lora, merged or (gguf is not None and lora is None and not on_torch), system_prompt,
        temperature, top_p, max_tokens,
    )  # fmt: skip
    engine = _transformers_engine(settings, root, persona, model, lora, merged=merged) if on_torch else None
    twin = Twin.assemble(settings, root, terminal.NoTransport(), engine=engine)
    terminal.choose(twin, persona)
    prompt = "› " if sys.stdin.isatty() else ""

    async def talk(folder: Path) -> None:
        try:
            session = terminal.Terminal(
                twin, Console(), lambda: input(prompt), rng=random.Random(seed),
                by_hand=lambda found: wanted.persona(found, twin.engine.format.name, folder),
            )  # fmt: skip
            await session.run()
        finally:
            await twin.close()

    with tempfile.TemporaryDirectory() as made:
        asyncio.run(talk(Path(made)))


def _by_hand_settings(settings: config.Settings, gguf: Path | None) -> config.Settings:
    """The terminal's own archive, and a base given by hand."""
    url = f"sqlite:///{settings.data / 'terminal.db'}"
    changed: dict[str, Any] = {"paths": settings.paths.model_copy(update={"archive_url": url})}
    if gguf is not None:
        changed["engine"] = settings.engine.model_copy(update={"base": str(gguf.resolve()), "backend": "llama"})
    return settings.model_copy(update=changed)


def _transformers_engine(
    settings: config.Settings, root: Path, persona: str | None, model: str | None, lora: Path | None, *, merged: bool
) -> "ReplyEngine":
    """The checkpoint (else the base, dequantized) with a PEFT LoRA (else the persona's version's)."""
    from bot import base, doctor
    from bot.persona import Personas
    from bot.twin import install_shipped

    doctor.require_training()
    from training import base as training_base
    from training.talking import TransformersEngine

    if lora is None and model is None and not merged:
        install_shipped(settings.data / "personas")
        version = Personas(settings.data / "personas").find(persona or settings.chat.persona).version
        lora = version.folder / "peft" if version else None
        if lora is not None and not lora.is_dir():
            raise PersonaError(
                f"version {lora.parent.name!r} has no peft/ folder (it was shipped as GGUF alone); train one, or "
                "--merged to hear the base"
            )
    if model is None:
        base_path = base.resolve(settings.engine.base, settings.data, root)
        checkpoint = training_base.checkpoint(base_path, settings.data / "models")
    else:
        checkpoint = training_base.fetched(model)
    return TransformersEngine(checkpoint, None if merged else lora, settings.engine.n_ctx)


@app.command(name="import")
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
    from bot import doctor
    from bot.archive import Archive
    from training import history
    from training.importers import onebotlive
    from training.importers.source import Told

    settings = config.load(config_path)
    if persona is not None:
        options: dict[str, Any] = {"roles": role, "answers": answers, "profiles": profiles, "own_prompts": keep_prompts}
        paths = _import_sets(settings, paths, persona, options, dry_run=dry_run, as_json=as_json)
        if not paths:
            return
    elif role or profiles or keep_prompts:
        raise ImportFault("--role, --profiles and --keep-prompts are of training sets: add --persona NAME")
    told = Told(me=me, zone=settings.zone, key=SecretStr(key) if key else None)
    archive = None if dry_run else Archive(settings.archive_url)
    try:
        for path in paths:
            if (url := onebotlive.url_of(path)) is not None:
                _show(_from_client(url, archive, settings), as_json)
                continue
            source = history.recognised(path, format)
            with doctor.progress_bar(f"import {path.name}") as progress:
                result = history.load(path, archive, progress, told=told, source=source)
            shown = history.summary(result, settings.zone)
            words = history.in_words(shown, path.name, dry_run=dry_run)
            typer.echo(json.dumps(shown, ensure_ascii=False) if as_json else words)
    finally:
        if archive:
            archive.close()
    if archive and (archive.behind or archive.lost):
        raise ImportFault(
            f"{archive.waiting + archive.lost} messages are not in the archive: it refused them, or could not be "
            "written; mend the lines named above, or the disk, and import again: nothing is added twice"
        )


def _import_sets(
    settings: config.Settings, paths: list[Path], persona: str, options: dict[str, Any], *, dry_run: bool, as_json: bool
) -> list[Path]:
    """Store the training sets among some files; gives the others."""
    from bot import doctor
    from training import setimport, sets
    from training.importers import rolebench
    from training.importers.sets import recognised
    from training.importers.source import head

    folder = _personas(settings).find(persona).folder / sets.FOLDER
    profiles = rolebench.profiles(options["profiles"]) if options["profiles"] else {}
    others = []
    for path in paths:
        head(path)  # says what is wrong with a file that is not there
        title = recognised(path)
        if title is None:
            others.append(path)
            continue
        choice = rolebench.Choice(tuple(options["roles"] or ()), options["answers"], profiles)
        with doctor.progress_bar(f"import {path.name}") as progress:
            taken = setimport.take(
                path, title, folder, choice, own_prompts=options["own_prompts"], dry_run=dry_run, progress=progress
            )
        shown = setimport.summary(taken)
        words = setimport.in_words(shown, path.name, persona, folder, dry_run=dry_run)
        typer.echo(json.dumps(shown, ensure_ascii=False) if as_json else words)
    return others


def _from_client(url: str, archive: "Archive | None", settings: config.Settings) -> dict[str, Any]:
    """What a running OneBot client still knows → archive; a summary by scene."""
    from bot import doctor
    from training.importers import onebotlive

    if archive is None:
        raise ImportFault(
            f"{url!r}: --dry-run reads files only; without it the import can be stopped and goes on later"
        )
    with doctor.progress_bar(f"import {url}") as progress:
        return asyncio.run(onebotlive.fill(url, config.access_token(settings)[0], archive, progress))


@corpus_app.command("stats")
def corpus_stats(
    persona: PersonaOption = None,
    plots: Annotated[
        Path | None, typer.Option(help="Folder for PNGs of hours, months, turns, lengths, delays.")
    ] = None,
    as_json: JsonOption = False,
    config_path: ConfigOption = CONFIG,
) -> None:
    """What a persona would learn in numbers: scenes, hours, lengths, delays (seconds), silences, redactions."""
    from bot import doctor
    from training import stats

    built = _corpus(config.load(config_path), persona).of_logs()
    _show(stats.figures(built), as_json)
    if plots is not None:
        doctor.require_training()
        from training import plots as drawn

        drawn.write(built, plots)


@corpus_app.command("preview")
def corpus_preview(
    n: Annotated[int, typer.Option("-n", min=1, help="Windows to show.")] = 3,
    seed: Annotated[int, typer.Option(help="Which ones.")] = 0,
    persona: PersonaOption = None,
    config_path: ConfigOption = CONFIG,
) -> None:
    """Windows exactly as the model will see them, trained tokens green or in ⟦ ⟧. Reads the base's vocabulary alone."""
    from bot import base
    from bot.llama import Model
    from training import preview, samples

    settings = config.load(config_path)
    spec, rules = _personas(settings).find(persona or settings.chat.persona).spec, settings.training
    built = _corpus(settings, persona)
    path = base.resolve(settings.engine.base, settings.data, config_path.resolve().parent)
    model = Model(path, vocab_only=True)
    how = preview.green if sys.stdout.isatty() else preview.bracketed
    try:
        windows = samples.windows(built, model, model.format, spec.system_prompt, rules.model_max_length)
        for window in preview.chosen(windows, n, seed):
            typer.echo(f"──── {window.scene}, {len(window.ids)} tokens")
            typer.echo(preview.text(window, lambda token: model.piece(token, control=True), rules, how) + "\n")
    finally:
        model.close()


@corpus_app.command("clean")
def corpus_clean(
    show: Annotated[int, typer.Option(min=0, help="Examples of each reason: what people wrote.")] = 0,
    persona: PersonaOption = None,
    as_json: JsonOption = False,
    config_path: ConfigOption = CONFIG,
) -> None:
    """Count the answers that [corpus] in bot.toml keeps from being trained, by reason; nothing is changed."""
    from training import clean, stats

    built = _corpus(config.load(config_path), persona)
    names = ("turns", "hidden", *(f"masked_{reason}" for reason in clean.Reason))
    found: dict[str, Any] = {name: built.counts.get(name, 0) for name in names}
    _show(found | ({"examples": stats.examples(built, show)} if show else {}), as_json)


def _corpus(settings: config.Settings, persona: str | None) -> "Corpus":
    from bot.archive import Archive
    from training import corpus, sets

    found = _personas(settings).find(persona or settings.chat.persona)
    archive = Archive(settings.archive_url)
    try:
        built = corpus.build(
            archive, found.spec.people, found.spec.names, settings.conversation, cleaning=settings.corpus
        )
    finally:
        archive.close()
    folder = found.folder / sets.FOLDER
    return sets.joined(built, folder, sets.stored(folder), settings.training.max_set_dialogues, settings.corpus)


@corpus_app.command("export")
def corpus_export(
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    form: Annotated[
        str,
        typer.Option("--format", help="sharegpt, openai or alpaca: samples; chatlab: every message, a file a scene."),
    ] = "sharegpt",
    split: Annotated[str, typer.Option(help="Samples: train, tune, test or all.")] = "train",
    silences: Annotated[bool, typer.Option("--silences", help="Samples: keep silences, as empty answers.")] = False,
    persona: PersonaOption = None,
    as_json: JsonOption = False,
    config_path: ConfigOption = CONFIG,
) -> None:
    """Archive → files that other trainers, or ChatLab, read. They hold what people wrote."""
    from datetime import UTC, datetime

    from bot.archive import Archive
    from training import chatlab, corpus, sharing
    from training.samples import Split

    if form not in (*sharing.FORMS, "chatlab"):
        raise TwinError(f"--format {form!r}: must be {', '.join(sharing.FORMS)} or chatlab")
    if split not in (*Split, "all"):
        raise TwinError(f"--split {split!r}: must be {', '.join(Split)} or all")
    settings = config.load(config_path)
    found = _personas(settings).find(persona or settings.chat.persona)
    archive = Archive(settings.archive_url)
    try:
        if form == "chatlab":
            files = chatlab.export(archive, found.spec.people, out, datetime.now(UTC))
            shown: dict[str, Any] = {"files": {str(file): count for file, count in files}}
        else:
            built = corpus.build(
                archive, found.spec.people, found.spec.names, settings.conversation, cleaning=settings.corpus
            )
            splits = tuple(Split) if split == "all" else (Split(split),)
            talks = sharing.talks(built, found.spec.system_prompt, splits, silences=silences)
            file, samples, answers = sharing.write(talks, form, out, f"{found.name}_{split}")
            shown = {"file": str(file), "samples": samples, "answers": answers}
    finally:
        archive.close()
    _show(shown, as_json)


@app.command()
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
    night = _night(settings, persona, config_path)
    typer.echo(f"run: {night.train()}")


@export_app.command("lora")
def export_lora(
    run_folder: RunArgument,
    kind: Annotated[str, typer.Option("--type", help="f16, f32 or q8_0.")] = "f16",
    out: Annotated[
        Path | None, typer.Option(help="The file; default: lora.gguf, or lora-TYPE.gguf, in the run.")
    ] = None,
    force: ForceOption = False,
    persona: PersonaOption = None,
    config_path: ConfigOption = CONFIG,
) -> None:
    """PEFT LoRA → GGUF LoRA, with the proof that llama.cpp computes the same."""
    from export import lora

    precision = lora.precision_of(kind)
    from export import proof

    night = _night(config.load(config_path), persona, config_path, run_folder)
    if out is None and precision == "f16":
        found = night.prove()
        _show_proof(found.model_dump(mode="json"), night.texts)
        proof.require_passed(found, f"the LoRA of run {run_folder.name!r}")
        return
    file = out or run_folder / f"lora-{precision}.gguf"
    made = proof.prove_lora(
        night.trained, night.base_path, night.gguf_base, file, precision, night.held_out, force=force
    )
    _show_proof(made.parity.model_dump(mode="json"), made.texts)


@export_app.command("merge")
def export_merge(
    run_folder: RunArgument,
    out: Annotated[Path | None, typer.Option(help="The folder; default: merged in the run.")] = None,
    force: ForceOption = False,
    persona: PersonaOption = None,
    config_path: ConfigOption = CONFIG,
) -> None:
    """The LoRA merged into the base's weights: a Hugging Face checkpoint with tokenizer and chat template."""
    from bot import doctor
    from export import merge

    night = _night(config.load(config_path), persona, config_path, run_folder)
    trained, target = night.trained, out or run_folder / "merged"
    with doctor.progress_bar("merge") as progress:
        merge.merge(trained.peft, trained.checkpoint, trained.format, target, progress, force=force)
    typer.echo(f"checkpoint: {target}")


@export_app.command("gguf")
def export_gguf(
    run_folder: RunArgument,
    kind: Annotated[str, typer.Option("--type", help="F16, BF16, F32, or a llama.cpp type from Q8_0 to IQ1_S.")] = (
        "Q8_0"
    ),
    imatrix: Annotated[
        bool, typer.Option("--imatrix", help="With an importance matrix of the held-out tune chats.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="The folder; default: merged-TYPE in the run.")] = None,
    force: ForceOption = False,
    persona: PersonaOption = None,
    config_path: ConfigOption = CONFIG,
) -> None:
    """The LoRA merged into its base as one GGUF, proven equal, in a folder that `twin persona publish` takes."""
    from export import quantize

    quantize.require(kind, imatrix=imatrix)
    from export import merged

    night = _night(config.load(config_path), persona, config_path, run_folder)
    target = out or run_folder / f"merged-{kind.lower()}"
    about = merged.about(
        night.trained, night.base_path, night.base_sha256, night.persona.spec.display_name,
        f"{run_folder.resolve().name}-{kind.lower()}", night.learned.counts,
    )  # fmt: skip
    made = merged.export(
        night.trained, night.base_path, about, kind, target, night.held_out, night.progress,
        imatrix=night.tune_texts if imatrix else None, manifest=night.manifest, force=force,
    )  # fmt: skip
    _show_proof(made.parity.model_dump(mode="json"), made.texts)
    where = f"{target} (publish it: twin persona publish {night.persona.name} {target})"
    typer.echo(
        where if night.manifest else f"{target} (no night has judged the run, so it cannot be published)", err=True
    )


@export_app.command("modelfile")
def export_modelfile(
    folder: VersionArgument,
    out: Annotated[Path | None, typer.Option(help="The file; default: Modelfile in the folder.")] = None,
    force: ForceOption = False,
    persona: PersonaOption = None,
    config_path: ConfigOption = CONFIG,
) -> None:
    """A version → an Ollama Modelfile with the prompt it was trained with."""
    from export import modelfile

    settings = config.load(config_path)
    spec = _personas(settings).find(persona or settings.chat.persona).spec
    found = modelfile.source(folder, *_base(settings, config_path))
    file = modelfile.ollama(found, spec.sampling, out or folder / "Modelfile", force=force)
    typer.echo(f"{file}; then: ollama create NAME -f {file}")


@export_app.command("vllm")
def export_vllm(
    folder: VersionArgument,
    out: Annotated[Path | None, typer.Option(help="The folder to make; default: vllm in FOLDER.")] = None,
    force: ForceOption = False,
    persona: PersonaOption = None,
    config_path: ConfigOption = CONFIG,
) -> None:
    """A version → a LoRA folder for vLLM, with the start command in its README."""
    from export import modelfile

    settings = config.load(config_path)
    name = _personas(settings).find(persona or settings.chat.persona).name
    found = modelfile.source(folder, *_base(settings, config_path))
    typer.echo(f"{modelfile.vllm(found, name, out or folder / 'vllm', force=force)}: read its README.md")


@app.command(name="eval")
def evaluate(
    persona: PersonaOption = None,
    version: Annotated[str | None, typer.Option(help="Version; default: the one serving.")] = None,
    config_path: ConfigOption = CONFIG,
) -> None:
    """Held-out figures of a version, as JSON."""
    _show(_night(config.load(config_path), persona, config_path).evaluate_version(version), True)


@app.command()
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
    outcome = _night(settings, persona, config_path, progress=lines).run(force=force)
    if as_json:
        typer.echo(json.dumps({"outcome": outcome.kind, "version": outcome.version, "summary": outcome.summary}))
    else:
        typer.echo(outcome.summary)
    if outcome.kind == "failed":
        raise typer.Exit(1)


@persona_app.command("list")
def persona_list(as_json: JsonOption = False, config_path: ConfigOption = CONFIG) -> None:
    """All personas with the version that serves and its kind: lora, or merged (a model of its own)."""
    personas = _personas(config.load(config_path))
    rows: dict[str, Any] = {}
    for name in personas.names():
        current = personas.current(name)
        kind = _kind(personas, name, current) if current else None
        try:
            rows[name] = {"display_name": personas.spec(name).display_name, "current": current, "kind": kind}
        except PersonaError as e:
            rows[name] = {"refused": str(e)}
    _show(rows, as_json)


@persona_app.command("new")
def persona_new(
    name: Annotated[str, typer.Argument(help="Folder name, such as `me`.")],
    people: Annotated[
        str, typer.Option(help="QQ numbers of the person, comma-separated; none: it learns from training sets alone.")
    ] = "",
    display_name: Annotated[str | None, typer.Option(help="The name people see; default: NAME.")] = None,
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
    root = _personas(config.load(config_path)).root
    file = new_persona(root, name, display_name or role or name, numbers, identity)
    to_do = f"twin night --persona {name}" if numbers else f"twin import SET --persona {name}"
    typer.echo(f"made {file}; describe the person in it, then: {to_do}")


@persona_app.command("show")
def persona_show(name: str, config_path: ConfigOption = CONFIG) -> None:
    """A persona's settings, versions with their kinds, and system prompt, as JSON."""
    personas = _personas(config.load(config_path))
    loaded = personas.find(name)
    shown = {
        "name": loaded.name, "spec": loaded.spec.model_dump(),
        "versions": {v: _kind(personas, loaded.name, v) for v in personas.versions(loaded.name)},
        "current": personas.current(loaded.name), "system_prompt": loaded.system_prompt,
        "metrics": loaded.version.manifest.metrics if loaded.version else {},
    }  # fmt: skip
    _show(shown, True)


@persona_app.command("publish")
def persona_publish(
    name: str,
    result: Annotated[Path, typer.Argument(help="Folder with manifest.json and the files it lists.")],
    config_path: ConfigOption = CONFIG,
) -> None:
    """Copy a finished version in and make it current; a running daemon swaps by itself."""
    _tell_current(_personas(config.load(config_path)).publish(name, result))


@persona_app.command("rollback")
def persona_rollback(
    name: str,
    version: Annotated[str | None, typer.Argument(help="Version; default: the one before.")] = None,
    config_path: ConfigOption = CONFIG,
) -> None:
    """Make an older version current."""
    _tell_current(_personas(config.load(config_path)).rollback(name, version))


@persona_app.command("verify")
def persona_verify(name: str, config_path: ConfigOption = CONFIG) -> None:
    """Check every version's files against its manifest."""
    personas = _personas(config.load(config_path))
    for version in personas.versions(name):
        verified = personas.verify(name, version, anew=True)
        typer.echo(f"{version}: ok ({verified.manifest.kind})")


@persona_app.command("pack")
def persona_pack(
    name: str,
    version: Annotated[str | None, typer.Option(help="Version; default: the one serving.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file; default: NAME-VERSION.qqtwin here.")] = None,
    force: ForceOption = False,
    config_path: ConfigOption = CONFIG,
) -> None:
    """A version → one file for another machine. It holds QQ numbers and what was learned: mind who gets it."""
    from bot import bundle

    personas = _personas(config.load(config_path))
    chosen = version or personas.current(personas.find(name).name)
    file = bundle.pack(personas, name, chosen, out or Path(f"{name}-{chosen}{bundle.SUFFIX}"), force=force)
    typer.echo(f"packed {file}")


@persona_app.command("unpack")
def persona_unpack(
    file: Annotated[Path, typer.Argument(help="A file that `twin persona pack` made.")],
    name: Annotated[str | None, typer.Option(help="Folder name here; default: the one it had.")] = None,
    config_path: ConfigOption = CONFIG,
) -> None:
    """Check a bundle's hashes and base, then make its version current; an existing persona.toml is kept."""
    from bot import bundle
    from bot.persona import Personas

    settings = config.load(config_path)
    _, base_sha256 = _base(settings, config_path)
    version = bundle.unpack(Personas(_personas(settings).root, base_sha256), file, name)
    typer.echo(f"current: {version.name}")


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help=", ".join(BENCHES))],
    full: Annotated[bool, typer.Option("--full", help="Also what takes an hour: nights on foreign histories.")] = False,
    as_json: JsonOption = False,
    config_path: ConfigOption = CONFIG,
) -> None:
    """The project's own figures, each beside its peer in the same run."""
    import importlib

    if name not in BENCHES:
        raise TwinError(f"no bench {name!r}; there are: {', '.join(BENCHES)}")
    try:
        module = importlib.import_module(f"bench.{BENCHES[name]}")
    except ImportError as e:
        raise TwinError(f"bench {name!r} needs a checkout in which `make test` made .venv ({e})") from e
    module.main(config.load(config_path), config_path.resolve().parent, full=full, as_json=as_json)


@app.command()
def doctor(as_json: JsonOption = False, config_path: ConfigOption = CONFIG) -> None:
    """What works on this machine, and the remedy for what doesn't."""
    from bot import doctor as checks

    found = checks.examine(config.load(config_path), config_path.resolve().parent)
    if as_json:
        _show([c.__dict__ for c in found], True)
    else:
        for check in found:
            typer.echo(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.text}")
    if any(not c.ok and c.needed for c in found):
        raise typer.Exit(1)


def _show(value: Any, as_json: bool) -> None:
    """Print a value: JSON for a program, one `name: value` a line for a person."""
    if as_json or not isinstance(value, dict):
        typer.echo(json.dumps(value, ensure_ascii=False, indent=1, default=str))
        return
    for name, item in value.items():
        shown = item if isinstance(item, str | int | float) else json.dumps(item, ensure_ascii=False, default=str)
        typer.echo(f"{name}: {shown}")


def _personas(settings: config.Settings) -> "Personas":
    from bot.persona import Personas
    from bot.twin import install_shipped

    install_shipped(settings.data / "personas")
    return Personas(settings.data / "personas")


def _kind(personas: "Personas", name: str, version: str) -> str:
    """What a version is; its files are not read for it."""
    try:
        return personas.manifest(name, version).kind
    except PersonaError:
        return "unreadable"


def _tell_current(version: "Version") -> None:
    typer.echo(f"current: {version.name} ({version.manifest.kind})")


def _show_proof(figures: dict[str, Any], texts: Any) -> None:
    """A proof's figures with the greedy answers of both sides."""
    _show({**figures, "greedy_texts": [{"trained": a, "served": b} for a, b in texts]}, True)


def _base(settings: config.Settings, path: Path) -> tuple[Path, str]:
    """The base GGUF and its hash."""
    from bot import base, checksum

    found = base.resolve(settings.engine.base, settings.data, path.resolve().parent)
    return found, checksum.digest(found)


def _with_training(settings: config.Settings, update: dict[str, Any]) -> config.Settings:
    checked = config.Training.model_validate({**settings.training.model_dump(), **update})
    return settings.model_copy(update={"training": checked})


def _night(
    settings: config.Settings, persona: str | None, path: Path, run: Path | None = None, progress: Any = None
) -> "Night":
    from bot import doctor, log
    from bot.twin import install_shipped

    doctor.require_training()
    # Nothing here may ask a hub or report to one.
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TRANSFORMERS_OFFLINE="1")
    log.setup("WARNING")
    install_shipped(settings.data / "personas")
    from training.nightly import Night

    name = persona or settings.chat.persona
    return Night(settings, name, *_base(settings, path), progress or doctor.plain_progress(), run)


def main() -> None:
    """Exit 0; 1 with one line for a known error; 2 for wrong usage."""
    try:
        app(standalone_mode=True)
    except TwinError as e:
        typer.echo(f"twin: {e}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
