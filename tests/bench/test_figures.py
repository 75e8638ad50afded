"""bench/figures.py: what a result says of how it came about."""

import json

import pytest

from bench.figures import Figure, show
from bot.config import Engine


def test_a_result_carries_date_machine_versions_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    settings = Engine.model_validate({"n_threads": 3, "remote_api_key": "sesame-4711"})
    show("engine", [Figure("decode", 54.0, "tokens/s", "bare loop", 60.0)], as_json=True, of=settings)
    text = capsys.readouterr().out
    found = json.loads(text)
    assert {"bench", "date", "machine", "versions", "settings", "figures"} == set(found)
    assert (found["settings"]["n_threads"], found["figures"][0]["ratio"]) == (3, 0.9)
    assert "sesame-4711" not in text
