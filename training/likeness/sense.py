"""Does an answer belong to what was said? How much likelier it is after its own context than another's.

log p(answer | own context) - log p(answer | another conversation's): pointwise mutual information, which a line that
is only in style does not have, however well written. The bare base judges, since it never learned the person's words.
"""

from collections.abc import Hashable, Sequence
from typing import Protocol

import numpy as np

from training.likeness.figure import Array, Figure, ratio_figure

OTHERS = 2
"""Contexts of other conversations each answer is held against."""


class Judge(Protocol):
    """What judges; `bot.scorer.Scorer` is the real one."""

    def continuations(self, context: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        """Gives log p of each answer behind one context (nats)."""
        ...


def others_of(clusters: Sequence[Hashable], n: int = OTHERS) -> list[list[int]]:
    """For each place, the places whose contexts stand against its own: of other conversations, spread evenly."""
    found = []
    for place, cluster in enumerate(clusters):
        far = [i for i in range(place + 1, place + len(clusters)) if clusters[i % len(clusters)] != cluster]
        found.append([far[(2 * k + 1) * len(far) // (2 * n)] % len(clusters) for k in range(min(n, len(far)))])
    return found


def log_ps(
    judge: Judge,
    contexts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[Sequence[int]]],
    clusters: Sequence[Hashable],
) -> list[list[tuple[float, list[float]]]]:
    """Gives (log p after its own context, log p after each of the others) of every answer, by system and place.

    Args:
        judge: the bare base.
        contexts: token ids before each place's answer, (places, ids); the first is never scored.
        answers: token ids of answers, (systems, places, ids).
        clusters: the conversation of each place.
    """
    against = others_of(clusters)
    wanted: dict[int, list[tuple[int, int]]] = {}
    for system, each in enumerate(answers):
        for place in range(len(each)):
            for context in (place, *against[place]):
                wanted.setdefault(context, []).append((system, place))
    known: dict[tuple[int, int, int], float] = {}
    for context, asked in sorted(wanted.items()):
        values = judge.continuations(contexts[context], [answers[s][p] for s, p in asked])
        known |= {(context, s, p): v for (s, p), v in zip(asked, values, strict=True)}
    return [
        [(known[p, s, p], [known[c, s, p] for c in against[p]]) for p in range(len(each))]
        for s, each in enumerate(answers)
    ]


def figures(
    found: Sequence[tuple[float, Sequence[float]]], tokens: Sequence[int], clusters: Sequence[Hashable]
) -> dict[str, Figure]:
    """`sense`, the part of comparisons in which the own context makes it likelier (chance: 0.5), and `sense_nats`.

    Args:
        found: log p after the own context and after the others, by place.
        tokens: tokens of each answer.
        clusters: the conversation of each place.
    """
    kept = [i for i, (_, others) in enumerate(found) if others and tokens[i]]
    where = [clusters[i] for i in kept]
    won = np.array([_won(*found[i]) for i in kept])
    gain = np.array([found[i][0] - float(np.mean(found[i][1])) for i in kept])
    sizes = np.array([float(tokens[i]) for i in kept])
    values = {"sense": ratio_figure(won, np.ones(len(kept)), where), "sense_nats": _by_token(gain, sizes, where)}
    return {name: figure for name, figure in values.items() if figure is not None}


def _by_token(gain: Array, sizes: Array, where: Sequence[Hashable]) -> Figure | None:
    """Nats per token; the number of cases is that of answers."""
    figure = ratio_figure(gain, sizes, where)
    return figure.model_copy(update={"n": len(gain)}) if figure else None


def _won(own: float, others: Sequence[float]) -> float:
    """Part of the comparisons won; equal ones are half won."""
    return float(np.mean([(own > other) + 0.5 * (own == other) for other in others]))
