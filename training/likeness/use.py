"""Answers that are empty of sense: nothing said, a loop, the question again, template tokens, somebody else's voice."""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from bot.looping import RUN_MAX, is_row
from bot.prompt import FORMATS
from training.likeness.figure import Figure, mean_figure
from training.likeness.style import LAUGHTER

_LOOP_TIMES, _SAME_BUBBLE_MAX = 5, 4
_COPY_MIN = 5
"""Characters heard from which saying them again is a copy; shorter ones (晚安, 哈哈) are manners."""


class Fault(StrEnum):
    """Why an answer is of no use."""

    EMPTY = "empty"
    LOOP = "loop"
    COPY = "copy"
    MARKER = "marker"
    VOICE = "voice"


@dataclass(frozen=True, slots=True)
class Answer:
    """A sample answer at a held-out moment.

    Args:
        heard: the burst it answers, bubbles joined by line breaks.
        said: its bubbles, joined by line breaks.
        speakers: names of the others in that scene.
    """

    heard: str
    said: str
    speakers: tuple[str, ...] = ()


def fault(answer: Answer) -> Fault | None:
    """What is wrong with an answer, the worst first; None of one that could be sent."""
    if not answer.said.strip():
        return Fault.EMPTY
    if holds_markers(answer.said):
        return Fault.MARKER
    if another_voice(answer.said, answer.speakers):
        return Fault.VOICE
    if loops(answer.said):
        return Fault.LOOP
    return Fault.COPY if copies(answer) else None


def figures(answers: Sequence[Answer], clusters: Sequence[Hashable]) -> dict[str, Figure]:
    """Part of the answers with each fault, and `useful`, the part with none."""
    faults = [fault(a) for a in answers]
    found = {kind.value: mean_figure([f is kind for f in faults], clusters) for kind in Fault}
    found["useful"] = mean_figure([f is None for f in faults], clusters)
    return {name: figure for name, figure in found.items() if figure is not None}


_MARKERS = sorted(
    {m for f in FORMATS.values() for x in (f.user_open, f.assistant_open, f.end) for m in re.findall(r"<[^<>\s]+>", x)}
    | {"<bos>", "<eos>", "<pad>", "<unk>", "<|endoftext|>"}
)


def holds_markers(text: str) -> bool:
    """Whether a text holds a token of any chat template."""
    return any(marker in text for marker in _MARKERS)


def another_voice(text: str, speakers: Collection[str]) -> bool:
    """Whether a line is written as somebody else's: `昵称：…` of the scene, a quote's prefix, or a window's header."""
    for line in text.split("\n"):
        name = re.split(r"[：:]", line, maxsplit=1)[0].strip()
        if name != line.strip() and name in speakers:
            return True
        if re.match(r"\[回复 [^\]]*：|【周.? \d|(?:user|model|assistant)\s*$", line):
            return True
    return False


def loops(text: str) -> bool:
    """Whether a text says a phrase five times on end, a bubble four, or a row too long to be said."""
    bubbles = Counter(b.strip() for b in text.split("\n") if len(b.strip()) > 1)
    if any(times >= _SAME_BUBBLE_MAX for times in bubbles.values()):
        return True
    if re.search(rf"(.)\1{{{RUN_MAX - 1},}}", text):
        return True
    repeated = re.finditer(rf"(.{{2,20}}?)\1{{{_LOOP_TIMES - 1},}}", text, re.DOTALL)
    return any(len(set(match[1])) > 1 and not is_row(match[0], len(match[0]) // len(match[1])) for match in repeated)


def copies(answer: Answer) -> bool:
    """Whether an answer says again what it answers, and less than half as much of its own; laughing along is none."""
    said, heard = plain(answer.said), (plain(h) for h in (answer.heard, *answer.heard.split("\n")))
    return any(
        h in said and 2 * len(said.replace(h, "")) <= len(h)
        for h in heard
        if len(h) >= _COPY_MIN and not LAUGHTER.fullmatch(h)
    )


def plain(text: str) -> str:
    """A text's letters and digits alone, folded: how it is written makes no difference."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in folded if unicodedata.category(c)[0] in "LN")
