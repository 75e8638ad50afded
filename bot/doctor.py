"""What a user is told in a terminal: the welcome, what works on this machine, how far long work is."""

import asyncio
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from bot import base as base_file
from bot import checksum, port, processors
from bot.archive import Archive
from bot.config import Settings, access_token, websocket_url
from bot.engine import Request, Voice
from bot.errors import TrainingError, TwinError
from bot.llama import Build, Model, build
from bot.persona import Personas
from bot.progress import progress_bar as progress_bar
from bot.prompt import Exchange, Renderer
from bot.twin import install_shipped, start_engine

TRAINING_PACKAGES = ("torch", "transformers", "peft", "trl", "gguf", "sklearn", "matplotlib")
_GPU_BUILDS = {"an NVIDIA GPU (with the CUDA toolkit)": "CUDA", "an AMD GPU (with ROCm)": "HIP", "others": "VULKAN"}
"""GPUs, and llama.cpp's name of what is built for them; on Macs Metal is always built."""
_FEATURES = {
    "avx2": "AVX2", "fma": "FMA", "f16c": "F16C", "avx_vnni": "AVX_VNNI", "avx512f": "AVX512",
    "avx512_vnni": "AVX512_VNNI", "avx512_bf16": "AVX512_BF16", "asimddp": "DOTPROD", "i8mm": "MATMUL_INT8",
    "sve": "SVE",
}  # fmt: skip
"""What Linux calls a feature of the processor that llama.cpp gains by → llama.cpp's name. (AMX is left out on purpose.)
"""
TRAINING_MISSING = (
    "training is not installed here (missing: {missing}); nights need it: "
    "`make run TRAIN=1`, or `pip install '.[train]'`"
)
Report = Callable[[str, int, int, str], None]
"""Progress of long work: (step, done, total, words)."""


@dataclass(frozen=True)
class Check:
    """One thing looked at: whether it works, what was found or what to do, whether nothing works without it."""

    name: str
    ok: bool
    text: str
    needed: bool = True


def welcome(settings: Settings) -> str:
    """What `twin run` prints first: where clients connect, the token, what to paste into NapCat, how to talk now.

    The token itself is shown on a terminal only: elsewhere this ends in a service's journal.
    """
    token, file = access_token(settings)
    kept = f"  (kept in {file})" if file else ""
    if token and not sys.stdout.isatty():
        token, kept = f"see {file}" if file else "as configured", ""
    napcat = {
        "name": "qqtwin", "enable": True, "url": websocket_url(settings), "token": token,
        "messagePostFormat": "array", "reportSelfMessage": True, "reconnectInterval": 5000,
    }  # fmt: skip
    return "\n".join(
        [
            f"OneBot clients connect to  {websocket_url(settings)}",
            f"Access token               {token or '(none)'}{kept}",
            "NapCat → 网络配置 → WebSocket 客户端, paste:",
            "  " + json.dumps(napcat, ensure_ascii=False),
            "Talk right now, in another terminal:  .venv/bin/twin chat",
            "",
        ]
    )


def missing_for_training() -> list[str]:
    """Names of the packages a night needs that are not installed."""
    return [name for name in TRAINING_PACKAGES if importlib.util.find_spec(name) is None]


def require_training() -> None:
    """Raise TrainingError with the remedy where training is not installed."""
    if missing := missing_for_training():
        raise TrainingError(TRAINING_MISSING.format(missing=", ".join(missing)))


def examine(settings: Settings, root: Path) -> list[Check]:
    """Look at everything a twin needs."""
    return [
        Check("python", sys.version_info >= (3, 11), sys.version.split()[0]),
        _attempt("base", lambda: _base(settings, root)),
        *([_attempt("remote", lambda: _remote(settings, root))] if settings.engine.backend == "remote" else []),
        _attempt("archive", lambda: _archive(settings)),
        _attempt("personas", lambda: _persona_rows(settings, root)),
        _attempt("token", lambda: f"in {access_token(settings)[1] or 'bot.toml or environment'}"),
        _port(settings),
        _disk(settings),
        _training(),
        Check("processor", True, _processors(settings), needed=False),
        Check("llama.cpp", True, _built(), needed=False),
    ]


def _attempt(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except TwinError as e:
        return Check(name, False, str(e))


def _base(settings: Settings, root: Path) -> str:
    if not settings.engine.reads_base:
        return f"not needed here: the server's model is rendered as {settings.engine.remote_format}"
    path = base_file.resolve(settings.engine.base, settings.data, root)
    model = Model.of(path, settings.engine)  # mapped: of a whole file hardly anything is read
    try:
        return f"{path} ({model.architecture}, rendered as {model.format.name})"
    finally:
        model.close()


def _processors(settings: Settings) -> str:
    """What there is, what this process may use of it, and what it uses."""
    there, usable = os.cpu_count() or 1, processors.usable()
    few = f", of which this process may use {usable}" if usable < there else ""
    return f"{there} processors{few}; {settings.engine.n_threads or processors.evaluating()} threads answer"


def _remote(settings: Settings, root: Path) -> str:
    """Ask the server for P(silent) of an empty chat, which needs all that answers need."""
    engine = start_engine(settings, root)
    renderer = Renderer(engine.format, "", settings.zone, group=False)
    voice = Voice(f"{settings.chat.persona}/doctor", None, engine.format)
    request = Request("doctor", voice, [*renderer.opening(), *renderer.heard(Exchange(), lambda _: None, first=True)])

    async def look() -> None:
        try:
            await engine.p_silent(request)
        finally:
            await engine.close()

    asyncio.run(look())
    return f"{settings.engine.remote_url} answers, with the probabilities P(silent) is read from"


def _archive(settings: Settings) -> str:
    archive = Archive(settings.archive_url)
    scenes = archive.scenes()
    archive.close()
    return f"{sum(s.messages for s in scenes)} messages in {len(scenes)} scenes"


def _persona_rows(settings: Settings, root: Path) -> str:
    install_shipped(settings.data / "personas")
    digest = None
    if settings.engine.reads_base:
        digest = checksum.digest(base_file.resolve(settings.engine.base, settings.data, root))
    personas = Personas(settings.data / "personas", digest)
    rows = []
    for name in personas.names():
        loaded = personas.load(name)
        rows.append(f"{name} ({loaded.version.name if loaded.version else loaded.refused or 'untrained'})")
    personas.find(settings.chat.persona)
    return ", ".join(rows)


def _port(settings: Settings) -> Check:
    if why := port.hindrance(settings.onebot.host, settings.onebot.port):
        text = f"{settings.onebot.port} is taken (is the daemon running?); set [onebot] port ({why})"
        return Check("port", False, text, needed=False)
    return Check("port", True, f"{settings.onebot.port} is free")


def _disk(settings: Settings) -> Check:
    settings.data.mkdir(parents=True, exist_ok=True)
    free_gb = shutil.disk_usage(settings.data).free / 1e9
    return Check("disk", free_gb > 3, f"{free_gb:.0f} GB free; a night needs about 3", needed=False)


def _training() -> Check:
    missing = missing_for_training()
    text = TRAINING_MISSING.format(missing=", ".join(missing)) if missing else "installed"
    return Check("training", not missing, text, needed=False)


def _built() -> str:
    try:
        processor = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:  # not Linux
        processor = ""
    version = importlib.metadata.version("llama-cpp-python")
    return built(build(), processor, shutil.which("nvidia-smi") is not None, version)


def built(found: Build, processor: str, nvidia: bool, version: str) -> str:
    """What llama.cpp was built with, and what it would take to get more.

    Args:
        found: the build.
        processor: /proc/cpuinfo, as far as there is one.
        nvidia: whether an NVIDIA driver is installed.
        version: of llama-cpp-python, which a rebuild keeps.
    """
    rebuild = f"{sys.executable} -m pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python=={version}"
    told = [f"{version}, built for {', '.join(found.backends)} ({' '.join(found.features)})"]
    words = set(processor.split())
    if unused := [name for word, name in _FEATURES.items() if word in words and name not in found.features]:
        told.append(f"it was built for other processors, this one has {' '.join(unused)} as well: {rebuild}")
    if found.gpu:
        told.append("a GPU takes layers ([engine] n_gpu_layers)")
    elif {"cuda", "hip", "vulkan", "metal", "sycl", "musa"}.intersection(found.backends):
        told.append("it finds no GPU: are driver and device visible here?")
    else:
        ways = "; ".join(f"{gpu} CMAKE_ARGS=-DGGML_{name}=on" for gpu, name in _GPU_BUILDS.items())
        here = "there is an NVIDIA GPU, which it cannot use" if nvidia else "it uses no GPU"
        told.append(f"{here}. To build it for one, which takes minutes: {ways}, each followed by {rebuild}")
    return ". ".join(told)


def be_idle() -> None:
    """Give this process the least priority there is: beside a trainer at normal priority decoding is 12 x slower."""
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    elif hasattr(os, "nice"):
        os.nice(19)
    else:
        import ctypes

        idle_priority_class = 0x40
        kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
        kernel.SetPriorityClass(kernel.GetCurrentProcess(), idle_priority_class)


def plain_progress() -> Report:
    """Progress as plain lines on stderr."""

    def report(step: str, done: int, total: int, words: str) -> None:
        count = f" {done}/{total}" if total else ""
        typer.echo(f"{step}{count} {words}".rstrip(), err=True)

    return report


def json_progress() -> Report:
    """Progress as JSON lines on stdout, for the daemon that started this process."""

    def report(step: str, done: int, total: int, words: str) -> None:
        line: dict[str, Any] = {"step": step, "done": done, "total": total, "text": words}
        typer.echo(json.dumps(line, ensure_ascii=False))
        sys.stdout.flush()

    return report
