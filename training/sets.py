"""Stored training sets of a persona, `sets/<set>.jsonl` in its folder → dialogues in the corpus.

A training set is not a chat log. It never enters the archive: it has no people and no times, tells nothing of when
somebody speaks, and is no memory. Stored it is one JSONL: a header line, then a dialogue a line as OpenAI messages. Its
name ends in a hash of its dialogues, so what is imported twice is stored once.
"""

import hashlib
import heapq
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from bot.config import Cleaning
from bot.errors import TrainingError
from bot.message import Message, Scene
from bot.prompt import Exchange
from bot.shown import as_shown
from training.corpus import Corpus, SceneCorpus
from training.dialogue import Dialogue, Turn

FOLDER = "sets"
HEADER_BYTES = 1024
"""Length of a stored set's first line: it is written last, when the counts are known."""
_NO_TIME = datetime(2000, 1, 1, 12, tzinfo=UTC)
"""Messages need a time; a dialogue of a set shows none, and nothing is measured on it."""


def stored(folder: Path) -> list[str]:
    """Names of the sets in a `sets` folder, sorted."""
    return sorted(p.stem for p in folder.glob("*.jsonl") if not p.name.startswith("."))


def answers_in(folder: Path, names: Sequence[str]) -> int:
    """Trained turns of some sets, by their headers; a set that is gone has none."""
    return sum(int(header_of(file)["answers"]) for n in names if (file := folder / f"{n}.jsonl").is_file())


def header_of(file: Path) -> dict[str, Any]:
    """A stored set's header.

    Raises:
        TrainingError: it has none that can be read.
    """
    try:
        with file.open("rb") as f:
            header = json.loads(f.read(HEADER_BYTES))
        if header["_type"] != "set" or not isinstance(header["answers"], int):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise TrainingError(f"training set {file.name!r} has no readable header; remove it and import it again") from e
    return dict(header)


def dialogues(folder: Path, name: str) -> Iterator[Dialogue]:
    """A stored set's dialogues as they are trained: with a system prompt only where that is to be trained.

    Raises:
        TrainingError: names the line that was changed or cut off.
    """
    file = folder / f"{name}.jsonl"
    own = bool(header_of(file).get("own_prompts"))
    with file.open("rb") as f:
        f.seek(HEADER_BYTES)
        for number, line in enumerate(f, 2):
            try:
                said = [(m["role"], m["content"]) for m in json.loads(line)["messages"]]
                system = said.pop(0)[1] if said[0][0] == "system" else ""
                yield Dialogue(system if own else "", tuple(Turn(side, text) for side, text in said))
            except (ValueError, KeyError, TypeError, IndexError) as e:
                raise TrainingError(f"training set {file.name!r} line {number} is broken; import it again") from e


def joined(
    corpus: Corpus,
    folder: Path,
    names: Sequence[str],
    at_most: int | None,
    rules: Cleaning = Cleaning(),  # noqa: B008 - frozen
) -> Corpus:
    """A corpus with the dialogues of training sets, each a scene of its own: no context, no silence, no decision.

    Args:
        corpus: what the archive teaches.
        folder: the persona's `sets` folder.
        names: which sets.
        at_most: dialogues taken; of more, a hash of their content chooses, the same ones as sets are added. None: all.
        rules: what the model is shown, as of the archive's messages. Answers are not masked: a set was chosen.

    Raises:
        TrainingError: a set cannot be read.
    """
    if not names:
        return corpus
    taken, found = _sampled(folder, names, at_most)
    parts = [part for dialogue in taken if (part := scene_of(dialogue, rules)).exchanges]
    digest = hashlib.sha256(corpus.fingerprint.encode())
    for part in parts:
        digest.update((part.system or "").encode())
        for message in (m for e in part.exchanges for m in (*e.heard, *e.said)):
            digest.update(f"{message.id}\0{message.text}\0\0".encode())
    counts = {
        "sets": len(names), "set_dialogues": len(parts),
        "set_answers": sum(bool(e.said) for part in parts for e in part.exchanges),
        "set_dialogues_left_out": found - len(taken),
    }  # fmt: skip
    return replace(
        corpus, scenes=[*corpus.scenes, *parts], fingerprint=digest.hexdigest(), counts={**corpus.counts, **counts}
    )


def _sampled(folder: Path, names: Sequence[str], at_most: int | None) -> tuple[list[Dialogue], int]:
    """The dialogues with the smallest hashes, in their sets' order, and how many there were; each counts once."""
    kept: dict[str, tuple[int, Dialogue]] = {}
    heap: list[tuple[int, str]] = []
    found = 0
    for place, dialogue in enumerate(d for name in names for d in dialogues(folder, name)):
        if dialogue.id in kept:
            continue
        found += 1
        kept[dialogue.id] = (place, dialogue)
        heapq.heappush(heap, (-int(dialogue.id, 16), dialogue.id))
        if at_most is not None and len(heap) > at_most:
            del kept[heapq.heappop(heap)[1]]
    return [dialogue for _, dialogue in sorted(kept.values(), key=lambda x: x[0])], found


def scene_of(dialogue: Dialogue, rules: Cleaning) -> SceneCorpus:
    """A dialogue as a private chat of its own, shown as `rules` say; without exchanges where nothing is left of it."""
    # Dialogues of one question share their scene, and with it the split.
    scene = Scene("private", f"set:{dialogue.question}")
    exchanges: list[Exchange] = []
    for number, (asked, answered) in enumerate(pairwise(dialogue.turns)):
        if asked.side == "user":
            heard, said = (_bubbles(f"{dialogue.id}-{number}", scene, turn, rules) for turn in (asked, answered))
            if heard:
                exchanges.append(Exchange(heard=heard, said=said))
    no = [False] * len(exchanges)
    return SceneCorpus(
        scene, "", exchanges, no, no, [None] * len(exchanges), [dialogue.question] * len(exchanges), {}, of_set=True,
        system=dialogue.system or None,
    )  # fmt: skip


def _bubbles(key: str, scene: Scene, turn: Turn, rules: Cleaning) -> list[Message]:
    told = (
        as_shown(Message(f"{key}-{turn.side}-{n}", scene, turn.side, "", _NO_TIME, bubble), rules)
        for n, bubble in enumerate(turn.text.split("\n"))
    )
    return [message for message in told if message.text.strip()]
