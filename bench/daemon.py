"""The daemon as a child process: how long until it listens, and what it then holds in memory."""

import os
import socket
import subprocess
import sys
import tempfile
import time

import psutil

from bench.figures import Figure, in_turn
from bot import config

_OWN_MB = 150.0


def started(settings: config.Settings, **changed: str) -> tuple[float, float]:
    """Seconds from the start to the first accepted connection, and resident memory then (MB).

    Args:
        settings: bot.toml's; the port is moved, since a daemon may be running.
        changed: further environment.
    """
    port = settings.onebot.port + 1000
    environment = {**os.environ, "TWIN__ONEBOT__PORT": str(port), "TWIN__RETRAIN__ENABLED": "false", **changed}
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "bot", "run"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _until_open(port, process)
        return time.perf_counter() - began, psutil.Process(process.pid).memory_info().rss / 1e6
    finally:
        process.terminate()
        process.wait(20)


def without_model(settings: config.Settings) -> Figure:
    """What the running daemon holds when there is no base: NoneBot, the plugins, the archive, llama.cpp's library."""
    with tempfile.TemporaryDirectory() as data:
        own, imports, spread = in_turn(
            3, lambda: started(settings, TWIN__ENGINE__BASE="none.gguf", TWIN__PATHS__DATA=data)[1], _imports
        )
    name = "memory of the daemon without a model"
    return Figure(name, own, "MB", "its imports alone", imports, _OWN_MB, own <= _OWN_MB, 3, spread)


def _imports() -> float:
    script = "import bot.daemon, plugins, psutil\nprint(psutil.Process().memory_info().rss / 1e6)"
    return float(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout)


def _until_open(port: int, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(1200):
        if process.poll() is not None:
            raise SystemExit("the daemon did not start; run `twin run` to see why")
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("the daemon did not listen within a minute")
