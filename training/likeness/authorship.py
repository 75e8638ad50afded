"""Whose words are these? A character n-gram classifier of the person against the other speakers of the same chats.

Trained on what both said in the train split (character n-grams, TF-IDF, logistic regression: the usual baseline of
authorship verification, Kestemont et al. 2020). A figure is the part of answers it takes for the person's; the person's
own held-out answers are the ceiling and the bare base's the floor.

A twin learned the same lines. So that a parrot of them is not more like the person than the person, each answer is
judged by one of five classifiers that did not see the training line it is nearest to, nor any line of the same words.
"""

from collections.abc import Hashable, Sequence
from zlib import crc32

import numpy as np

from bot.errors import TrainingError
from training.likeness.figure import Array, Figure, bootstrap, mean_figure, quotient
from training.likeness.use import plain

_FOLDS = 5
_NGRAMS = (1, 3)
_C = 4.0
"""scikit-learn's inverse regularisation; short lines hold few n-grams, and much shrinkage calls everything a draw."""
_MOST = 20_000
"""Lines of each side at most, evenly chosen: more add seconds and no accuracy."""
MIN_LINES = 40
"""Lines of each side that a classifier needs."""


class Author:
    """Trained classifiers, each without a fifth of the person's lines.

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
        mine, theirs = _some(own), _some(others)
        self._folds = np.array([crc32(plain(line).encode()) % _FOLDS for line in mine])
        self._vectors = TfidfVectorizer(analyzer="char", ngram_range=_NGRAMS, sublinear_tf=True)
        self._own = self._vectors.fit_transform(mine)
        self._models = []
        for fold in range(_FOLDS):
            seen = [line for line, of in zip(mine, self._folds, strict=True) if of != fold] or mine
            vectors = TfidfVectorizer(analyzer="char", ngram_range=_NGRAMS, sublinear_tf=True, min_df=2)
            model = make_pipeline(vectors, LogisticRegression(C=_C, max_iter=1000, class_weight="balanced"))
            model.fit([*seen, *theirs], [True] * len(seen) + [False] * len(theirs))
            self._models.append(model)

    def probability(self, answers: Sequence[str]) -> Array:
        """P(the person's) of each answer, (n,)."""
        found = np.empty(len(answers))
        if not len(answers):
            return found
        nearest = np.asarray((self._vectors.transform(answers) @ self._own.T).argmax(axis=1)).ravel()
        unseen_by = self._folds[nearest]
        for fold, model in enumerate(self._models):
            if (asked := np.flatnonzero(unseen_by == fold)).size:
                found[asked] = model.predict_proba([answers[i] for i in asked.tolist()])[:, 1]
        return found

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
