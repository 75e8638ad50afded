"""The person's most similar past exchanges: the baseline a trained twin has to beat.

Similarity is the cosine of TF-IDF over characters and pairs of what was heard.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

EXCHANGES = 3
"""Exchanges put in the prompt."""
_CHARS = 120
"""Characters of each side shown: three long pastes would leave no room for the conversation."""


@dataclass(frozen=True, slots=True)
class Past:
    """A past exchange: what was heard and what the person said, bubbles joined by line breaks."""

    heard: str
    said: str


class Retrieval:
    """Past exchanges by similarity.

    Args:
        past: exchanges of the train split; what is held out is never looked up.
    """

    def __init__(self, past: Sequence[Past]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._past = [p for p in past if p.heard.strip() and p.said.strip()]
        self._vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True)
        self._rows = self._vectors.fit_transform([p.heard for p in self._past]) if self._past else None

    def similar(self, heard: str, most: int = EXCHANGES) -> list[Past]:
        """The most similar exchanges, the most similar last, where it stands next to the question."""
        if self._rows is None:
            return []
        scores = (self._rows @ self._vectors.transform([heard]).T).toarray()[:, 0]
        best = np.argsort(-scores, kind="stable")[:most]
        return [self._past[int(i)] for i in best[::-1]]


def prompt(system: str, past: Sequence[Past]) -> str:
    """A system prompt with past exchanges behind it."""
    if not past:
        return system
    shown = "\n\n".join(f"对方：{p.heard[-_CHARS:]}\n你：{p.said[:_CHARS]}" for p in past)
    return f"{system}\n\n你从前是这样回答的：\n\n{shown}"
