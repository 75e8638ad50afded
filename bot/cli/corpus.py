"""`twin corpus …`: what the archive would teach."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bot import config
from bot.cli.options import CONFIG, ConfigOption, JsonOption, PersonaOption, personas_of, show
from bot.errors import TwinError

if TYPE_CHECKING:
    from training.corpus import Corpus

PREVIEW_LENGTH = 512
"""Tokens of a window shown where the device would choose; to ask it would take torch."""
app = typer.Typer(no_args_is_help=True, help="What the archive would teach, before any training.")


@app.command("stats")
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
    from training import modelclean, stats

    settings = config.load(config_path)
    built = _corpus(settings, persona).of_logs()
    found = stats.figures(built, lambda part: modelclean.chosen(part, settings))
    if as_json:
        show(found, as_json)
    else:
        typer.echo(stats.in_words(found))
    if plots is not None:
        doctor.require_training()
        from training import plots as drawn

        drawn.write(built, plots)


@app.command("preview")
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
    spec, rules = personas_of(settings).find(persona or settings.chat.persona).spec, settings.training
    built = _corpus(settings, persona)
    path = base.resolve(settings.engine.base, settings.data, config_path.resolve().parent)
    model = Model(path, vocab_only=True)
    how = preview.green if sys.stdout.isatty() else preview.bracketed
    try:
        windows = samples.windows(
            built, model, model.format, spec.system_prompt, rules.model_max_length or PREVIEW_LENGTH
        )
        for window in preview.chosen(windows, n, seed):
            typer.echo(f"──── {window.scene}, {len(window.ids)} tokens")
            typer.echo(preview.text(window, lambda token: model.piece(token, control=True), rules, how) + "\n")
    finally:
        model.close()


@app.command("clean")
def corpus_clean(
    examples: Annotated[int, typer.Option("--show", min=0, help="Examples of each reason: what people wrote.")] = 0,
    by_model: Annotated[
        bool,
        typer.Option(
            "--model",
            help="First have the model of [cleaning] judge what it has not yet: what people wrote goes there.",
        ),
    ] = False,
    persona: PersonaOption = None,
    as_json: JsonOption = False,
    config_path: ConfigOption = CONFIG,
) -> None:
    """Count the answers that [corpus] and [cleaning] keep from being trained, by reason; the archive stays as it is."""
    from bot import doctor
    from training import judging, stats

    settings = config.load(config_path)
    told: dict[str, Any] = {}
    if by_model:
        with doctor.progress_bar("ask the model") as progress:
            told = judging.judged(
                _corpus(settings, persona, as_judged=False), settings, lambda _, *done: progress(*done)
            )
    built = _corpus(settings, persona)
    found: dict[str, Any] = {name: built.counts.get(name, 0) for name in ("turns", *stats.CLEANED)}
    shown = stats.examples(built, examples) if examples else {}
    if as_json:
        show(found | ({"model": told} if told else {}) | ({"examples": shown} if examples else {}), as_json)
        return
    typer.echo(f"{found['turns']:,} answers; left out or changed: {stats.cleaned_in_words(found)}")
    if told:
        show({"the model": told}, False)
    for reason, those in shown.items():
        typer.echo(f"  {reason}")
        for words in those:
            typer.echo("    " + " → ".join(" / ".join(w.split("\n")) for w in words))


def _corpus(settings: config.Settings, persona: str | None, *, as_judged: bool = True) -> "Corpus":
    """What a persona would learn; `as_judged`: with what the model of [cleaning] has said."""
    from bot import stickers
    from bot.archive import Archive
    from training import corpus, modelclean, sets

    found = personas_of(settings).find(persona or settings.chat.persona)
    archive = Archive(settings.archive_url)
    try:
        built = corpus.build(
            archive, found.spec.people, found.spec.names, settings.conversation, cleaning=settings.corpus,
            stickers=stickers.names(settings),
        )  # fmt: skip
    finally:
        archive.close()
    if as_judged:
        built = modelclean.cleaned(built, settings)
    folder = found.folder / sets.FOLDER
    return sets.joined(built, folder, sets.stored(folder), settings.training.max_set_dialogues, settings.corpus)


@app.command("export")
def corpus_export(
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    form: Annotated[
        str,
        typer.Option("--format", help="sharegpt, openai or alpaca: samples; chatlab: every message, a file a scene."),
    ] = "sharegpt",
    split: Annotated[str, typer.Option(help="Samples: train, tune, test or all.")] = "train",
    silences: Annotated[bool, typer.Option("--silences", help="Samples: keep silences, as empty answers.")] = False,
    pairs: Annotated[
        bool,
        typer.Option(
            "--pairs", help="Samples: one question and one answer each; in groups the question is [corpus] pairing's."
        ),
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="chatlab: with numbers, addresses and the like, not redacted.")
    ] = False,
    persona: PersonaOption = None,
    as_json: JsonOption = False,
    config_path: ConfigOption = CONFIG,
) -> None:
    """Archive → files that other trainers, or ChatLab, read. They hold what people wrote."""
    from datetime import UTC, datetime

    from bot import stickers
    from bot.archive import Archive
    from training import chatlab, corpus, modelclean, sharing
    from training.samples import Split

    if form not in (*sharing.FORMS, "chatlab"):
        raise TwinError(f"--format {form!r}: must be {', '.join(sharing.FORMS)} or chatlab")
    if raw and form != "chatlab":
        raise TwinError("--raw is of --format chatlab; what samples hold is said by [corpus] redact in bot.toml")
    if pairs and silences:
        raise TwinError("--silences keeps answers that are empty, and --pairs has none: leave out one of the two")
    if split not in (*Split, "all"):
        raise TwinError(f"--split {split!r}: must be {', '.join(Split)} or all")
    settings = config.load(config_path)
    found = personas_of(settings).find(persona or settings.chat.persona)
    archive = Archive(settings.archive_url)
    try:
        if form == "chatlab":
            files = chatlab.export(archive, found.spec.people, out, datetime.now(UTC), raw=raw)
            shown: dict[str, Any] = {"files": {str(file): count for file, count in files}}
        else:
            built = corpus.build(
                archive, found.spec.people, found.spec.names, settings.conversation, cleaning=settings.corpus,
                stickers=stickers.names(settings),
            )  # fmt: skip
            built = modelclean.cleaned(built, settings)
            splits = tuple(Split) if split == "all" else (Split(split),)
            prompt = found.spec.system_prompt
            if pairs:
                talks = sharing.pairs(built, prompt, splits, lambda part: modelclean.chosen(part, settings))
            else:
                talks = sharing.talks(built, prompt, splits, silences=silences)
            name = "_".join([found.name, form, *(["pairs"] if pairs else ["silences"] if silences else []), split])
            file, samples, answers = sharing.write(talks, form, out, name)
            shown = {"file": str(file), "samples": samples, "answers": answers}
    finally:
        archive.close()
    show(shown, as_json)
