"""Processes that are killed or held up in the middle of their work, at a moment that is the same every time."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
_ONCE = """
import os, signal
def once(*given, done=os.{call}, **more):
    os.{call} = done
    done(*given, **more)
    os.kill(os.getpid(), signal.{sent})
os.{call} = once
"""


def killed_at(call: str, script: str, *arguments: object, **environment: str) -> None:
    """Run a script in a process of its own that is killed when it has called `os.<call>` once."""
    command = [sys.executable, "-c", _ONCE.format(call=call, sent="SIGKILL") + script, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, (done.returncode, done.stderr)


@contextmanager
def held_at(call: str, script: str, *arguments: object) -> Iterator[None]:
    """A script in a process of its own is held up once it has called `os.<call>`; at the end it goes on, and well."""
    command = [sys.executable, "-c", _ONCE.format(call=call, sent="SIGSTOP") + script, *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)
            _, told = process.communicate()
    assert process.returncode == 0, told
