"""A blind test: pairs of a real answer and the twin's at held-out moments, and how often the real one is picked.

`data/blind/<id>.json` holds the pairs, which one is real, and the picks so far; it is chat text, readable by the owner
alone. The page has no key in it. What was picked lies beside the version, `blind.json`: picked right half of the time,
nobody can tell them apart.
"""

import json
import os
import re
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment

from bot.errors import PersonaError
from bot.interval import wilson
from bot.persona import Personas

FOLDER = "blind"
"""Of the data folder."""
RESULT_FILE = "blind.json"
"""Of a version's folder."""
CHOICES = ("1", "2")
_ID = re.compile(r"[0-9a-f]{12}")
_PAGE = Path(__file__).with_name("blind.html")


@dataclass(frozen=True, slots=True)
class Trial:
    """One pair.

    Args:
        context: what was said before, a line each, the burst last.
        options: two answers, bubbles joined by line breaks.
        real: place of the person's own, 0 or 1.
        picked: place that was taken for it; None: not asked yet.
    """

    context: tuple[str, ...]
    options: tuple[str, str]
    real: int
    picked: int | None = None


@dataclass(frozen=True, slots=True)
class BlindTest:
    """A set of pairs of one version.

    Args:
        id: twelve hex digits.
        persona: folder name.
        version: whose answers stand beside the person's.
        created: ISO 8601.
        trials: the pairs.
        equal: moments that make no pair, for the twin said there just what the person had.
    """

    id: str
    persona: str
    version: str
    created: str
    trials: tuple[Trial, ...]
    equal: int = 0

    @property
    def next(self) -> int | None:
        """Number of the first pair nobody was asked about, None where all were."""
        return next((n for n, t in enumerate(self.trials) if t.picked is None), None)

    def picked(self, number: int, choice: int) -> "BlindTest":
        """The same with a pair picked."""
        trials = list(self.trials)
        trials[number] = replace(trials[number], picked=choice)
        return replace(self, trials=tuple(trials))

    @property
    def score(self) -> dict[str, Any]:
        """`right` of `n`, their `share`, the 95 % interval of it, `low` to `high` (Wilson), and `equal` beside them."""
        asked = [t for t in self.trials if t.picked is not None]
        right = sum(t.picked == t.real for t in asked)
        low, high = wilson(right, len(asked))
        share = right / len(asked) if asked else None
        return {"right": right, "n": len(asked), "share": share, "low": low, "high": high, "equal": self.equal}


def save(data: Path, test: BlindTest) -> Path:
    """Write a test at once or not at all, readable by its owner alone; gives the file."""
    folder = data / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    file, beside = folder / f"{test.id}.json", folder / f".{test.id}.tmp"
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as f:
        json.dump(asdict(test), f, ensure_ascii=False, indent=1)
    os.replace(beside, file)
    return file


def load(data: Path, test_id: str) -> BlindTest:
    """A test by its id.

    Raises:
        PersonaError: there is none, or its file is damaged.
    """
    file = data / FOLDER / f"{test_id}.json"
    if not _ID.fullmatch(test_id) or not file.is_file():
        raise PersonaError(f"there is no blind test {test_id!r} in {str(file.parent)!r}; `twin eval --blind` makes one")
    try:
        raw = json.loads(file.read_text("utf-8"))
        trials = tuple(
            Trial(tuple(t["context"]), (t["options"][0], t["options"][1]), int(t["real"]), t["picked"])
            for t in raw["trials"]
        )
        return BlindTest(raw["id"], raw["persona"], raw["version"], raw["created"], trials, raw.get("equal", 0))
    except (OSError, ValueError, KeyError, IndexError, TypeError) as e:
        raise PersonaError(f"blind test {test_id!r} is damaged; remove the file and make another") from e


def newest(data: Path, persona: str, version: str | None) -> BlindTest | None:
    """The newest test of a version that has pairs left; None without one.

    Raises:
        PersonaError: a test's file is damaged.
    """
    files = sorted((data / FOLDER).glob("*.json"), key=lambda f: f.stat().st_mtime, reverse=True)
    tests = (load(data, f.stem) for f in files if _ID.fullmatch(f.stem))
    return next((t for t in tests if (t.persona, t.version) == (persona, version) and t.next is not None), None)


def take(data: Path, personas: Personas, test: BlindTest, now: datetime) -> dict[str, Any]:
    """Keep a test's picks, and its score beside the version; gives the score.

    Raises:
        PersonaError: the version is gone.
    """
    load(data, test.id)  # removed since it was begun, as /forgetme does, it does not come back
    save(data, test)
    folder = personas.root / test.persona / "versions" / test.version
    if not folder.is_dir():
        raise PersonaError(f"version {test.version!r} of persona {test.persona!r} is gone; its score has no place")
    found = [x for x in results(personas, test.persona, test.version) if x["id"] != test.id]
    entry = {"id": test.id, "time": now.isoformat(timespec="seconds"), **test.score}
    beside = folder / f".{RESULT_FILE}.tmp"
    beside.write_text(json.dumps([*found, entry], indent=1), "utf-8")
    os.replace(beside, folder / RESULT_FILE)
    return test.score


def results(personas: Personas, persona: str, version: str) -> list[dict[str, Any]]:
    """The scores of a version, oldest first."""
    try:
        found = json.loads((personas.root / persona / "versions" / version / RESULT_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []


def answered(data: Path, file: Path) -> BlindTest:
    """The test a page's answers belong to, with them taken in.

    Args:
        data: the data folder.
        file: what the page saved: `{"blind": id, "picks": {"1": 2, …}}`, pair → option, both from 1.

    Raises:
        PersonaError: it is no such file, or names a pair or option that does not exist.
    """
    try:
        raw = json.loads(file.read_text("utf-8-sig"))
        test = load(data, str(raw["blind"]))
        picks = {int(number) - 1: int(choice) - 1 for number, choice in raw["picks"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise PersonaError(f"{file.name!r} is no file that the blind test's page saved") from e
    if not picks or not all(0 <= n < len(test.trials) and c in (0, 1) for n, c in picks.items()):
        raise PersonaError(f"{file.name!r} names no pairs of blind test {test.id!r}; save it from the page again")
    for number, choice in picks.items():
        test = test.picked(number, choice)
    return test


def page(test: BlindTest) -> str:
    """The pairs as one HTML page without anything from elsewhere, and without the key."""
    template = Environment(autoescape=True, trim_blocks=True).from_string(_PAGE.read_text("utf-8"))
    return template.render(test=test)
