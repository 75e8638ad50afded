"""LoRA → GGUF, merge → GGUF, and what each form of one LoRA costs: held-out loss, decode rate and size."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import peft
from bench.figures import Figure, medians, seconds, show
from bot import base, config
from bot.archive import Archive
from bot.checksum import digest
from bot.llama import Context, Model
from bot.persona import Base, Persona, Personas
from bot.scorer import Scorer
from bot.twin import SHIPPED, install_shipped
from export import gguf, lora, merge, merged, parity, proof, quantize
from training import choices, corpus, device, history, samples
from training.base import checkpoint
from training.hf import HFTokenizer

_RUNS, _DECODED = 5, 64
_EVERY = 4
"""Of the held-out windows, unless `--full`."""
_KINDS = ("Q4_K_M", "Q5_K_M", "Q8_0", "F16")
_TOTAL = ("merge to F16", "Q4_K_M")


def main(settings: config.Settings, root: Path, *, full: bool, as_json: bool) -> None:
    """Measure everything and print it.

    Args:
        settings: bot.toml's.
        root: its folder.
        full: all held-out windows instead of every fourth.
        as_json: for programs.
    """
    path = base.resolve(settings.engine.base, settings.data, root)
    install_shipped(settings.data / "personas")
    persona = Personas(settings.data / "personas", digest(path)).find("xiaoman")
    if persona.version is None or persona.version.lora is None:
        raise SystemExit("the shipped persona 小满 is measured; it needs the embedded base")
    weights = checkpoint(path, settings.data / "models")
    with tempfile.TemporaryDirectory(dir=settings.data) as made:
        work = Path(made)
        tokenizer = HFTokenizer(weights)
        folder = peft.write(persona.version.lora, work / "peft")
        trained = proof.Trained(weights, folder, tokenizer.format, tokenizer)
        named = Base(file=path.name, sha256=digest(path), architecture=persona.version.manifest.base.architecture)
        figures = _lora(trained, named, work)
        figures += _merge(trained, path, named, work)
        passages = _held_out(settings, persona, tokenizer, work)[:: 1 if full else _EVERY]
        figures += _served("bare base", path, None, passages)
        for precision in ("f16", "q8_0"):
            lora.export(folder, weights, named, work / f"{precision}.gguf", lora.precision_of(precision))
            figures += _served(f"base + {precision.upper()} LoRA", path, work / f"{precision}.gguf", passages)
        for kind in _KINDS:
            figures += _served(f"merged {kind}", work / f"{kind}.gguf", None, passages)
    show("export", figures, as_json=as_json, of=settings.engine)


_CHILD = """
import json, sys, threading, time
from pathlib import Path
import psutil
from bot.persona import Base
from export import lora
peft, checkpoint, out, named = sys.argv[1:]
base, process = Base.model_validate_json(named), psutil.Process()
before = process.memory_info().rss
peak, done = [before], threading.Event()
def watch():
    while not done.wait(0.001):
        peak[0] = max(peak[0], process.memory_info().rss)
watcher = threading.Thread(target=watch)
watcher.start()
began = time.perf_counter()
lora.export(Path(peft), Path(checkpoint), base, Path(out))
taken = time.perf_counter() - began
done.set()
watcher.join()
print(json.dumps([taken, peak[0] - before]))
"""
"""In a process of its own, everything imported before: seconds and bytes beyond that."""


def _lora(trained: proof.Trained, named: Base, work: Path) -> list[Figure]:
    out = work / "lora.gguf"
    paths = map(str, (trained.peft, trained.checkpoint, out))
    command = [sys.executable, "-c", _CHILD, *paths, named.model_dump_json()]
    runs = [json.loads(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(_RUNS)]
    times, sizes = ([run[i] for run in runs] for i in (0, 1))
    took, peak = sorted(times)[_RUNS // 2], sorted(sizes)[_RUNS // 2] / 1e6
    own = out.stat().st_size / 1e6
    return [
        Figure("LoRA → GGUF", took, "s", goal=2, met=took <= 2, n=_RUNS, spread=(max(times) - min(times)) / took),
        Figure(
            "LoRA → GGUF, memory beyond the imports", peak, "MB", "the LoRA GGUF", own, 1.5, peak <= 1.5 * own, _RUNS
        ),
    ]


def _merge(trained: proof.Trained, path: Path, named: Base, work: Path) -> list[Figure]:
    """Each step once: they read and write gigabytes."""
    about = merged.about(trained, path, named.sha256, "小满", "bench", {})
    full = work / "F16.gguf"

    def silent(*_: int) -> None: ...

    def whole() -> None:
        gguf.convert(trained.checkpoint, full, "F16", about, path, merge.sums(trained.peft, trained.checkpoint))

    steps = {"merge to F16": seconds(whole)}
    for kind in (kind for kind in _KINDS if kind != "F16"):
        out = work / f"{kind}.gguf"
        steps[kind] = seconds(lambda out=out, kind=kind: quantize.quantize(full, out, kind, silent))  # type: ignore[misc]
    total = sum(steps[name] for name in _TOTAL)
    return [
        Figure("merge + F16 + Q4_K_M", total, "s", goal=60, met=total <= 60),
        *(Figure(f"of that, {name}" if name in _TOTAL else f"{name} of the F16", s, "s") for name, s in steps.items()),
    ]


def _held_out(settings: config.Settings, persona: Persona, tokenizer: HFTokenizer, work: Path) -> list[parity.Passage]:
    archive = Archive(f"sqlite:///{work / 'archive.db'}")
    history.load(SHIPPED.parent / "history.jsonl", archive)
    built = corpus.build(archive, persona.spec.people, persona.spec.names, settings.conversation)
    archive.close()
    window = choices.window(settings.training, device.here())
    windows = samples.windows(built, tokenizer, tokenizer.format, persona.system_prompt, window)
    found = []
    for one in windows:
        labels = [x for x in one.labels if x.split is not samples.Split.TRAIN]
        if labels:
            found.append(parity.Passage(one.ids, tuple(i for x in labels for i in x.trained)))
    return found


def _served(name: str, model: Path, adapter: Path | None, passages: Sequence[parity.Passage]) -> list[Figure]:
    scorer = Scorer(model, adapter, max(len(p.ids) for p in passages))
    scores = parity.scores(scorer, passages, scorer.model.end_id)
    scorer.close()
    rate, spread = _decode_rate(model, adapter)
    size = (model.stat().st_size + (adapter.stat().st_size if adapter else 0)) / 1e6
    return [
        Figure(f"{name}: held-out loss", scores.loss, "nats/token", n=len(scores.log_p)),
        Figure(f"{name}: decode", rate, "tokens/s", n=_RUNS, spread=spread),
        Figure(f"{name}: size", size, "MB"),
    ]


def _decode_rate(path: Path, adapter: Path | None) -> tuple[float, float]:
    """Greedy decoding behind 64 tokens of prompt: median tokens/s and spread."""
    model = Model(path)
    context = Context(model, 1024, 1, 256, None)
    handle = model.load_lora(adapter) if adapter else None
    context.use(handle)
    ids = model.tokens("今天下雨了，晚上一起去吃面吧，我请客。" * 8, control=False)[:64]

    def decode() -> float:
        context.keep(0, 0)
        context.decode([(t, 0, i, i == len(ids) - 1) for i, t in enumerate(ids)])

        def run() -> None:
            for position in range(len(ids), len(ids) + _DECODED):
                context.decode([(int(context.logits(1)[0].argmax()), 0, position, True)])

        return _DECODED / seconds(run)

    found = medians(_RUNS, decode)
    context.use(None)
    context.close()
    if handle is not None:
        model.free_lora(handle)
    model.close()
    return found
