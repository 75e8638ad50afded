"""Processes that are killed in the middle of their work, at a moment that is the same every time."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_DIES = """
import os, signal
def dies(*given, done=os.{call}):
    done(*given)
    os.kill(os.getpid(), signal.SIGKILL)
os.{call} = dies
"""


def killed_at(call: str, script: str, *arguments: object, **environment: str) -> None:
    """Run a script in a process of its own that is killed when it has called `os.<call>` once."""
    command = [sys.executable, "-c", _DIES.format(call=call) + script, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, (done.returncode, done.stderr)
