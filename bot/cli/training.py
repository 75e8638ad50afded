"""`twin train`, `twin eval` and `twin night`."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from bot import config
from bot.cli.options import CONFIG, ConfigOption, PersonaOption, base_of, night_of, personas_of, show
from bot.errors import ConfigError, TwinError
from bot.progress import progress_bar

if TYPE_CHECKING:
    from training.nightly import Night


def train(
    persona: PersonaOption = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps, whatever --epochs says.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, nf4, int8, fp8 or none (as computed).")] = None,
    epochs: Annotated[float | None, typer.Option(min=0.01, help="Passes over the samples; unset: chosen.")] = None,
    rank: Annotated[int | None, typer.Option("--r", min=1, help="LoRA rank; unset: chosen.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate; unset: chosen.")] = None,
    start: Annotated[str | None, typer.Option(help="fresh, or continue: from the serving version's LoRA.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    deepspeed: Annotated[
        str | None, typer.Option(help="A DeepSpeed configuration; zero2: the shipped one. Under torchrun.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume/--anew", help="Go on with a run that was broken off.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be trained; load no weights.")] = False,
    config_path: ConfigOption = CONFIG,
) -> None:
    """Archive → run folder with a PEFT LoRA and its loss curve. What is unset in bot.toml is chosen, and said."""
    wanted = {
        "max_steps": max_steps, "precision": precision, "num_train_epochs": epochs, "r": rank, "start": start,
        "learning_rate": learning_rate, "seed": seed,
    }  # fmt: skip
    settings = _with_training(config.load(config_path), {k: v for k, v in wanted.items() if v is not None})
    night = night_of(settings, persona, config_path)
    if dry_run:
        for line in night.targets():
            typer.echo(line)
        return
    from training import world

    night.deepspeed = _deepspeed(deepspeed)
    try:
        if not world.is_first():
            _run_of(night, resume=resume)
            return
        with progress_bar("train") as bar:
            night.progress = _with_bar(night.progress, bar)
            run = _run_of(night, resume=resume)
        for line in _ended(run, night.persona.name):
            typer.echo(line, err=True)
        typer.echo(f"run: {run}")
    finally:
        world.leave()


def _with_bar(lines: Callable[..., None], bar: Callable[[int, int], None]) -> Callable[..., None]:
    """Progress as lines, and as a bar below them."""

    def report(step: str, done: int, total: int, words: str) -> None:
        lines(step, done, total, words)
        if step == "train" and total:
            bar(done, total)

    return report


def _ended(run: Path, persona: str) -> list[str]:
    """What came of a training, and what to do with it."""
    record = json.loads((run / "train.json").read_text("utf-8"))
    best = min(record["tune"], key=lambda x: x["loss"], default=None)
    unchanged = ": no step made it better, the LoRA is the one it went on from" if record["best_step"] == 0 else ""
    return [
        "held-out loss: not measured, nothing is held out yet" if best is None else
        f"held-out loss: {best['loss']:.3f} nats per token at step {best['step']} of {record['steps']}{unchanged}",
        f"next: twin export lora {run}, which proves it in llama.cpp; or twin night --persona {persona}, which trains, "
        "judges and publishes",
    ]  # fmt: skip


def _run_of(night: "Night", *, resume: bool) -> Path:
    """Train, in the folder that the first process chooses, and no two trainings of a persona at once."""
    from training import world
    from training.lock import one_at_a_time

    lock = night.settings.data / "runs" / night.persona.name / "train.lock"
    with ExitStack() as held:

        def begin() -> Path:
            what = f"training of persona {night.persona.name!r}"
            held.enter_context(one_at_a_time(lock, what, "wait for it, or end it with Ctrl-C"))
            return night.folder if resume else night.new_folder()

        night.__dict__["folder"] = world.first(begin)
        return night.train()


def _deepspeed(name: str | None) -> Path | None:
    """The configuration of this name or path."""
    if name is None:
        return None
    import importlib.util

    from training import world

    if importlib.util.find_spec("deepspeed") is None:
        raise TwinError("--deepspeed needs DeepSpeed, which is not installed: pip install deepspeed")
    file = world.ZERO2 if name == "zero2" else Path(name)
    if not file.is_file():
        raise TwinError(f"--deepspeed {name!r} is no file; give zero2, or a DeepSpeed configuration")
    return file.resolve()


def evaluate(
    persona: PersonaOption = None,
    version: Annotated[str | None, typer.Option(help="Version; default: the one serving.")] = None,
    blind: Annotated[
        bool, typer.Option("--blind", help="Make a page of pairs, real answer and twin's, to pick the real one.")
    ] = False,
    pairs: Annotated[int, typer.Option(min=1, help="With --blind: pairs at most.")] = 20,
    blind_out: Annotated[Path, typer.Option(help="With --blind: the page.")] = Path("blind.html"),
    blind_result: Annotated[
        Path | None, typer.Option(help="Take in the file that the page saved; prints the score with its interval.")
    ] = None,
    config_path: ConfigOption = CONFIG,
) -> None:
    """Held-out figures of a version, as JSON; or a blind test of it."""
    settings = config.load(config_path)
    if blind_result is not None:
        show(_blind_result(settings, blind_result), True)
    elif blind:
        typer.echo(_blind_page(settings, persona, version, pairs, blind_out, config_path))
    else:
        show(night_of(settings, persona, config_path).evaluate_version(version), True)


def _blind_result(settings: config.Settings, file: Path) -> dict[str, Any]:
    from bot import blind
    from bot.twin import now

    test = blind.answered(settings.data, file)
    score = blind.take(settings.data, personas_of(settings), test, now())
    return {"persona": test.persona, "version": test.version, **score}


def _blind_page(
    settings: config.Settings, persona: str | None, version: str | None, pairs: int, out: Path, config_path: Path
) -> str:
    from dataclasses import replace

    from bot import blind, doctor
    from bot.persona import Personas

    doctor.require_training()
    from training.blind import prepare

    base, base_sha256 = base_of(settings, config_path)
    personas = Personas(personas_of(settings).root, base_sha256)
    found = personas.find(persona or settings.chat.persona)
    if version is not None:
        found = replace(found, version=personas.verify(found.name, version))
    test = prepare(settings, found, base, base_sha256, pairs)
    blind.save(settings.data, test)
    out.write_text(blind.page(test), "utf-8")
    equal = f"; at {test.equal} more moments it said just what the person had" if test.equal else ""
    return f"wrote {out} ({len(test.trials)} pairs{equal}); or type /blind to the bot"


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
    outcome = night_of(settings, persona, config_path, progress=lines).run(force=force)
    if as_json:
        typer.echo(json.dumps({"outcome": outcome.kind, "version": outcome.version, "summary": outcome.summary}))
    else:
        typer.echo(outcome.summary)
    if outcome.kind == "failed":
        raise typer.Exit(1)


def _with_training(settings: config.Settings, update: dict[str, Any]) -> config.Settings:
    """Settings with what the command line says.

    Raises:
        ConfigError: it says what no setting can be.
    """
    try:
        checked = config.Training.model_validate({**settings.training.model_dump(), **update})
    except ValidationError as e:
        faults = [f"{'.'.join(map(str, f['loc']))} = {f['input']!r}: {f['msg']}" for f in e.errors()]
        raise ConfigError("; ".join(faults)) from None
    return settings.model_copy(update={"training": checked})
