"""What a running night costs the answers: decode rate beside one in the daemon's own layout, and its memory."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import psutil

from bench.figures import Figure
from bot import config
from bot.archive import Archive
from bot.twin import SHIPPED, install_shipped
from training import history

_FIRST_STEPS, _WITHIN_S = 3, 900.0
_SAMPLE_S = 0.5


def beside(settings: config.Settings, decode_rate: Callable[[], tuple[float, float]]) -> list[Figure]:
    """Decode alone and beside a night of the demo persona at idle priority, one thread less than cores.

    Args:
        settings: bot.toml's.
        decode_rate: gives the median decode rate, tokens/s, and its spread.
    """
    work = settings.data / "bench-night"
    install_shipped(work / "personas")
    archive = Archive(f"sqlite:///{work / 'archive.db'}")
    history.load(SHIPPED.parent / "history.jsonl", archive)
    archive.close()
    alone, _ = decode_rate()
    threads = str(max(1, (os.cpu_count() or 2) - 1))
    environment = {
        **os.environ, "TWIN__PATHS__DATA": str(work),
        "OMP_NUM_THREADS": threads, "TWIN__TRAINING__THREADS": threads,
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "bot", "night", "--persona", "xiaoman", "--force", "--idle", "--json"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    peak = _Peak(process.pid)
    try:
        peak.start()
        _until_training(process)
        busy, spread = decode_rate()
    finally:
        process.terminate()
        process.wait(30)
        peak.join()
    return [
        Figure("decode rate beside a night", busy, "tokens/s", "alone", alone, n=5, spread=spread),
        Figure("memory of a night in the daemon's layout, first steps", peak.rss / 1e6, "MB"),
    ]


def _until_training(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    deadline = time.monotonic() + _WITHIN_S
    for line in process.stdout:
        state = json.loads(line)
        if state.get("step") == "train" and state.get("done", 0) >= _FIRST_STEPS:
            return
        if time.monotonic() > deadline:
            break
    raise SystemExit("the night did not come to training; run `twin night --force` to see why")


class _Peak(threading.Thread):
    """Watches the resident memory of a process until it ends."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._process = psutil.Process(pid)
        self.rss = 0

    def run(self) -> None:
        while self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE:
            try:
                self.rss = max(self.rss, self._process.memory_info().rss)
            except psutil.Error:
                return
            time.sleep(_SAMPLE_S)
