"""`twin export …`: a run → the files llama.cpp and others serve."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bot import config
from bot.cli.options import (
    CONFIG,
    ConfigOption,
    ForceOption,
    base_of,
    night_of,
    personas_of,
    show,
    to_stderr,
    whose,
)
from bot.errors import ExportError
from bot.persona import LORA_FILE

if TYPE_CHECKING:
    from bot.persona import Manifest

app = typer.Typer(no_args_is_help=True, help="A run → the files llama.cpp serves.")
WhoseOption = Annotated[str | None, typer.Option("--persona", help="Persona; default: the one the folder is of.")]
RunArgument = Annotated[Path, typer.Argument(help="A run folder, as `twin train` printed it.")]
VersionArgument = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="A version's folder, a run a night has judged, or its merged one.")
]


@app.command("lora")
def export_lora(
    run_folder: RunArgument,
    kind: Annotated[str, typer.Option("--type", help="f16, f32 or q8_0.")] = "f16",
    out: Annotated[
        Path | None, typer.Option(help="The file; default: lora.gguf, or lora-TYPE.gguf, in the run.")
    ] = None,
    force: ForceOption = False,
    persona: WhoseOption = None,
    config_path: ConfigOption = CONFIG,
) -> None:
    """PEFT LoRA → GGUF LoRA, with the proof that llama.cpp computes the same."""
    from export import lora, place

    precision = lora.precision_of(kind)
    if file := out or (run_folder / f"lora-{precision}.gguf" if precision != "f16" else None):
        place.keep_existing(file, force=force)
    night = night_of(config.load(config_path), persona, config_path, run_folder)
    from export import proof

    if file is None:
        made = night.export_proven(force=force)
    else:
        made = proof.prove_lora(
            night.trained, night.base_path, night.gguf_base, file, precision, night.held_out, force=force
        )
    _show_proof(made.parity.model_dump(mode="json"), made.texts)
    _tell_doubts(night.manifest)
    typer.echo(f"LoRA: {file or run_folder / LORA_FILE}", err=True)


@app.command("merge")
def export_merge(
    run_folder: RunArgument,
    kind: Annotated[
        str | None, typer.Option("--type", help="F32: rounded nowhere; default: as the base is stored.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder; default: merged in the run.")] = None,
    force: ForceOption = False,
    persona: WhoseOption = None,
    config_path: ConfigOption = CONFIG,
) -> None:
    """The LoRA merged into the base's weights, proven equal: a Hugging Face checkpoint with tokenizer and template."""
    from export import place

    if kind is not None and kind.upper() != "F32":
        raise ExportError(f"a checkpoint is written as its base is stored, or in F32, not as {kind!r}")
    target = out or run_folder / "merged"
    place.keep_existing(target, force=force)
    night = night_of(config.load(config_path), persona, config_path, run_folder)
    from export import merged

    made = merged.checkpoint(
        night.trained, target, night.held_out, night.progress, float32=kind is not None, force=force
    )
    _show_proof(made.parity.model_dump(mode="json"), made.texts)
    _tell_doubts(night.manifest)
    typer.echo(f"checkpoint: {target}", err=True)


@app.command("gguf")
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
    persona: WhoseOption = None,
    config_path: ConfigOption = CONFIG,
) -> None:
    """The LoRA merged into its base as one GGUF, proven equal, in a folder that `twin persona publish` takes."""
    from export import place, quantize

    quantize.require(kind, imatrix=imatrix)
    target = out or run_folder / f"merged-{kind.lower()}"
    place.keep_existing(target, force=force)
    night = night_of(config.load(config_path), persona, config_path, run_folder)
    from export import merged

    about = merged.about(
        night.trained, night.base_path, night.base_sha256, night.persona.spec.display_name,
        f"{run_folder.resolve().name}-{kind.lower()}", night.learned.counts,
    )  # fmt: skip
    made = merged.export(
        night.trained, night.base_path, about, kind, target, night.held_out, night.progress,
        imatrix=night.tune_texts if imatrix else None, manifest=night.manifest, force=force,
    )  # fmt: skip
    _show_proof(made.parity.model_dump(mode="json"), made.texts)
    _tell_doubts(night.manifest)
    forced = "" if made.parity.as_judged else " --force, for it differs from what the night judged"
    if night.manifest and not night.manifest.gate.get("passed", True):
        forced = " --force, for the gate refused it"
    where = f"{target} (publish it: twin persona publish {night.persona.name} {target}{forced})"
    typer.echo(
        where if night.manifest else f"{target} (no night has judged the run, so it cannot be published)", err=True
    )


@app.command("modelfile")
def export_modelfile(
    folder: VersionArgument,
    out: Annotated[Path | None, typer.Option(help="The file; default: Modelfile in the folder.")] = None,
    force: ForceOption = False,
    persona: WhoseOption = None,
    config_path: ConfigOption = CONFIG,
) -> None:
    """A version → an Ollama Modelfile with the prompt it was trained with."""
    from export import modelfile, place, source

    target = out or folder / "Modelfile"
    place.keep_existing(target, force=force)
    settings = config.load(config_path)
    spec = personas_of(settings).find(whose(folder, persona, settings)).spec
    found = source.read(folder, lambda: base_of(settings, config_path))
    file = modelfile.ollama(found, spec.sampling, target, to_stderr, force=force)
    typer.echo(f"{file}; then: ollama create NAME -f {file}")


@app.command("vllm")
def export_vllm(
    folder: VersionArgument,
    out: Annotated[Path | None, typer.Option(help="The folder to make; default: vllm in FOLDER.")] = None,
    force: ForceOption = False,
    persona: WhoseOption = None,
    config_path: ConfigOption = CONFIG,
) -> None:
    """A version → a LoRA folder for vLLM, with the start command in its README."""
    from export import place, source, vllm

    target = out or folder / "vllm"
    place.keep_existing(target, force=force)
    settings = config.load(config_path)
    name = personas_of(settings).find(whose(folder, persona, settings)).name
    found = source.read(folder, lambda: base_of(settings, config_path))
    checkpoint = None
    if (model := settings.training.base) is not None:
        from training import hub

        checkpoint = hub.at_hand(model, settings.training.hub, settings.data / "models")
    typer.echo(f"{vllm.export(found, name, target, checkpoint, to_stderr, force=force)}: read its README.md")


def _tell_doubts(judged: "Manifest | None") -> None:
    """What speaks against giving away what came of a run, where a night has judged it."""
    from export.source import doubts

    for doubt in doubts(judged) if judged is not None else ():
        to_stderr(doubt)


def _show_proof(figures: dict[str, Any], texts: Any) -> None:
    """A proof's figures with the greedy answers of both sides."""
    show({**figures, "greedy_texts": [{"trained": a, "served": b} for a, b in texts]}, True)
