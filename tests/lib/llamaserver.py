"""`python -m llama_cpp.server` as a child process on loopback: a real OpenAI-compatible server."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from daemon import free_port


@contextmanager
def serving(folder: Path, models: Sequence[dict[str, Any]], **more: Any) -> Iterator[str]:
    """The server's API root while it runs.

    Args:
        folder: for its configuration and log.
        models: as its configuration names them.
        more: of the server, `api_key=…`.
    """
    port = free_port()
    wanted = {"host": "127.0.0.1", "port": port, "models": list(models), **more}
    (folder / "server.json").write_text(json.dumps(wanted))
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "llama_cpp.server", "--config_file", str(folder / "server.json")],
            stdout=log, stderr=log, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
    try:
        until = time.monotonic() + 60
        while b"Uvicorn running" not in (folder / "log").read_bytes():
            assert child.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until, "the server did not start"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        child.terminate()
        child.wait()
