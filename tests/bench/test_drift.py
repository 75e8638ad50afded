"""bench/drift.py: nights over a trace that the twin answers, and the two controls beside them."""

import sqlite3
from pathlib import Path

import lessons
import tinymodel

from bench import drift
from bot.config import Engine, Paths, Settings


def test_nights_follow_one_another_beside_days_as_they_were_and_days_without_an_answer(tmp_path: Path) -> None:
    tiny = tinymodel.build(tmp_path / "tiny")
    n = lessons.write(tmp_path / "history.jsonl", rounds=12)
    settings = Settings(
        paths=Paths(data=tmp_path / "data"), engine=Engine(n_threads=1, n_gpu_layers=0, n_ctx=4096, kv_tokens=8192)
    )

    found = drift.figures(settings, tiny.gguf, tmp_path / "history.jsonl", nights=2, past=n - 60, trace=60)

    rows = {f.name.split(" [")[0].removeprefix("drift, fresh: "): f for f in found}
    assert rows["change of the reply rate"].goal == 0.05
    losses = [
        rows[f"held-out loss {name}"]
        for name in (
            "after 2 nights less after the first", "of the days as the person answered them, less the same",
            "of the days with nobody answering there, less the same",
        )
    ]  # fmt: skip
    assert [f.met is None for f in losses] == [False, True, True]
    assert all(f.value is not None and f.n == losses[0].n > 0 for f in losses)

    def origins(folder: str) -> dict[str, int]:
        with sqlite3.connect(settings.data / "bench-likeness" / "drift-fresh" / folder / "archive.db") as database:
            return dict(database.execute("SELECT origin, count(*) FROM messages GROUP BY origin"))

    assert len(list((settings.data / "bench-likeness" / "drift-fresh" / "nights" / "runs" / "drift").iterdir())) == 3
    assert sum(origins("as-it-was").values()) == n
    assert sum(origins("muted").values()) < n
    assert set(origins("nights")) == {"human", "twin"}
