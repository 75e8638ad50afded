"""Does a twin that is retrained over what it said itself drift? Ten nights over a trace in which it answers.

The first part of a history is the past. The rest is cut into ten days. On each day the twin is on in the largest scene:
there its answers stand in place of the person's, who go on speaking elsewhere. Every night a LoRA is trained, from the
base on all there is by then, or on from the night before's; it is current without a gate, and held-out moments of the
past are scored: the loss must not rise, and the reply rate there must stay. Beside them stand two nights over the same
days: as the person answered them, and with nobody answering where the twin is on. What changes there is no drift.

Every window is learned once a night. With a number of steps instead, what was read of the past hung on the draw, and
the loss rose by as much where nobody had answered (docs/likeness.md).
"""

import asyncio
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, NamedTuple

from bench.figures import Figure
from bot import checksum, config, doctor
from bot.archive import Archive
from bot.decision import decide, moment_of
from bot.engine import Request, Voice
from bot.message import Message, Origin
from bot.persona import LORA_FILE, MANIFEST_FILE, Calibration, Manifest, Personas, new_persona
from bot.prompt import ChatFormat, Renderer, exchanges, render, scene_line
from bot.serving import LlamaEngine
from training import evaluate, history, samples
from training.evaluate import Scored
from training.likeness import silence
from training.nightly import Night
from training.runs import LORA_FOLDER

NIGHTS = 10
PAST, TRACE = 1500, 1000
"""Messages learned before the first night, and answered by the twin over ten days: about five minutes a night."""
_WINDOW = 16
"""Exchanges the twin reads."""
_RATE_GAP = 0.05


class Learned(NamedTuple):
    """A night's result: its LoRA, fit, and the scores of held-out moments."""

    lora: Path
    fit: Calibration
    format: ChatFormat
    scored: list[Scored]


def figures(
    settings: config.Settings, base_path: Path, file: Path, nights: int = NIGHTS, past: int = PAST, trace: int = TRACE,
    start: Literal["fresh", "continue"] = "fresh",
) -> list[Figure]:  # fmt: skip
    """Loss and reply rate after the last night beside those after the first.

    Args:
        settings: bot.toml's.
        base_path: the base GGUF.
        file: a history of OneBot events.
        nights: how many, after the first one on the past.
        past: messages learned first.
        trace: messages answered by the twin.
        start: as in bot.toml: each night from the base, or on from the last.
    """
    work = settings.data / "bench-likeness" / f"drift-{start}"
    every, me, name = read(file, work)
    days = [every[past + trace * i // nights : past + trace * (i + 1) // nights] for i in range(nights)]
    until, digest = every[past - 1].time, checksum.digest(base_path)
    inner = settings.model_copy(
        update={
            "paths": config.Paths(data=work / "nights"),
            "training": _training(start),
            "gate": config.Gate(newest_h=0),
        }
    )
    personas = Personas(inner.data / "personas", digest)
    new_persona(personas.root, "drift", name, (me,))
    archive = Archive(inner.archive_url)
    archive.append(every[:past], "bench")
    on = max(archive.scenes(), key=lambda s: s.messages).scene
    archive.note(on, "state", "on", until + timedelta(seconds=1))
    found = [_night(inner, base_path, digest, 0)]
    answered = []
    for number, day in enumerate(days, 1):
        elsewhere = [m for m in day if m.scene != on]
        there = [m for m in day if m.scene == on and m.sender_id != me]
        answered.append(_lived(inner, archive, base_path, digest, found[-1], there, me, name, number))
        archive.append(elsewhere, "bench")
        found.append(_night(inner, base_path, digest, number))
    archive.close()
    lived = every[: past + trace]
    muted = [m for m in lived if m.time <= until or m.scene != on or m.sender_id != me]
    controls = []
    for folder, messages in (("as-it-was", lived), ("muted", muted)):
        other = inner.model_copy(update={"paths": config.Paths(data=work / folder)})
        new_persona(other.data / "personas", "drift", name, (me,))
        archive = Archive(other.archive_url)
        archive.append(messages, "bench")
        if messages is muted:
            archive.note(on, "state", "on", until + timedelta(seconds=1))
        archive.close()
        controls.append(_night(other, base_path, digest, nights))
    return _figures(found, controls, answered, start)


def _training(start: Literal["fresh", "continue"]) -> config.Training:
    return config.Training(
        start=start, num_train_epochs=1, learning_rate=5e-4, lora_dropout=0.0, per_device_train_batch_size=1,
        gradient_accumulation_steps=1, model_max_length=1024,
    )  # fmt: skip


def read(file: Path, work: Path) -> tuple[list[Message], str, str]:
    """All messages of a history, oldest first, and whose it is."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    archive = Archive(f"sqlite:///{work / 'whole.db'}")
    result = history.load(file, archive)
    ((me, _),) = result.reading.owners.most_common(1)
    every = [m for s in archive.scenes() for m in archive.history(s.scene)]
    archive.close()
    return sorted(every, key=lambda m: m.time), me, result.reading.names[me]


def _night(settings: config.Settings, base_path: Path, digest: str, number: int) -> Learned:
    """Train on all there is, export, and score what is held out."""
    made = Night(settings, "drift", base_path, digest, doctor.plain_progress(), None)
    made.train()
    lora = made.export()
    scored = made._scored(f"night {number}", base_path, lora, made.windows)
    fit = evaluate.fit_calibration(scored) or Calibration(intercept=0.0, weights={"log_odds": 1.0})
    made.personas.publish("drift", _version(made, fit))
    return Learned(lora, fit, made.format, scored)


def _version(made: Night, fit: Calibration) -> Path:
    """A night's version, for the next to go on from; judged by nothing."""
    assert made.learned.span is not None
    files = {str(p.relative_to(made.folder)): checksum.digest(p) for p in (made.folder / LORA_FOLDER).iterdir()}
    manifest = Manifest(
        version=made.folder.name, created=datetime.now(UTC).isoformat(), base=made.gguf_base, format=made.format.name,
        system_prompt=made.persona.spec.system_prompt,
        files=files | {LORA_FILE: checksum.digest(made.folder / LORA_FILE)},
        corpus={"until": made.learned.span[1].isoformat()}, calibration=fit,
    )  # fmt: skip
    (made.folder / MANIFEST_FILE).write_text(manifest.model_dump_json(), "utf-8")
    return made.folder


def _lived(
    settings: config.Settings, archive: Archive, base_path: Path, digest: str, twin: Learned,
    heard: Sequence[Message], me: str, name: str, day: int,
) -> float:  # fmt: skip
    """A day in the scene where the twin is on, its answers stored as its own; gives the part it answered."""
    if not heard:
        return 0.0
    scene, rng = heard[0].scene, random.Random(day)
    system = Personas(settings.data / "personas").spec("drift").system_prompt
    summary = next(s for s in archive.scenes() if s.scene == scene)
    renderer = Renderer(twin.format, f"{system}\n{scene_line(scene, summary.name)}", settings.zone, not scene.private)
    voice = Voice(f"drift/{day}", twin.lora, twin.format)
    people = frozenset([me])

    async def live() -> tuple[int, int]:
        engine, spoken, asked = LlamaEngine(base_path, settings.engine, digest), 0, 0
        try:
            bursts = [e.heard for e in exchanges(heard, people, settings.conversation)]
            for number, burst in enumerate(bursts):
                archive.append(burst, "bench")
                before = archive.window(scene, 200)
                window = exchanges(before, people, settings.conversation)[-_WINDOW:]
                if window[-1].said:
                    continue
                pieces = tuple(render(renderer, window, lambda _: None))
                request = Request(str(scene), voice, pieces, seed=day * 10_000 + number)
                said = [m.time for m in before if m.origin is Origin.TWIN or m.sender_id == me]
                moment = moment_of(
                    window[-1], last_spoke=said[-1] if said else None, ids=people, names=(name,), quoted=lambda _: None,
                    ours=lambda m: m.sender_id == me, zone=settings.zone, p_silent=await engine.p_silent(request),
                )  # fmt: skip
                asked += 1
                if not decide(moment, twin.fit, {}, rng.random()).speaks:
                    continue
                spoken += 1
                bubbles = [b async for b in engine.bubbles(request)][:6]
                last = burst[-1]
                archive.append(
                    [
                        replace(
                            last, id=f"twin-{day}-{number}-{i}", sender_id=me, sender_name=name, text=b, segments=(),
                            time=last.time, origin=Origin.TWIN, mentions=(), reply_to=None,
                        )
                        for i, b in enumerate(bubbles)
                        if b.strip()
                    ],
                    "bench",
                )  # fmt: skip
        finally:
            await engine.close()
        return spoken, asked

    spoken, asked = asyncio.run(live())
    return spoken / asked if asked else 0.0


def _figures(
    found: Sequence[Learned], controls: Sequence[Learned], answered: Sequence[float], start: str
) -> list[Figure]:
    told = (found[0], found[-1], *controls)
    of_past = {x.key for x in found[0].scored if x.label.split is samples.Split.TEST}
    kept = [[x for x in night.scored if x.key in of_past] for night in told]
    rates = [silence.rates(evaluate.points(scored, night.fit))["all"] for scored, night in zip(kept, told, strict=True)]
    n = len(found) - 1
    moved = rates[1].twin.value - rates[0].twin.value
    rows = [
        Figure(f"drift, {start}: reply rate after {n} nights", rates[1].twin.value, "", "after the first",
               rates[0].twin.value, n=rates[1].twin.n),
        Figure(f"drift, {start}: change of the reply rate", moved, "", goal=_RATE_GAP, met=abs(moved) <= _RATE_GAP),
        Figure(f"drift, {start}: reply rate less the person's", rates[1].gap.value, "", "answered by the person",
               rates[2].gap.value, goal=_RATE_GAP, met=abs(rates[1].gap.value) <= _RATE_GAP, n=rates[1].gap.n),
        Figure(f"drift, {start}: answered where the twin is on, last day", answered[-1], "", "first day", answered[0]),
    ]  # fmt: skip
    for name, night, goal in (
        (f"after {n} nights less after the first", kept[1], 0.0),
        ("of the days as the person answered them, less the same", kept[2], None),
        ("of the days with nobody answering there, less the same", kept[3], None),
    ):
        rise = evaluate.paired_difference(night, kept[0])
        if rise is not None:
            title = f"drift, {start}: held-out loss {name} [{rise.low:.3f}, {rise.high:.3f}]"
            met = None if goal is None else rise.value <= goal
            rows.append(Figure(title, rise.value, "nats/token", goal=goal, met=met, n=rise.n))
    return rows
