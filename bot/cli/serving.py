"""`twin run` and `twin chat`: who answers, in QQ or in the terminal."""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bot import config
from bot.cli.options import CONFIG, ConfigOption, PersonaOption, to_stderr
from bot.errors import ConfigError, PersonaError

if TYPE_CHECKING:
    from bot.engine import ReplyEngine


def run(config_path: ConfigOption = CONFIG) -> None:
    """Run the daemon: OneBot clients (NapCat, LLBot, Lagrange) connect to it."""
    from bot import daemon, doctor

    settings = config.load(config_path)
    typer.echo(doctor.welcome(settings))
    daemon.serve(settings, config_path.resolve())


def chat(
    persona: PersonaOption = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="llama (GGUF), or transformers: checkpoint and PEFT LoRA; default: transformers with --model."
        ),
    ] = None,
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

    from bot import terminal
    from bot.byhand import ByHand
    from bot.twin import Twin

    if backend not in (None, "llama", "transformers"):
        raise ConfigError(f"--backend {backend!r}: must be llama or transformers")
    if merged and lora is not None:
        raise ConfigError("--lora applies a LoRA and --merged applies none; give one of them")
    if model is not None and (gguf is not None or backend == "llama"):
        raise ConfigError(
            f"--model is a checkpoint, and {'--gguf' if gguf is not None else '--backend llama'} asks for a GGUF; give "
            "one of them"
        )
    if system_prompt is not None and _is_broken(system_prompt):
        raise ConfigError("--system-prompt holds bytes that are no UTF-8; type it anew, or write it into persona.toml")
    settings = _by_hand_settings(config.load(config_path), gguf)
    root = config_path.resolve().parent
    on_torch = backend == "transformers" or model is not None
    if settings.engine.backend == "remote" and not on_torch and (merged or lora is not None):
        raise ConfigError(
            f'{"--merged" if merged else "--lora"} is of a model on this machine, and [engine] backend = "remote": add '
            "--gguf FILE or --backend transformers"
        )
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


def _is_broken(text: str) -> bool:
    """Whether a word of the command line held bytes that are no UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8") != text


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
        checkpoint = training_base.checkpoint(base_path, settings.data / "models", to_stderr)
    else:
        checkpoint = training_base.fetched(model)
    return TransformersEngine(checkpoint, None if merged else lora, settings.engine.n_ctx)
