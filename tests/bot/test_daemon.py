"""bot/daemon.py as a process: it serves without anything that trains."""

import subprocess
import sys
from pathlib import Path

import daemon
import tinymodel

HEAVY = {
    "torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "gguf", "sklearn", "matplotlib",
    "training", "export",
}  # fmt: skip
"""What trains and exports."""
SERVE = """
import gc, http.client, os, sys, threading, time
from pathlib import Path
from bot import config, daemon

def tell(port):
    while True:
        try:
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            client.request("GET", "/")
            client.getresponse()
            break
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
    print(gc.get_freeze_count(), *sorted({name.partition(".")[0] for name in sys.modules}), flush=True)
    os._exit(0)

path = Path(sys.argv[1])
settings = config.load(path)
threading.Thread(target=tell, args=(settings.onebot.port,), daemon=True).start()
daemon.serve(settings, path)
"""


def test_the_running_daemon_has_imported_nothing_that_trains_and_looks_no_more_at_what_stays(
    tinies: dict[str, tinymodel.Tiny], tmp_path: Path
) -> None:
    installed = daemon.Daemon(tmp_path, daemon.settings(tinies["gemma3"].gguf))
    told = subprocess.run(
        [sys.executable, "-c", SERVE, str(installed.config)],
        cwd=daemon.ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    frozen, *modules = told.stdout.split()
    assert int(frozen) > 100_000
    assert {"llama_cpp", "nonebot", "sqlalchemy", "bot", "plugins"} <= {*modules}, told.stderr
    assert {*modules} & HEAVY == set()


SECRET = """
from bot import config, daemon
daemon._start_nonebot(config.Settings(), "", {})
print(daemon.nonebot.get_driver().config.onebot_secret)
"""


def test_every_start_has_a_secret_of_its_own_that_would_sign_events_posted_over_http() -> None:
    """Nothing is taken over HTTP: the routes are gone. Were one there again, nobody could sign for it."""
    line = [sys.executable, "-c", SECRET]
    ran = [subprocess.run(line, cwd=daemon.ROOT, capture_output=True, text=True, check=True) for _ in range(2)]
    one, other = (r.stdout.splitlines()[-1] for r in ran)
    assert one != other
    assert min(len(one), len(other)) >= 32
