"""Corpus → a training set other trainers read: ShareGPT, OpenAI messages or Alpaca, with LLaMA-Factory's description.

A conversation is one sample. Its turns are the texts the one renderer makes, so another trainer sees what ours sees;
what it cannot be told, it is not given: a twin's words and answers not worth learning (it would train them) end a
sample, and silences that are no labels are no turns.
"""

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from bot.errors import TwinError
from bot.message import Message, Origin
from bot.prompt import FORMATS, Exchange, Piece
from training.corpus import Corpus, SceneCorpus
from training.dialogue import Dialogue, Turn
from training.pairing import Link
from training.samples import Split, renderer_for, split_of

INFO_FILE = "dataset_info.json"
"""LLaMA-Factory's description of a folder's sets (its data/README)."""


def talks(
    corpus: Corpus, system_prompt: str, splits: Collection[Split], *, silences: bool = False
) -> Iterator[Dialogue]:
    """The conversations of some splits as dialogues, scene by scene, oldest first.

    Args:
        corpus: what can be learned.
        system_prompt: the persona's; the scene's line is added.
        splits: which conversations.
        silences: keep silences that count as empty answers; else what was heard joins the next turn, as do those that
            do not count.
    """
    for part in corpus.scenes:
        for begin, end in _conversations(part):
            if split_of(part.scene, part.conversation[begin]) in splits:
                yield from _samples(part, corpus, system_prompt, range(begin, end), silences=silences)


def pairs(
    corpus: Corpus, system_prompt: str, splits: Collection[Split], linked: Callable[[SceneCorpus], Sequence[Link]]
) -> Iterator[Dialogue]:
    """The person's answers one by one, each with what it answers: in a group one message, else all that was heard.

    Args:
        corpus: what can be learned.
        system_prompt: the persona's; the scene's line is added.
        splits: which conversations.
        linked: what the answers of a group answer; those to nothing are left out, but where no question is wanted
            (`empty`) or one was written.
    """
    for part in corpus.scenes:
        links = {} if part.scene.private else {link.answer.id: link for link in linked(part)}
        renderer = renderer_for(part, corpus, FORMATS["chatml"], system_prompt)
        system = _text(renderer.opening())
        for place in range(len(part.exchanges)):
            exchange = part.as_rendered(place)
            own = exchange.said and all(m.origin is Origin.HUMAN for m in exchange.said)
            if not own or place in part.masked or split_of(part.scene, part.conversation[place]) not in splits:
                continue
            heard: Sequence[Message] = exchange.heard
            if not part.scene.private and not part.of_set:
                if (link := links.get(exchange.said[0].id)) is None:
                    continue
                heard = part.written_for(place) if link.to is None else [link.to]
                if not heard and link.by != "empty":
                    continue
            if heard or not part.scene.private:
                asked = _text(renderer.heard(Exchange(heard=list(heard)), part.quoted, first=True))
                learned = replace(exchange, said=part.learned(exchange))
                answer = _text(renderer.said(learned, trained=False))
                yield Dialogue(system, (Turn("user", asked), Turn("assistant", answer)))


def _conversations(part: SceneCorpus) -> Iterator[tuple[int, int]]:
    """Runs of exchanges of one conversation: from, and up to without."""
    begin = 0
    for index in range(1, len(part.exchanges) + 1):
        if index == len(part.exchanges) or part.conversation[index] != part.conversation[begin]:
            yield begin, index
            begin = index


def _samples(
    part: SceneCorpus, corpus: Corpus, system_prompt: str, indices: Iterable[int], *, silences: bool
) -> Iterator[Dialogue]:
    renderer = renderer_for(part, corpus, FORMATS["chatml"], system_prompt)
    system = _text(renderer.opening())
    turns: list[Turn] = []
    waiting: list[str] = []
    for index in indices:
        exchange = part.as_rendered(index)
        if index in part.masked or any(m.origin is not Origin.HUMAN for m in exchange.said):
            yield from _whole(system, turns)
            turns, waiting = [], []
            continue
        waiting.append(_text(renderer.heard(exchange, part.quoted, first=True)))
        if exchange.said or (silences and part.counted_silence[index]):
            turns.append(Turn("user", "\n".join(waiting)))
            learned = replace(exchange, said=part.learned(exchange))
            turns.append(Turn("assistant", _text(renderer.said(learned, trained=False))))
            waiting = []
    yield from _whole(system, turns)


def _text(pieces: Iterable[Piece]) -> str:
    """What people wrote, without the chat format around it."""
    return "".join(p.text for p in pieces if not p.control)


def _whole(system: str, turns: list[Turn]) -> Iterator[Dialogue]:
    if turns:
        yield Dialogue(system, tuple(turns))


def _sharegpt(talk: Dialogue) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt"}
    said = [{"from": names[side], "value": text} for side, text in talk.turns]
    return {"conversations": said, "system": talk.system}


def _openai(talk: Dialogue) -> dict[str, Any]:
    said = [{"role": side, "content": text} for side, text in talk.turns]
    return {"messages": [{"role": "system", "content": talk.system}, *said]}


def _alpaca(talk: Dialogue) -> dict[str, Any]:
    texts = [text for _, text in talk.turns]
    *history, (instruction, output) = zip(texts[::2], texts[1::2], strict=True)
    return {
        "instruction": instruction, "input": "", "output": output, "system": talk.system,
        "history": [list(pair) for pair in history],
    }  # fmt: skip


FORMS: dict[str, tuple[Callable[[Dialogue], dict[str, Any]], dict[str, Any]]] = {
    "sharegpt": (
        _sharegpt,
        {
            "formatting": "sharegpt", "columns": {"messages": "conversations", "system": "system"},
            "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"},
        },
    ),
    "openai": (
        _openai,
        {
            "formatting": "sharegpt", "columns": {"messages": "messages"},
            "tags": {
                "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
                "system_tag": "system",
            },
        },
    ),
    "alpaca": (
        _alpaca,
        {
            "formatting": "alpaca",
            "columns": {
                "prompt": "instruction", "query": "input", "response": "output", "system": "system",
                "history": "history",
            },
        },
    ),
}  # fmt: skip
"""By format: a dialogue as its record, and how LLaMA-Factory is told of it."""


def write(talks: Iterable[Dialogue], form: str, folder: Path, name: str) -> tuple[Path, int, int]:
    """Write a training set and name it in the folder's `dataset_info.json`; gives the file, its samples and answers.

    Args:
        talks: the dialogues.
        form: a key of `FORMS`.
        folder: where; what `dataset_info.json` says of other sets stays.
        name: the set's, and the file's without `.jsonl`.

    Raises:
        TwinError: there is none, the folder cannot be written, or its `dataset_info.json` is something else.
    """
    record, described = FORMS[form]
    samples = answers = 0
    rest = iter(talks)
    first = next(rest, None)
    if first is None:
        raise TwinError(f"{name!r} would be empty: the person says nothing there; see `twin corpus stats`")

    def lines() -> Iterator[str]:
        nonlocal samples, answers
        for talk in chain([first], rest):
            samples, answers = samples + 1, answers + talk.answers
            yield json.dumps(record(talk), ensure_ascii=False)

    file = folder / f"{name}.jsonl"
    info = _described(folder / INFO_FILE)
    write_lines(file, lines())
    info[name] = {"file_name": file.name, **described}
    write_lines(folder / INFO_FILE, [json.dumps(info, ensure_ascii=False, indent=2)])
    return file, samples, answers


def _described(file: Path) -> dict[str, Any]:
    """What a folder's `dataset_info.json` says already."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as e:
        raise TwinError(f"{str(file)!r} cannot be read as JSON; mend it, or choose another --out") from e
    if not isinstance(found, dict):
        raise TwinError(f"{str(file)!r} must be one object of set → description; choose another --out")
    return found


def write_lines(file: Path, lines: Iterable[str]) -> None:
    """Write a text file a line at a time; whole, or not at all.

    Raises:
        TwinError: it cannot be written.
    """
    beside = file.with_name(f".{file.name}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("w", encoding="utf-8", newline="\n") as f:
            for line in lines:
                f.write(line + "\n")
            f.flush()
            os.fsync(f.fileno())
        os.replace(beside, file)
    except OSError as e:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise TwinError(f"{str(file)!r} cannot be written: {e.strerror or e}") from e
