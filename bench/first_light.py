"""The whole path in figures: start, rates, returning chats, LoRA switches, memory, training, held-out loss, silence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import daemon, night
from bench.figures import Figure, medians, seconds, show
from bench.history import family
from bot import base, checksum, config
from bot.llama import Context, Model, Sampler
from bot.persona import Manifest, Personas, Sampling
from bot.twin import install_shipped

_PROMPT_TOKENS, _NEW_TOKENS, _HISTORY_TOKENS = 512, 64, 600
_RUNS = 5
_TEXT = "今天下雨了，晚上一起去吃面吧，我请客，你把伞带上。"


def main(settings: config.Settings, root: Path, *, full: bool, as_json: bool) -> None:
    """Measure everything and print it.

    Args:
        settings: bot.toml's.
        root: its folder.
        full: also decoding beside a night, and a night on the family history where there is one.
        as_json: for programs.
    """
    path = base.resolve(settings.engine.base, settings.data, root)
    install_shipped(settings.data / "personas")
    persona = Personas(settings.data / "personas", checksum.digest(path)).find(settings.chat.persona)
    figures = [*_install(root), *_start(settings)]
    model = Model(path)
    lora = persona.version.lora if persona.version else None
    figures += _rates(model, lora)
    figures += _returning(model, lora)
    figures += _switch(model, lora)
    if full:
        figures += night.beside(settings, lambda: _decode_rate(model, lora))
    model.close()
    if persona.version:
        figures += _learned("demo", persona.version.manifest)
    if full:
        figures += [f for manifest in family(settings, path) for f in _learned("family", manifest)]
    show("first-light", figures, as_json=as_json, of=settings.engine)


def _install(root: Path) -> list[Figure]:
    """What the Makefile noted of the first installation, the compilation of llama.cpp included."""
    note = root / ".venv" / ".install_seconds"
    if not note.is_file():
        return []
    return [Figure("install (make run, first time)", float(note.read_text()), "s")]


def _start(settings: config.Settings) -> list[Figure]:
    """Start of the daemon to the first accepted connection, and what it holds in memory."""
    times, sizes = zip(*(daemon.started(settings) for _ in range(3)), strict=True)
    middle = sorted(times)[1]
    return [
        Figure("start to listening, model loaded", middle, "s", n=3, spread=(max(times) - min(times)) / middle),
        Figure("memory of the daemon with model", sorted(sizes)[1], "MB", n=3),
        daemon.without_model(settings),
    ]


def _rates(model: Model, lora: Path | None) -> list[Figure]:
    """Prompt and decode rates of a context with sampler, beside a bare llama_decode loop without one."""
    found = []
    for name, path in (("bare base", None), ("with LoRA", lora)) if lora else (("bare base", None),):
        context = Context(model, 4096, 4, 512, None)
        handle = model.load_lora(path) if path else None
        context.use(handle)
        prompt, spread = medians(_RUNS, lambda c=context: _PROMPT_TOKENS / _prompt(model, c))  # type: ignore[misc]
        full, _ = medians(_RUNS, lambda c=context: _NEW_TOKENS / _decode(model, c, sample=True))  # type: ignore[misc]
        loop, wide = medians(_RUNS, lambda c=context: _NEW_TOKENS / _decode(model, c, sample=False))  # type: ignore[misc]
        found += [
            Figure(f"prompt rate, {name}", prompt, "tokens/s", n=_RUNS, spread=spread),
            Figure(f"decode rate, {name}", full, "tokens/s", "bare llama_decode loop", loop, n=_RUNS, spread=wide),
        ]
        context.use(None)
        context.close()
        if handle is not None:
            model.free_lora(handle)
    return found


def _decode_rate(model: Model, lora: Path | None) -> tuple[float, float]:
    """Median decode rate with the sampler, tokens/s, and its spread."""
    context = Context(model, 4096, 4, 512, None)
    handle = model.load_lora(lora) if lora else None
    context.use(handle)
    rate = medians(_RUNS, lambda: _NEW_TOKENS / _decode(model, context, sample=True))
    context.use(None)
    context.close()
    if handle is not None:
        model.free_lora(handle)
    return rate


def _ids(model: Model, n: int) -> list[int]:
    ids = model.tokens(_TEXT * (n // 8), control=False)
    return ([model.bos] if model.bos is not None else []) + ids[: n - 1]


def _prompt(model: Model, context: Context) -> float:
    context.keep(0, 0)
    rows = [(t, 0, i, i == _PROMPT_TOKENS - 1) for i, t in enumerate(_ids(model, _PROMPT_TOKENS))]
    return seconds(lambda: context.decode(rows))


def _decode(model: Model, context: Context, *, sample: bool) -> float:
    """Seconds of 64 new tokens behind 128, drawn by the native chain or fixed."""
    context.keep(0, 0)
    ids = _ids(model, 128)
    context.decode([(t, 0, i, i == len(ids) - 1) for i, t in enumerate(ids)])
    sampler = Sampler(model, Sampling(), 1)

    def loop() -> None:
        for i in range(_NEW_TOKENS):
            token = context.sample(sampler) if sample else ids[i]
            context.decode([(token, 0, len(ids) + i, True)])

    taken = seconds(loop)
    sampler.close()
    return taken


def _returning(model: Model, lora: Path | None) -> list[Figure]:
    """Time to the first token when 20 new ones follow a history of 600: sequence kept, beside read again."""
    context = Context(model, 4096, 4, 512, None)
    handle = model.load_lora(lora) if lora else None
    context.use(handle)
    ids = _ids(model, _HISTORY_TOKENS + 20)

    def warm() -> float:
        context.keep(0, _HISTORY_TOKENS)
        rows = [(t, 0, i, i == len(ids) - 1) for i, t in enumerate(ids)][_HISTORY_TOKENS:]
        return seconds(lambda: context.decode(rows))

    def cold() -> float:
        context.keep(0, 0)
        rows = [(t, 0, i, i == len(ids) - 1) for i, t in enumerate(ids)]
        return seconds(lambda: [context.decode(rows[i : i + 512]) for i in range(0, len(rows), 512)])

    again, _ = medians(_RUNS, cold)
    kept, spread = medians(_RUNS, warm)
    context.use(None)
    context.close()
    if handle is not None:
        model.free_lora(handle)
    return [
        Figure("first token of a returning chat", kept * 1e3, "ms", "history read again", again * 1e3, n=_RUNS,
               spread=spread)
    ]  # fmt: skip


def _switch(model: Model, lora: Path | None) -> list[Figure]:
    """Loading a LoRA, and a switch counted to the end of the next decode, beside a decode without one."""
    if lora is None:
        return []
    loads, spread = medians(_RUNS, lambda: seconds(lambda: model.free_lora(model.load_lora(lora))))
    reload, _ = medians(3, lambda: seconds(lambda: Model(model.path).close()))
    context = Context(model, 1024, 2, 512, None)
    handle = model.load_lora(lora)
    context.decode([(t, 0, i, True) for i, t in enumerate(_ids(model, 16))][:1])

    def step(switch: Callable[[], Any]) -> float:
        def work() -> None:
            switch()
            context.decode([(5, 0, 1, True)])
            context.keep(0, 1)

        return seconds(work)

    states = [handle, None]

    def other() -> None:
        states.reverse()
        context.use(states[0])

    switched, wide = medians(_RUNS * 4, lambda: step(other))
    still, _ = medians(_RUNS * 4, lambda: step(lambda: None))
    context.use(None)
    context.close()
    model.free_lora(handle)
    return [
        Figure("LoRA load", loads * 1e3, "ms", "model load", reload * 1e3, n=_RUNS, spread=spread),
        Figure("persona switch to the end of the next decode", switched * 1e3, "ms", "decode without a switch",
               still * 1e3, n=_RUNS * 4, spread=wide),
    ]  # fmt: skip


def _learned(history: str, manifest: Manifest) -> list[Figure]:
    """What a night gave, from its manifest: the bare base and the feature baseline are the peers."""
    m, p = manifest.metrics, manifest.parity
    loss, auc = m.get("loss") or {}, m.get("auc_both") or {}
    text, features = m.get("auc_text") or {}, m.get("auc_features") or {}
    rows = [
        Figure(f"{history}: trained tokens per second", m.get("trained_tokens_per_s"), "tokens/s"),
        Figure(f"{history}: memory of the night, peak", _mb(m.get("peak_rss_bytes")), "MB"),
        Figure(f"{history}: held-out loss", loss.get("value"), "nats/token", "bare base", m.get("loss_base"),
               n=int(loss.get("n", 0))),
        Figure(f"{history}: silence AUC, text alone", text.get("value"), "", "feature baseline",
               features.get("value"), n=int(text.get("n", 0))),
        Figure(f"{history}: silence AUC, text and features", auc.get("value"), "", "feature baseline",
               features.get("value"), n=int(auc.get("n", 0))),
    ]  # fmt: skip
    gap = p.get("loss_gap")
    if gap is not None:
        rows.append(
            Figure(f"{history}: parity gap (served - trained)", gap, "nats/token", goal=0.03, met=abs(gap) <= 0.03)
        )
    return [row for row in rows if row.value is not None]


def _mb(value: float | None) -> float | None:
    return None if value is None else value / 1e6
