"""What a language model said of samples, by a hash of all it was asked with: data/cleaning.db.

An answer is kept the moment it comes, so an interrupted run goes on where it was, to the sample; another model or an
edited prompt has other hashes, and asks anew.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bot.errors import TrainingError

FILE = "cleaning.db"
_WAIT_S = 30.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS requests (
    time TEXT NOT NULL, task TEXT NOT NULL, model TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL
);
"""


class Verdicts:
    """The store, made where it is not there.

    Args:
        path: its file.

    Raises:
        TrainingError: here and below, when it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._faults():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=_WAIT_S)
            self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def of(self, key: str) -> Any:
        """What was said of a sample; None if nothing was."""
        with self._faults():
            row = self._db.execute("SELECT value FROM verdicts WHERE key = ?", (key,)).fetchone()
            return None if row is None else json.loads(row[0])

    def keep(self, said: Mapping[str, Any]) -> None:
        """Keep what was said of some samples, by key; all of it or nothing."""
        rows = [(key, json.dumps(value, ensure_ascii=False)) for key, value in said.items()]
        with self._faults(), self._db:
            self._db.executemany("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", rows)

    def paid(self, task: str, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Note what a request cost, be its answer of use or not."""
        row = (datetime.now(UTC).isoformat(timespec="seconds"), task, model, prompt_tokens, completion_tokens)
        with self._faults(), self._db:
            self._db.execute("INSERT INTO requests VALUES (?, ?, ?, ?, ?)", row)

    def costs(self) -> dict[str, dict[str, int]]:
        """Requests, prompt and completion tokens of all runs, by model."""
        query = "SELECT model, count(*), sum(prompt_tokens), sum(completion_tokens) FROM requests GROUP BY model"
        with self._faults():
            rows = self._db.execute(query).fetchall()
        return {m: {"requests": n, "prompt_tokens": p, "completion_tokens": c} for m, n, p, c in rows}

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as e:
            raise TrainingError(
                f"what the model said is kept in {str(self._path)!r}, which cannot be used ({e}); free disk space or "
                "end what holds it, or remove the file: the model is then asked anew"
            ) from e
