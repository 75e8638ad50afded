"""ROUGE-L (Lin 2004), as RoleBench reports it for role-play sets: the longest common subsequence of two answers."""

import re
from collections.abc import Hashable, Sequence

from training.likeness.figure import Figure, mean_figure

_TOKEN = re.compile(r"[A-Za-z0-9']+|[^\sA-Za-z0-9']")
"""A word of Latin letters, or any other character: a Chinese one each, as RoleBench's Chinese figures count."""


def rouge_l(said: str, real: str) -> float:
    """F1 of the longest common subsequence, 0 to 1; two silences are equal."""
    ours, theirs = _TOKEN.findall(said.casefold()), _TOKEN.findall(real.casefold())
    if not ours or not theirs:
        return float(ours == theirs)
    common = _lcs(ours, theirs)
    return 2 * common / (len(ours) + len(theirs))


def figure(said: Sequence[str], real: Sequence[str], clusters: Sequence[Hashable]) -> Figure | None:
    """Mean ROUGE-L of answers against the real ones at the same places."""
    return mean_figure([rouge_l(a, b) for a, b in zip(said, real, strict=True)], clusters)


def _lcs(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]
