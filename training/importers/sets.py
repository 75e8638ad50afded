"""Training sets, record by record, told apart by their keys → dialogues.

ShareGPT (`from`/`value`, or `role`/`content`), OpenAI messages, Alpaca with input and history, pairs of a question and
an answer under their usual names, RoleBench. The formats' fields: LLaMA-Factory's data/README, RoleLLM (arXiv
2310.00746).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.dialogue import Dialogue, Side, Turn, mended, without_denial
from training.importers import rolebench
from training.importers.records import records
from training.importers.rolebench import Choice
from training.importers.source import PLACES_KEPT, Reading, Skipped

_SNIFFED_RECORDS, _SNIFFED_BYTES = 20, 4 << 20
_SIDES: dict[str, Side] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
    "bot": "assistant", "chatgpt": "assistant",
}  # fmt: skip
_TOOLS = frozenset({"function_call", "observation", "function", "tool", "tools", "tool_call"})
_QUESTIONS, _ANSWERS = ("instruction", "prompt", "question", "query"), ("output", "response", "answer", "completion")
_SHAREGPT, _SHAREGPT_ROLES, _OPENAI = "ShareGPT", "ShareGPT with role and content", "OpenAI messages"
_ALPACA, _PAIRS, _ROLEBENCH, _PREFERENCES = "Alpaca", "pairs of question and answer", "RoleBench", "preference pairs"


@dataclass(slots=True)
class SetReading(Reading):
    """A training set being read: where the reader is, what it left out, what it mended.

    Args:
        mends: mends by kind.
        mended_at: first places of every kind.
    """

    mends: Counter[str] = field(default_factory=Counter)
    mended_at: dict[str, list[str]] = field(default_factory=dict)

    def mend(self, what: str) -> None:
        """Count a mend where the reader is."""
        self.mends[what] += 1
        kept = self.mended_at.setdefault(what, [])
        if len(kept) < PLACES_KEPT and self.place not in kept:
            kept.append(self.place)


def recognised(path: Path) -> str | None:
    """What a training set is called, by its first 20 records in 4 MiB; None of anything else, a folder too.

    Raises:
        ImportFault: the file cannot be read.
    """
    if path.is_dir():
        return None
    for number, record in enumerate(records(path, Reading(), _SNIFFED_BYTES)):
        if (title := _title(record)) is not None:
            return title
        if number + 1 == _SNIFFED_RECORDS:
            break
    return None


def dialogues(path: Path, reading: SetReading, choice: Choice) -> Iterator[Dialogue]:
    """Every dialogue of a training set; what is left out is counted with its place, what is mended too.

    Args:
        path: the file.
        reading: kept up to date.
        choice: of RoleBench's roles and answers.

    Raises:
        ImportFault: the file cannot be read.
    """
    for record in records(path, reading):
        try:
            title = _title(record)
            if title == _ROLEBENCH:
                found = rolebench.read(record, choice, reading.mend)
            else:
                found = [_dialogue(title, record, reading)]
        except Skipped as why:
            reading.skip(str(why))
            continue
        yield from found


def _title(record: Any) -> str | None:
    """The format of a record, or None."""
    if not isinstance(record, dict):
        return None
    if "chosen" in record and "rejected" in record:
        return _PREFERENCES
    if {"role", "question", "generated"} <= record.keys():
        return _ROLEBENCH
    for key in ("conversations", "messages"):
        match record.get(key):
            case [{"from": str(), "value": _}, *_]:
                return _SHAREGPT
            case [{"role": str(), "content": _}, *_]:
                return _OPENAI if key == "messages" else _SHAREGPT_ROLES
    question, answer = _first(record, _QUESTIONS), _first(record, _ANSWERS)
    if answer is None or (question is None and "input" not in record):
        return None
    return _ALPACA if question == "instruction" and answer == "output" else _PAIRS


def _first(record: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    return next((k for k in keys if k in record), None)


def _dialogue(title: str | None, record: Any, reading: SetReading) -> Dialogue:
    if title is None:
        raise Skipped("no dialogue" if isinstance(record, dict) else "not an object")
    if title == _PREFERENCES:
        raise Skipped("a preference pair (chosen, rejected): no dialogue")
    if record.get("kto_tag", record.get("label", True)) is False:
        raise Skipped("marked as unwanted (kto_tag)")
    turns = list(_asked(record) if title in (_ALPACA, _PAIRS) else _taken_in_turn(title, record, reading))
    system = [text for side, text in turns if side == "system"]
    if record.get("system"):
        system.insert(0, _text(record["system"]))
    said = mended((Turn(side, text) for side, text in turns if side != "system"), reading.mend)
    return Dialogue(_prompt("\n".join(system), reading), said)


def _prompt(system: str, reading: SetReading) -> str:
    """A system prompt as it may be trained."""
    kept = without_denial(system)
    if kept != system.strip():
        reading.mend("a sentence that has it deny being a program was left out")
    return kept


def _taken_in_turn(title: str, record: dict[str, Any], reading: SetReading) -> Iterator[tuple[Any, str]]:
    """Turns of ShareGPT and OpenAI records, the system's at the front among them."""
    role, content = ("from", "value") if title == _SHAREGPT else ("role", "content")
    begun = False
    for turn in record["messages" if title == _OPENAI else "conversations"]:
        if not isinstance(turn, dict) or not isinstance(turn.get(role), str):
            raise Skipped("a turn that says not whose it is")
        who = turn[role].strip().lower()
        if who in _TOOLS or turn.get("tool_calls") or turn.get("function_call"):
            raise Skipped("a call of a tool")
        if who in ("system", "developer"):
            if begun:
                reading.mend("a system prompt within the dialogue was left out")
            else:
                yield "system", _text(turn.get(content))
            continue
        if who not in _SIDES:
            raise Skipped("a turn of neither user nor assistant")
        begun = True
        yield _SIDES[who], _text(turn.get(content)).replace("<image>", "[图片]" if record.get("images") else "<image>")


def _asked(record: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    """Turns of Alpaca records and pairs: history first; the input stands under the question."""
    history = record.get("history") or []
    if not isinstance(history, list):
        raise Skipped("a history that is no list")
    for pair in history:
        match pair:
            case [question, answer]:
                yield "user", _text(question)
                yield "assistant", _text(answer)
            case _:
                raise Skipped("a history that is not made of pairs")
    asked = [_text(record[key]) for key in (_first(record, _QUESTIONS), "input") if key is not None and record.get(key)]
    yield "user", "\n".join(t for t in asked if t)
    answer_key = _first(record, _ANSWERS)
    yield "assistant", _text(record[answer_key] if answer_key else None)


def _text(value: Any) -> str:
    """A text as sets hold it: a string, nothing, or OpenAI's list of text parts."""
    match value:
        case str():
            return value
        case None:
            return ""
        case [*parts] if parts and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in parts):
            return "\n".join(p["text"] for p in parts)
        case _:
            raise Skipped("a turn that is not text")
