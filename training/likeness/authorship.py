"""Whose words are these? A character n-gram classifier of the person against the other speakers of the same chats.

Trained on what both said in the train split (character n-grams, TF-IDF, logistic regression: the usual baseline of
authorship verification, Kestemont et al. 2020). A figure is the part of answers it takes for the person's; the person's
own held-out answers are the ceiling and the bare base's the floor.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from bot.errors import TrainingError
from training.likeness.figure import Array, Figure, bootstrap, mean_figure, quotient

_NGRAMS = (1, 3)
_C = 4.0
"""scikit-learn's inverse regularisation; short lines hold few n-grams, and much shrinkage calls everything a draw."""
_MOST = 20_000
"""Lines of each side at most, evenly chosen: more add seconds and no accuracy."""
MIN_LINES = 40
"""Lines of each side that a classifier needs."""


class Author:
    """A trained classifier.

    Args:
        own: the person's answers.
        others: what others said.

    Raises:
        TrainingError: too few lines of either.
    """

    def __init__(self, own: Sequence[str], others: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        if min(len(own), len(others)) < MIN_LINES:
            raise TrainingError(
                f"authorship needs {MIN_LINES} answers of the person and as many lines of others in the same chats, "
                f"not {len(own)} and {len(others)}; import more history"
            )
        sides = [_some(side) for side in (own, others)]
        vectors = TfidfVectorizer(analyzer="char", ngram_range=_NGRAMS, sublinear_tf=True, min_df=2)
        self._model = make_pipeline(vectors, LogisticRegression(C=_C, max_iter=1000, class_weight="balanced"))
        self._model.fit([*sides[0], *sides[1]], [True] * len(sides[0]) + [False] * len(sides[1]))

    def probability(self, answers: Sequence[str]) -> Array:
        """P(the person's) of each answer, (n,)."""
        if not answers:
            return np.empty(0)
        return np.asarray(self._model.predict_proba(list(answers))[:, 1], dtype=np.float64)

    def taken(self, answers: Sequence[str], clusters: Sequence[Hashable]) -> Figure | None:
        """Part of the answers that is taken for the person's."""
        return mean_figure((self.probability(answers) > 0.5).tolist(), clusters)

    def way(
        self, twin: Sequence[str], person: Sequence[str], base: Sequence[str], clusters: Sequence[Hashable]
    ) -> Figure | None:
        """How far the twin has come from the base (0) to the person (1), answers at the same places.

        Of mean probabilities: they tell more than the part over one half does. None where the person is not surely told
        from the base: there is no way to go then.
        """
        sides = [self.probability(x) for x in (twin, person, base)]
        length = mean_figure((sides[1] - sides[2]).tolist(), clusters)
        if length is None or length.low <= 0:
            return None

        def statistic(weights: Array) -> Array:
            ours, ceiling, floor = (weights @ side for side in sides)
            return quotient(ours - floor, ceiling - floor)

        return bootstrap(statistic, clusters)


def _some(lines: Sequence[str]) -> list[str]:
    if len(lines) <= _MOST:
        return list(lines)
    return [lines[i * len(lines) // _MOST] for i in range(_MOST)]
