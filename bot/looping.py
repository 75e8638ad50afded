"""Tokens of an answer → whether it loops; and what of the line it was broken off in is said.

People laugh, wail and send one face again and again: rows that are said, as `training.likeness.use` lets them pass and
labels hold them. How many tokens they are depends on the base (`[捂脸]` five times is 16 of Gemma's), so what a run of
tokens reads as decides. A phrase said again and again is a loop, and so is a row nobody would type to its end.
"""

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from bot.segments import face_ids

RUN_MAX, FACES_MAX = 60, 8
"""Characters of a row of one character, or of laughter, from which on it is a loop; and faces of a row that is none."""
_TOKEN_TIMES, _RUN_TIMES, _RUN_TOKENS = 16, 5, 12
_LAUGHS = ("哈嘿嘻呵", "hae", "23", "lo")
_ROW = re.compile(rf"(?:(\S)\1{{7,}}|{'|'.join(f'[{of}]{{8,}}' for of in _LAUGHS)}|(\[[^\[\]]+\])\2{{3,}})$", re.I)

T = TypeVar("T")


def looping(tokens: Sequence[T], text_of: Callable[[Sequence[T]], str]) -> bool:
    """Whether the newest tokens only repeat: one of them 16 times, or a run of 2–12 five times, and no row to be said.

    Args:
        tokens: of an answer, or the parts it came in.
        text_of: what some of them read as, without the halves of characters at either end.
    """
    for period in range(1, _RUN_TOKENS + 1):
        times = _RUN_TIMES if period > 1 else _TOKEN_TIMES
        run = list(tokens[-period:])
        if (
            len(set(run)) == 1 < period
            or len(tokens) < times * period
            or list(tokens[-times * period :]) != run * times
        ):
            continue
        while list(tokens[-(times + 1) * period : -times * period]) == run:
            times += 1
        return not is_row(text_of(tokens[-times * period :]), times)
    return False


def kept(line: str) -> str:
    """What is said of the line a loop ended in: a row as far as it goes, else nothing."""
    line = re.sub(r"\[[^\[\]]*$", "", line)
    row = _ROW.search(line)
    return line if row and row[0].isprintable() and (row[2] is None or row[2][1:-1] in face_ids()) else ""


def is_row(row: str, times: int) -> bool:
    """Whether what stands there so many times, cut anywhere, is said: a character, a laugh or a QQ face."""
    if len(set(row)) == 1 or any(set(row.casefold()) <= set(of) for of in _LAUGHS):
        return bool(row.strip()) and row.isprintable() and len(row) < RUN_MAX
    one = row[: len(row) // times]
    face = re.search(r"\[([^\[\]]+)\]", one * 2)
    return face is not None and face[1] in face_ids() and len(face[0]) == len(one) and times <= FACES_MAX
