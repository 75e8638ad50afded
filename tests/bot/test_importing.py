"""bot/cli/importing.py as a process: several paths, folders, and what is said of them."""

import subprocess
import sys
from pathlib import Path

import exports
import pytest

ROOT = Path(__file__).parents[2]
_LOADED = """
import sys
from bot.__main__ import app
app(sys.argv[1:], standalone_mode=False)
print(sorted(m for m in sys.modules if m.partition(".")[0] in ("llama_cpp", "nonebot", "torch")))
"""


@pytest.fixture
def bot_toml(tmp_path: Path) -> Path:
    return tmp_path / "config" / "bot.toml"


def test_an_import_loads_nothing_that_serves_or_trains(tmp_path: Path, bot_toml: Path) -> None:
    (tmp_path / "h.json").write_bytes(exports.QCE)
    command = [sys.executable, "-c", _LOADED, "import", str(tmp_path / "h.json"), "--config", str(bot_toml)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
