"""Corpus → what measures are held against: what the person and the others said in the train split, as texts."""

from dataclasses import dataclass
from itertools import groupby

from bot.message import Origin
from training.corpus import Corpus
from training.likeness.retrieval import Past
from training.likeness.style import catch_phrases
from training.samples import Split, split_of

_NAME_MIN = 2


@dataclass(frozen=True, slots=True)
class Material:
    """Texts of the person and of those around.

    Args:
        own: the person's training answers, bubbles joined by line breaks.
        others: what others said in the same conversations, one speaker's bubbles in a row joined.
        tune: the person's answers of the tune split.
        past: what was heard and what the person said to it, of the train split.
        phrases: the person's catch-phrases.
        names: what the people in the corpus are called; those of one character are left out, being words.
    """

    own: tuple[str, ...]
    others: tuple[str, ...]
    tune: tuple[str, ...]
    past: tuple[Past, ...]
    phrases: tuple[str, ...]
    names: frozenset[str]


def material(corpus: Corpus) -> Material:
    """The texts of a corpus, oldest first scene by scene; masked answers are not the person's words to learn from."""
    own: list[str] = []
    others: list[str] = []
    tune: list[str] = []
    past: list[Past] = []
    names: set[str] = set()
    for part in corpus.scenes:
        for number, exchange in enumerate(part.exchanges):
            split = split_of(part.scene, part.conversation[number])
            names |= {m.sender_name for m in exchange.heard}
            human = [m.text for m in part.learned(exchange) if m.origin is Origin.HUMAN]
            said = "\n".join(human) if number not in part.masked else ""
            if split is Split.TUNE and said:
                tune.append(said)
            if split is not Split.TRAIN:
                continue
            if said:
                own.append(said)
            runs = groupby(exchange.heard, key=lambda m: m.sender_id)
            others += ["\n".join(m.text for m in run) for _, run in runs]
            if said and exchange.heard:
                past.append(Past("\n".join(m.text for m in exchange.heard), said))
    return Material(
        tuple(own), tuple(others), tuple(tune), tuple(past), catch_phrases(own, others),
        frozenset(n for n in names if len(n) >= _NAME_MIN),
    )  # fmt: skip
