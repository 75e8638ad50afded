"""A QQ NT database of 300,000 messages, of every kind QQ has → the archive → the corpus: seconds and memory.

Every import runs in a process of its own, so its peak memory is its own. Processor seconds stand beside wall seconds:
on a machine that does other work they are what the import itself costs.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import ntqq
from bench.figures import Figure, show
from bot import config
from bot.archive import Archive
from training import corpus, history

MESSAGES, RUNS = 300_000, 3
IMPORT_S, AGAIN_S, CORPUS_S, RSS_MIB = 6.0, 2.0, 15.0, 300.0
"""Goals; half a minute is what is published for 300,000 messages elsewhere."""
_PEER, _PEER_S = "published elsewhere", 30.0


def main(settings: config.Settings, root: Path, *, full: bool, as_json: bool) -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory(prefix="twin-bench-") as folder:
        path = made(Path(folder) / "nt_msg.db", MESSAGES)
        runs = [_run(path, Path(folder) / f"{i}.db", ("import", "again", "corpus")) for i in range(RUNS)]
        read = [_run(path, Path(folder) / "none.db", ("read",)) for _ in range(RUNS)]
    figures = [
        _figure("import, wall", "s", [r["import"]["wall_s"] for r in runs], IMPORT_S, _PEER, _PEER_S),
        _figure("import, processor", "s", [r["import"]["cpu_s"] for r in runs]),
        _figure("import, of it reading and decoding, processor", "s", [r["read"]["cpu_s"] for r in read]),
        _figure("import, messages per second", "1/s", [MESSAGES / r["import"]["wall_s"] for r in runs]),
        _figure("import, peak resident memory", "MiB", [r["import"]["rss_mib"] for r in runs], RSS_MIB),
        _figure("same file again, wall", "s", [r["again"]["wall_s"] for r in runs], AGAIN_S),
        _figure("same file again, added", "messages", [r["again"]["added"] for r in runs], 0),
        _figure("archive to corpus, wall", "s", [r["corpus"]["wall_s"] for r in runs], CORPUS_S),
        _figure("archive to corpus, processor", "s", [r["corpus"]["cpu_s"] for r in runs]),
        _figure("archive to corpus, peak resident memory", "MiB", [r["corpus"]["rss_mib"] for r in runs]),
    ]
    show("import", figures, as_json=as_json)


def made(path: Path, messages: int) -> Path:
    """A database of so many messages in groups and private chats."""
    rows = list(ntqq.people_talking(messages))
    return ntqq.write(
        path, (r for r in rows if r["40010"] == ntqq.GROUP), (r for r in rows if r["40010"] != ntqq.GROUP)
    )


def _figure(
    name: str, unit: str, values: Sequence[float], goal: float | None = None, peer: str | None = None,
    peer_value: float | None = None,
) -> Figure:  # fmt: skip
    """The median of some measurements; the goal is at most, and of the value even where there is a peer."""
    middle = statistics.median(values)
    spread = (max(values) - min(values)) / middle if middle else 0.0
    return Figure(
        name, middle, unit, peer, peer_value, goal, None if goal is None else middle <= goal, len(values), spread
    )


def _run(path: Path, archive: Path, steps: Sequence[str]) -> dict[str, Any]:
    """Steps on an archive, each in a child process: wall and processor seconds, peak memory, what was added."""
    found: dict[str, Any] = {}
    for step in steps:
        command = [sys.executable, "-m", "bench.imports", step, str(path), str(archive)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1], env={**os.environ}
        )
        found[step] = json.loads(done.stdout)
    return found


def _step(step: str, path: Path, archive_path: Path) -> dict[str, float]:
    archive = None if step == "read" else Archive(f"sqlite:///{archive_path}")
    wall, cpu = time.perf_counter(), time.process_time()
    added = 0
    if step == "corpus":
        assert archive is not None
        corpus.build(archive, [str(ntqq.ME)], (), config.Conversation())
    else:
        added = history.load(path, archive).added
    spent = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu, "added": added}
    if archive is not None:
        archive.close()
    return {**spent, "rss_mib": _peak_mib()}


def _peak_mib() -> float:
    """The most memory this process was resident with; ru_maxrss would on Linux begin with that of who started it."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text("ascii").split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    print(json.dumps(_step(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
