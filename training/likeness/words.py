"""Loss of the person's own answers under a model: nats per token are the model's own measure.

Per character they compare between vocabularies.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from training.likeness.figure import Figure, ratio_figure


def per_token(nll: Sequence[float], tokens: Sequence[int], clusters: Sequence[Hashable]) -> Figure | None:
    """Mean -log p (nats per token)."""
    return ratio_figure(np.asarray(nll, dtype=np.float64), np.asarray(tokens, dtype=np.float64), clusters)


def per_character(nll: Sequence[float], answers: Sequence[str], clusters: Sequence[Hashable]) -> Figure | None:
    """-log p by character of the answers (nats): comparable between vocabularies, which tokens are not."""
    return ratio_figure(np.asarray(nll, dtype=np.float64), np.array([float(len(a)) for a in answers]), clusters)


def difference(
    new: Sequence[float], old: Sequence[float], tokens: Sequence[int], clusters: Sequence[Hashable]
) -> Figure | None:
    """Loss of `new` less that of `old` on the same answers, paired (nats per token); below 0 is better."""
    return per_token(np.asarray(new) - np.asarray(old), tokens, clusters)
