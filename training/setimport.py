"""A training-set file → a stored set of a persona, whole or not at all, and once whatever its file is called."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.errors import ImportFault
from training.dialogue import Dialogue
from training.importers.rolebench import Choice
from training.importers.sets import SetReading, dialogues
from training.sets import HEADER_BYTES, header_of, stored

_TOLD_EVERY = 500
"""Dialogues between two reports of progress."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What an import of a training set did.

    Args:
        title: the format.
        name: the set's, as its file is called.
        dialogues: dialogues in it.
        answers: turns of the assistant that are trained.
        new: whether it was not there before, or with other prompts.
        own_prompts: whether its own system prompts are trained.
        reading: what was left out and mended.
        choice: of RoleBench's roles.
    """

    title: str
    name: str
    dialogues: int
    answers: int
    new: bool
    own_prompts: bool
    reading: SetReading
    choice: Choice


def take(
    path: Path,
    title: str,
    folder: Path,
    choice: Choice,
    *,
    own_prompts: bool = False,
    dry_run: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _size: None,
) -> Taken:
    """Validate and store a training set; all of it or nothing.

    Args:
        path: the file.
        title: its format (`training.importers.sets.recognised`).
        folder: the persona's `sets` folder.
        choice: of RoleBench's roles and answers.
        own_prompts: train the set's system prompts where it has them, not the persona's.
        dry_run: read, and store nothing.
        progress: called with bytes read and the size.

    Raises:
        ImportFault: it cannot be read or stored, holds no dialogue, or it must be said which roles to take.
    """
    reading = SetReading()
    digest, count, answers = hashlib.sha256(), 0, 0
    beside = folder / f".{_stem(path)}.tmp"
    try:
        if not dry_run:
            folder.mkdir(parents=True, exist_ok=True)
        with nullcontext() if dry_run else beside.open("wb") as f:
            if f:
                f.write(b" " * HEADER_BYTES)
            for dialogue in dialogues(path, reading, choice):
                line = _line(dialogue)
                digest.update(line)
                count, answers = count + 1, answers + dialogue.answers
                if f:
                    f.write(line)
                if not count % _TOLD_EVERY:
                    progress(reading.done, reading.size)
            _check(path, title, count, choice, reading)
            header = {
                "_type": "set", "format": title, "dialogues": count, "answers": answers, "own_prompts": own_prompts,
            }  # fmt: skip
            if f:
                f.seek(0)
                f.write(json.dumps(header, ensure_ascii=False).encode().ljust(HEADER_BYTES - 1) + b"\n")
                f.flush()
                os.fsync(f.fileno())
        name = f"{_stem(path)}-{digest.hexdigest()[:8]}"
        there = _same(folder, name)
        new = there is None or header_of(folder / f"{there}.jsonl").get("own_prompts") is not own_prompts
        if new and not dry_run:
            os.replace(beside, folder / f"{there or name}.jsonl")
    except OSError as e:
        raise ImportFault(f"training set {path.name!r} cannot be stored in {str(folder)!r}: {e.strerror or e}") from e
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
    return Taken(title, there or name, count, answers, new, own_prompts, reading, choice)


def _check(path: Path, title: str, count: int, choice: Choice, reading: SetReading) -> None:
    roles = "、".join(f"{role} ({n})" for role, n in choice.seen.most_common(20))
    missing = [role for role in choice.roles if role not in choice.seen]
    if missing and choice.seen:
        raise ImportFault(f"{path.name!r} has no role {'、'.join(missing)}; it has {roles}")
    if choice.roles and not choice.seen:
        raise ImportFault(f"{path.name!r} is {title} and has no roles: leave out --role")
    if not choice.roles and len(choice.seen) > 1:
        raise ImportFault(f"{path.name!r} holds several roles: choose with --role NAME (once or more) among {roles}")
    if not count:
        why = "; ".join(f"{n} × {w} ({', '.join(reading.places[w])})" for w, n in reading.skipped.most_common(3))
        raise ImportFault(f"training set {path.name!r} holds no dialogue to train on: {why or 'it is empty'}")


def _stem(path: Path) -> str:
    """A file's name as a set's, short and safe as a file name anywhere."""
    return "".join(c if c.isalnum() or c in "_-" else "_" for c in path.stem)[:40] or "set"


def _same(folder: Path, name: str) -> str | None:
    """The stored set with the same dialogues, whatever its file was called."""
    return next((n for n in stored(folder) if n[-9:] == name[-9:]), None)


def _line(dialogue: Dialogue) -> bytes:
    messages = [{"role": "system", "content": dialogue.system}] if dialogue.system else []
    messages += [{"role": side, "content": text} for side, text in dialogue.turns]
    return json.dumps({"messages": messages}, ensure_ascii=False).encode() + b"\n"


def summary(taken: Taken) -> dict[str, Any]:
    """What an import of a training set did, as plain values."""
    reading = taken.reading
    return {
        "format": taken.title, "set": taken.name, "new": taken.new, "dialogues": taken.dialogues,
        "answers": taken.answers, "own_prompts": taken.own_prompts,
        "roles": {role: n for role, n in taken.choice.seen.most_common() if role in (taken.choice.roles or (role,))},
        "mended": {what: {"count": n, "places": reading.mended_at[what]} for what, n in reading.mends.most_common()},
        "skipped": {why: {"count": n, "places": reading.places[why]} for why, n in reading.skipped.most_common()},
    }  # fmt: skip


def in_words(shown: dict[str, Any], name: str, persona: str, folder: Path, *, dry_run: bool) -> str:
    """A summary as a person reads it; `folder` is the persona's `sets`."""
    verb = "would be taken" if dry_run else "taken" if shown["new"] else f"already there as {shown['set']}"
    size = f"{shown['dialogues']} dialogues, {shown['answers']} answers"
    lines = [f"{name}: training set, {shown['format']}; {size} {verb}"]
    lines += [f"  mended {x['count']}: {what} ({', '.join(x['places'])})" for what, x in shown["mended"].items()]
    lines += [f"  left out {x['count']}: {why} ({', '.join(x['places'])})" for why, x in shown["skipped"].items()]
    if len(shown["roles"]) > 1 and not shown["own_prompts"]:
        lines.append("  several roles under one prompt become a mixture; --keep-prompts trains each under its own")
    if not dry_run:
        lines.append(f"  it is {folder / shown['set']}.jsonl; delete it to learn without it")
        lines.append(f"  next: twin night --persona {persona}")
    return "\n".join(lines)
