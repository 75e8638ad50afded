"""The daemon as its user runs it: a folder with bot.toml, `python -m bot run` as a child, its log and its archive."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from bot.archive import Archive
from bot.message import Message, Scene

ROOT = Path(__file__).resolve().parents[2]
OWNER = 10001
SCENES = [*(f"private:{n}" for n in range(101, 130)), *(f"group:{n}" for n in range(201, 210))]
"""Scenes that are answered from the start; each test has its own."""


def free_port() -> int:
    """A loopback port nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def toml(sections: dict[str, dict[str, Any]]) -> str:
    """bot.toml of sections."""
    lines = []
    for name, keys in sections.items():
        lines += [f"[{name}]", *(f"{key} = {_value(value)}" for key, value in keys.items()), ""]
    return "\n".join(lines)


def persona(folder: Path, display_name: str, people: list[str], bias: float = 0.0) -> None:
    """A persona folder whose answers are always the likeliest words."""
    folder.mkdir(parents=True)
    parts = {"sampling": {"temperature": 0, "repeat_penalty": 1, "max_tokens": 40}, "reply": {"bias": float(bias)}}
    top = f'display_name = "{display_name}"\npeople = {_value(people)}\n\n'
    (folder / "persona.toml").write_text(top + toml(parts), "utf-8")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    return repr(value) if isinstance(value, int | float) else f"'{value}'"


def settings(base: Path, **changed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """bot.toml of a quick daemon: no pauses, no night."""
    sections: dict[str, dict[str, Any]] = {
        "onebot": {"superusers": [str(OWNER)]},
        "engine": {
            "base": str(base), "n_ctx": 512, "kv_tokens": 4096, "n_seq_max": 16, "n_threads": 1, "n_gpu_layers": 0,
        },
        "conversation": {"burst_gap_s": 3},
        "chat": {
            "scenes": SCENES, "debounce_s": 0.3, "delay_scale": 0.0, "hold_s": 3.0, "scene_per_minute": 100,
            "account_gap_s": 0.0, "account_per_minute": 1000, "shadowed_pause_s": 0.0,
        },
        "retrain": {"enabled": False},
        "log": {"level": "DEBUG"},
    }  # fmt: skip
    for name, keys in changed.items():
        sections[name] = {**sections.get(name, {}), **keys}
    return sections


class Daemon:
    """One installation.

    Args:
        folder: where bot.toml and data/ lie.
        sections: bot.toml; host and port are put in.
    """

    def __init__(self, folder: Path, sections: dict[str, dict[str, Any]]) -> None:
        self.folder, self.data = folder, folder / "data"
        self.port = free_port()
        self.config = folder / "bot.toml"
        onebot = {"port": self.port, **sections.get("onebot", {})}
        self.config.write_text(toml({**sections, "onebot": onebot}), "utf-8")
        self.url = f"ws://127.0.0.1:{self.port}/onebot/v11/ws"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def token(self) -> str:
        """The token the first start made."""
        return (self.data / "access_token").read_text("utf-8").strip()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop(signal.SIGKILL)

    def start(self, within_s: float = 60.0) -> None:
        """Start and wait until it listens."""
        with (self.folder / "out").open("ab") as out, (self.folder / "err").open("ab") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bot", "run", "--config", str(self.config)],
                cwd=ROOT, stdout=out, stderr=err, env=_environment(),
            )  # fmt: skip
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the daemon ended: {self.log()}"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        raise AssertionError(f"the daemon does not listen: {self.log()}")

    def stop(self, how: int = signal.SIGTERM, within_s: float = 20.0) -> int:
        """End it; gives the exit status."""
        assert self.process is not None
        self.process.send_signal(how)
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def end(self) -> None:
        """End it politely, and check that it ended so: in time, and with its archive closed."""
        # uvicorn raises the signal again once it has shut down.
        assert self.stop() in (0, -signal.SIGTERM), self.log()
        assert not (self.data / "archive.db-wal").exists()

    def run(self, *words: str, within_s: float = 300.0) -> "subprocess.CompletedProcess[str]":
        """Another `twin` command on the same bot.toml."""
        line = [sys.executable, "-m", "bot", *words, "--config", str(self.config)]
        return subprocess.run(
            line, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=within_s, check=False
        )

    def log(self) -> str:
        """Everything it logged: standard error, and the files in data/logs."""
        files = [self.folder / "err", *sorted((self.data / "logs").glob("*"))]
        return "\n".join(f.read_text("utf-8") for f in files if f.exists())

    @contextmanager
    def archive(self) -> Iterator[Archive]:
        """The message store, read beside the running daemon."""
        opened = Archive(f"sqlite:///{self.data / 'archive.db'}")
        try:
            yield opened
        finally:
            opened.close()

    def stored(self, scene: str) -> list[Message]:
        """What the model may see of a scene."""
        with self.archive() as archive:
            return archive.window(Scene.parse(scene), 100)

    def outcomes(self, scene: str) -> list[str]:
        """How the scene's decisions ended, oldest first."""
        with self.archive() as archive:
            return [d.outcome for d in reversed(archive.decisions(Scene.parse(scene), 100))]

    def wait(self, condition: Callable[[], bool], within_s: float = 5.0) -> None:
        """AssertionError if a condition does not come true in time."""
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {within_s} s"
            time.sleep(0.02)


def _environment() -> dict[str, str]:
    """Ours without settings of other bots, and without spinning threads that starve each other on few cores."""
    ours = {k: v for k, v in os.environ.items() if not k.upper().startswith(("TWIN__", "ONEBOT"))}
    return {**ours, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
