"""A dialogue of a training set: a system prompt, and turns of user and assistant, mended where they can be.

A training set is not a chat log: it has no people, times or silences. What is asked of it is that the user begins, the
assistant ends, and both take turns; sets found in the wild often don't, and most of those can be mended without
inventing a word.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, NamedTuple

from training.importers.source import Skipped

TURN_MAX = 100_000
"""Characters of a turn. The longest window of any base is shorter; a megabyte in one turn is a file, not talk."""
Side = Literal["user", "assistant"]


class Turn(NamedTuple):
    """What one side says.

    Args:
        side: whose.
        text: bubbles, one a line, none of them blank; empty: an answer without words, which is context alone.
    """

    side: Side
    text: str


@dataclass(frozen=True)
class Dialogue:
    """A dialogue that can be trained on.

    Args:
        system: the set's own system prompt; empty when it has none.
        turns: user and assistant in turn, the user first, the assistant last.
    """

    system: str
    turns: tuple[Turn, ...]

    @cached_property
    def id(self) -> str:
        """32 hex digits of everything in it: the same dialogue in two sets is one."""
        return _digest(self.system, *(part for turn in self.turns for part in turn))

    @cached_property
    def question(self) -> str:
        """32 hex digits of what the user says: several answers to one question belong into one split."""
        return _digest(*(turn.text for turn in self.turns if turn.side == "user"))

    @property
    def answers(self) -> int:
        """Turns that are trained."""
        return sum(turn.side == "assistant" and bool(turn.text) for turn in self.turns)


def mended(turns: Iterable[Turn], note: Callable[[str], None]) -> tuple[Turn, ...]:
    """Turns as a dialogue has them: cleaned, taking turns, the user first and the assistant last.

    Args:
        turns: as the set has them.
        note: told each kind of mend that was needed.

    Raises:
        Skipped: nothing is left to train, or a turn is too long or unreadable.
    """
    found: list[Turn] = []
    for side, raw in turns:
        text = _lines(raw)
        if not text and side == "user":
            note("a question without words was left out")
        elif found and found[-1].side == side:
            note(f"two turns of the {side} in a row were joined")
            found[-1] = Turn(side, "\n".join(t for t in (found[-1].text, text) if t))
        elif not found and side == "assistant":
            note("what the assistant said first was left out")
        else:
            found.append(Turn(side, text))
    if found and found[-1].side == "user":
        note("what the user said last was left out")
        found.pop()
    while found and not found[-1].text:
        note("an answer without words at the end was left out with its question")
        del found[-2:]
    if any(not turn.text for turn in found):
        note("an answer without words is kept as context")
    if not found:
        raise Skipped("no answer to a question")
    assert all(a.side != b.side for a, b in pairwise(found))
    return tuple(found)


def _lines(raw: str) -> str:
    """A turn's text with one bubble a line; as chats are rendered."""
    if len(raw) > TURN_MAX:
        raise Skipped(f"a turn of more than {TURN_MAX} characters")
    if "\ufffd" in raw:
        raise Skipped("characters that cannot be read (U+FFFD: another encoding?)")
    whole = raw.encode("utf-8", "replace").decode("utf-8")  # halves of surrogate pairs can be neither stored nor read
    plain = _CONTROL.sub("", whole.replace("\r\n", "\n").replace("\r", "\n"))
    return "\n".join(line.rstrip() for line in plain.split("\n") if line.strip())


_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SENTENCE = re.compile(r"[^。！？!?\n]*?(?:[。！？!?\n]+|\.(?=\s)|$)")
_FORBIDS = (
    r"(?:不[要能得可许准会是]|请勿|切勿|禁止|绝不|从不|否认|(?<![特个区分])别(?!人)|\b(?:never|not|deny)\b|n't\b)"
)
_PROGRAM = (
    r"(?:人工智能|语言模型|大模型|机器人|计算机程序|(?<![A-Za-z])(?:A\.?I\b|chatbot|language model|artificial intell))"
)
_DENIAL = re.compile(
    rf"{_FORBIDS}(?:(?!像|\blike\b).){{0,40}}?{_PROGRAM}"
    rf"|{_PROGRAM}.*{_FORBIDS}.{{0,8}}(?:暴露|透露|承认|提及|说出|reveal|admit|mention|disclose)",
    re.I,
)
"""Not to be, or not to say that one is; to speak *like* one is a matter of style, and stays."""


def without_denial(prompt: str) -> str:
    """A system prompt less the sentences that have it deny being a program: `/about` tells everyone what it is."""
    return "".join(s for s in _SENTENCE.findall(prompt) if not _DENIAL.search(s)).strip()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
