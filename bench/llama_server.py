"""llama-server, where it is installed: a child on a loopback port, asked over HTTP. The engine's peer, never needed."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import httpx

_START_S = 60.0


def binary() -> str | None:
    """The llama-server to run: what LLAMA_SERVER names, or the one on the PATH; None where there is none."""
    return os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")


class LlamaServer:
    """A running llama-server; a context manager that ends it.

    Args:
        program: its path.
        base: the GGUF it serves.
        options: of its command line, as its `--help` names them.

    Raises:
        RuntimeError: it does not start.
    """

    def __init__(self, program: str, base: Path, *options: str) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._client = httpx.Client(base_url=self.url, timeout=600, trust_env=False)
        command = [program, "-m", str(base), "--host", "127.0.0.1", "--port", str(port), *options]
        self._child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + _START_S
        while not self._ready():
            if self._child.poll() is not None or time.monotonic() > until:
                self.close()
                raise RuntimeError(f"llama-server does not start; by hand it says why: {' '.join(command)}")
            time.sleep(0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        self._client.close()
        self._child.terminate()
        self._child.wait()

    def slots(self) -> list[dict[str, Any]]:
        """What its slots do."""
        told: list[dict[str, Any]] = self._client.get("/slots").json()
        return told

    def complete(self, slot: int, ids: Sequence[int], n: int, **sampling: Any) -> dict[str, Any]:
        """Its answer of n tokens to a prompt of token ids, read as far as the slot does not hold it already."""
        body = {"prompt": list(ids), "id_slot": slot, "cache_prompt": True, "n_predict": n, **sampling}
        answer = self._client.post("/completion", json=body)
        answer.raise_for_status()
        told: dict[str, Any] = answer.json()
        return told

    def rate(self, prompts: Sequence[Sequence[int]], n: int, **sampling: Any) -> float:
        """Tokens drawn a second, all prompts at once, from the first token to the last, by its own clock."""
        with ThreadPoolExecutor(len(prompts)) as pool:
            asked = [pool.submit(self.complete, slot, ids, n, **sampling) for slot, ids in enumerate(prompts)]
            told = [future.result()["timings"] for future in asked]
        drawn = sum(int(t["predicted_n"]) - 1 for t in told)
        return drawn / max(float(t["predicted_ms"]) for t in told) * 1e3

    def _ready(self) -> bool:
        try:
            return self._client.get("/health").status_code == 200
        except httpx.TransportError:
            return False
