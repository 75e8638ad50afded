"""Many personas on one base: first use, memory, what a switch costs, how often busy ones pay for it; a merged one."""

import asyncio
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import psutil

from bench.engine import Stage
from bench.figures import Figure, at_most, in_turn, medians, show
from bot import base, checksum, config
from bot.engine import Request, Voice
from bot.persona import Personas
from bot.twin import install_shipped

_RUNS, _PERSONAS, _BUSY = 9, 20, 4
_BUSY_RUNS, _BUSY_TOKENS = 5, 300
"""How often, and how many tokens each of the busy ones draws then: what begins and ends such a run weighs little."""


def main(settings: config.Settings, root: Path, *, full: bool, as_json: bool) -> None:
    """Measure everything and print it.

    Args:
        settings: bot.toml's.
        root: its folder.
        full: nothing more.
        as_json: for programs.
    """
    path = base.resolve(settings.engine.base, settings.data, root)
    install_shipped(settings.data / "personas")
    digest = checksum.digest(path)
    version = Personas(settings.data / "personas", digest).find(settings.chat.persona).version
    if version is None or version.lora is None:
        raise SystemExit("the persona of [chat] persona has no LoRA to measure with")
    chosen = settings.engine.model_copy(
        update={"n_ctx": 4096, "kv_tokens": 16384, "deadline_s": 600.0, "lora_mb": 10_000}
    )
    stage = Stage(path, chosen, digest, version.lora)
    with tempfile.TemporaryDirectory() as folder:
        copies = [Path(shutil.copy2(version.lora, Path(folder) / f"{i}.gguf")) for i in range(_PERSONAS)]
        figures = [*_first_use(stage, copies), _switch(stage, copies), _busy(stage, copies[:_BUSY])]
        figures += _merged(stage, Path(shutil.copy2(path, Path(folder) / "model.gguf")), figures[1])
    stage.close()
    show("personas", figures, as_json=as_json, of=stage.ran_with)


def _first_use(stage: Stage, copies: list[Path]) -> list[Figure]:
    """Load time beside reading the file, and resident memory of each further persona."""
    # Loaded and held on the bare model: a switch makes llama.cpp lay out its buffers anew, and the megabytes that come
    # and go with that hide the LoRA's own.
    times, handles, process = [], [], psutil.Process()
    before = process.memory_info().rss
    for lora in copies:
        began = time.perf_counter()
        handles.append(stage.model.load_lora(lora))
        times.append((time.perf_counter() - began) * 1e3)
    mean = (process.memory_info().rss - before) / 1e6 / len(copies)
    for handle in handles:
        stage.model.free_lora(handle)
    read, _ = medians(5, lambda: _read_ms(copies[0]))
    size = copies[0].stat().st_size / 1e6
    middle = sorted(times)[len(times) // 2]
    return [
        Figure("first use of a LoRA beyond reading its file", middle - read, "ms", goal=20, met=middle - read < 20,
               n=len(times)),
        at_most("memory of a further persona, mean of 20", "MB", mean, "its file", size, 1.2, n=len(copies)),
    ]  # fmt: skip


def _read_ms(file: Path) -> float:
    began = time.perf_counter()
    file.read_bytes()
    return (time.perf_counter() - began) * 1e3


def _switch(stage: Stage, copies: list[Path]) -> Figure:
    """One token of a warm scene after another persona spoke, beside the same without; the bare context's own cost."""
    context, model = stage.bare, stage.model
    other = model.load_lora(copies[0])
    context.use(stage.handle)
    context.keep(0, 0)
    context.decode([(5, 0, i, i == 63) for i in range(64)])

    def step(lora: object) -> float:
        began = time.perf_counter()
        context.use(lora)
        context.decode([(5, 0, 64, True)])
        taken = (time.perf_counter() - began) * 1e3
        context.keep(0, 64)
        return taken

    def switched() -> float:
        context.use(other)
        context.decode([(5, 1, 0, True)])
        context.keep(1, 0)
        return step(stage.handle)

    value, peer, spread = in_turn(_RUNS, switched, lambda: step(stage.handle))
    context.use(stage.handle)
    model.free_lora(other)
    return Figure("a decode after a switch of persona", value, "ms", "without a switch", peer, n=_RUNS, spread=spread)


def _merged(stage: Stage, copy: Path, lora_memory: Figure) -> list[Figure]:
    """A persona that is a model of its own: first use, memory beside a LoRA's, a switch to it while both are loaded.

    A copy of the base stands for it: merging changes the numbers in a file, not their count.
    """
    turns = ["在吗", "嗯", "讲个故事"]
    own = stage.request("own", turns, voice=Voice("merged/copy", None, stage.format, copy))
    bare = stage.request("bare", turns, voice=Voice("bare/base", None, stage.format))
    process = psutil.Process()
    before, began = process.memory_info().rss, time.perf_counter()
    stage.wait(stage.engine.p_silent(own))
    first = (time.perf_counter() - began) * 1e3
    resident = (process.memory_info().rss - before) / 1e6

    def look(request: Request) -> float:
        """The last token of a warm scene, evaluated again."""
        began = time.perf_counter()
        stage.wait(stage.engine.p_silent(request))
        return (time.perf_counter() - began) * 1e3

    def switched() -> float:
        look(bare)
        return look(own)

    look(own)
    value, peer, spread = in_turn(_RUNS, switched, lambda: look(own))
    counted = stage.wait(_counted(stage, own.voice)) / 1e6
    return [
        Figure("first use of a merged persona, its prompt read", first, "ms"),
        Figure("memory of a merged persona", resident, "MB", "of a LoRA persona", lora_memory.value),
        Figure("memory of a merged persona", resident, "MB", "its file and cache, as models_mb counts", counted),
        Figure("a look after a switch from the base to a merged persona", value, "ms", "without a switch", peer,
               n=_RUNS, spread=spread),
    ]  # fmt: skip


async def _counted(stage: Stage, voice: Voice) -> int:
    async with stage.engine.models.using(voice) as served:
        return served.n_bytes


def _busy(stage: Stage, loras: list[Path]) -> Figure:
    """Four personas answering at once: the share of decodes that pay for a switch."""
    batcher, shares = stage.engine.base.batcher, []
    for run in range(_BUSY_RUNS):
        asked = [
            stage.request(f"busy{i}", ["在吗", "嗯", f"讲{run}个故事"], max_tokens=_BUSY_TOKENS, lora=lora)
            for i, lora in enumerate(loras)
        ]

        async def warm(asked: list[Request] = asked) -> None:
            await asyncio.gather(*(stage.engine.p_silent(r) for r in asked))

        stage.wait(warm())
        steps, switches = batcher.steps, batcher.switches
        stage.draw(asked)
        shares.append((batcher.switches - switches) / (batcher.steps - steps) * 100)
    share = statistics.median(shares)
    spread = (max(shares) - min(shares)) / share
    name = f"decodes that pay for a switch, {_BUSY} personas busy, {_BUSY_TOKENS} tokens each"
    return Figure(name, share, "%", goal=5, met=share < 5, n=_BUSY_RUNS, spread=spread)
