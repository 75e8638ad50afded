"""How answers are written: distributions over habits, generated answers against real ones in the same places.

Each habit sorts an answer into classes. A distance is the total variation between the two distributions over classes
(ordered classes: the Kolmogorov–Smirnov distance), 0 for equal habits and 1 for none in common; `style` is their mean.
Some of a distance is noise of few answers: the person's own other answers, measured alike, tell how much.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import numpy as np

from training.likeness.figure import Array, Figure, Statistic, bootstrap, mean_figure, ratio_figure

LENGTHS = (1, 2, 3, 4, 6, 8, 11, 15, 20, 30, 45, 70, 100)
"""Upper bounds of the classes of length, in characters."""
_BUBBLES_MAX = 6
PHRASES = 20
"""Catch-phrases at most; fewer than `_PHRASE_MIN` times said is none."""
_PHRASE_MIN, _PHRASE_LENGTHS, _PHRASE_RATIO = 4, (2, 3, 4, 5), 3.0
_NONE = "—"
_MARKS = {"，": ",", "。": ".", "！": "!", "？": "?", "～": "~", "：": ":", "；": ";", "、": "、", "…": "…"}
_PARTICLES = re.compile(
    r"[吗呢吧啊呀哦嘛啦嗯欸诶哎唉哇呗咯喽嘞噢喔额呃哈]|\b(?:yeah|yep|oh|well|um+|uh+|hmm+|ok|okay|ah|aw+|wow)\b", re.I
)
LAUGHTER = re.compile(r"哈{2,}|嘿{2,}|嘻{2,}|呵{2,}|h{3,}|(?:ha){2,}h?|笑死|233+|\blo+l\b|\blmao\b", re.I)
"""Chinese and English laughs, of any length."""
_FACE = re.compile(r"\[[^\[\]\s]{1,12}\]")
_NGRAMS = (1, 2)


def distances(
    said: Sequence[str], real: Sequence[str], clusters: Sequence[Hashable], phrases: Sequence[str] = ()
) -> dict[str, Figure]:
    """The distance of every habit and their mean, `style`; empty without answers.

    Args:
        said: generated answers, bubbles joined by line breaks.
        real: the person's at the same places.
        clusters: the conversation of each place.
        phrases: catch-phrases, from `catch_phrases`.
    """
    if not said:
        return {}
    parts = {name: _distance(name, said, real, phrases) for name in _names(phrases)}
    found = {name: bootstrap(part, clusters, centred=True) for name, part in {**parts, "style": _mean(parts)}.items()}
    # Centred, an interval may reach below 0, where no distance is.
    return {name: f.model_copy(update={"low": max(0.0, f.low)}) for name, f in found.items() if f is not None}


def difference(
    new: Sequence[str],
    old: Sequence[str],
    real: Sequence[str],
    clusters: Sequence[Hashable],
    phrases: Sequence[str] = (),
) -> Figure | None:
    """`style` of `new` less that of `old` at the same places, paired; below 0 is better."""
    ours, theirs = (_mean({n: _distance(n, said, real, phrases) for n in _names(phrases)}) for said in (new, old))
    return bootstrap(lambda w: ours(w) - theirs(w), clusters, centred=True)


def variety(said: Sequence[str], clusters: Sequence[Hashable]) -> dict[str, Figure]:
    """`distinct_1` and `distinct_2` (Li et al. 2016, over characters), and `repeated`: answers said before.

    distinct-n is distinct n-grams by n-grams. Each n-gram counts 1 / (how often it occurs), so the sum over all answers
    is that of the distinct ones, and answers can be resampled with the weights they have in the whole.
    """
    found = {f"distinct_{n}": _distinct(said, clusters, n) for n in _NGRAMS}
    first: set[str] = set()
    again = []
    for answer in said:
        again.append(answer in first)
        first.add(answer)
    found["repeated"] = mean_figure(again, clusters)
    return {name: figure for name, figure in found.items() if figure is not None}


def catch_phrases(own: Iterable[str], others: Iterable[str], most: int = PHRASES) -> tuple[str, ...]:
    """What the person says far more often than the others do: character runs of 2 to 5, by log-odds times count.

    Args:
        own: the person's answers, of the train split.
        others: what others said in the same chats.
        most: phrases at most; a phrase within a longer one that is as frequent is left out.
    """
    ours, theirs = _phrases(own), _phrases(others)
    total, rest = sum(ours.values()) or 1, sum(theirs.values()) or 1
    scored = {}
    for phrase, count in ours.items():
        ratio = (count / total) / ((theirs[phrase] + 1) / (rest + 1))
        if count >= _PHRASE_MIN and ratio >= _PHRASE_RATIO:
            scored[phrase] = count * float(np.log(ratio))
    found: list[str] = []
    for phrase in sorted(scored, key=lambda p: (-scored[p], -len(p), p)):
        if not any(phrase in other or other in phrase for other in found):
            found.append(phrase)
        if len(found) == most:
            break
    return tuple(found)


def classes(name: str, answer: str, phrases: Sequence[str] = ()) -> Counter[str]:
    """The classes of one habit that an answer falls into, with how often."""
    if name == "phrases":
        return Counter([p for p in phrases if p in answer]) or Counter([_NONE])
    return _HABITS[name](answer)


def _names(phrases: Sequence[str]) -> list[str]:
    return [*_HABITS, *(["phrases"] if phrases else [])]


def _distance(name: str, said: Sequence[str], real: Sequence[str], phrases: Sequence[str]) -> Statistic:
    """The distance of one habit as a statistic of weighted places."""
    both = [[classes(name, text, phrases) for text in side] for side in (said, real)]
    kinds = sorted({c for side in both for found in side for c in found})
    place = {c: i for i, c in enumerate(kinds)}
    tables = []
    for side in both:
        table = np.zeros((len(side), len(kinds)))
        for row, found in enumerate(side):
            for kind, count in found.items():
                table[row, place[kind]] = count
        tables.append(table)
    ordered = name in _ORDERED

    def statistic(weights: Array) -> Array:
        ours, theirs = (_shares(weights @ table) for table in tables)
        if ordered:
            return np.asarray(np.abs((ours - theirs).cumsum(1)).max(1), dtype=np.float64)
        return np.asarray(np.abs(ours - theirs).sum(1) / 2, dtype=np.float64)

    return statistic


def _shares(counts: Array) -> Array:
    totals = counts.sum(1, keepdims=True)
    found = np.zeros_like(counts)
    np.divide(counts, totals, out=found, where=totals > 0)
    return found


def _mean(parts: Mapping[str, Statistic]) -> Statistic:
    return lambda weights: np.asarray(np.mean([part(weights) for part in parts.values()], axis=0), dtype=np.float64)


def _distinct(said: Sequence[str], clusters: Sequence[Hashable], n: int) -> Figure | None:
    grams = [_grams(answer, n) for answer in said]
    counts = Counter(g for each in grams for g in each)
    shares = np.array([sum(1 / counts[g] for g in each) for each in grams])
    return ratio_figure(shares, np.array([float(len(each)) for each in grams]), clusters)


def _grams(text: str, n: int) -> list[str]:
    return [text[i : i + n] for i in range(len(text) - n + 1)]


def _phrases(texts: Iterable[str]) -> Counter[str]:
    """In how many answers each run occurs, within one bubble and with nothing but letters in it."""
    found: Counter[str] = Counter()
    for text in texts:
        runs = {g for line in text.split("\n") for n in _PHRASE_LENGTHS for g in _grams(line, n)}
        found.update(g for g in runs if all(unicodedata.category(c)[0] == "L" for c in g))
    return found


def _length(answer: str) -> Counter[str]:
    size = len(answer.replace("\n", ""))
    return Counter([f"{sum(size > bound for bound in LENGTHS):02}"])


def _bubbles(answer: str) -> Counter[str]:
    return Counter([str(min(answer.count("\n") + 1, _BUBBLES_MAX))])


def _punctuation(answer: str) -> Counter[str]:
    marks = Counter(_MARKS.get(c, c) for c in answer if c in _MARKS or c in _MARKS.values())
    bare = sum(not any(c in _MARKS or c in _MARKS.values() for c in line) for line in answer.split("\n"))
    return marks + Counter({_NONE: bare})


def _matches(pattern: re.Pattern[str]) -> Callable[[str], Counter[str]]:
    def sort(answer: str) -> Counter[str]:
        return Counter(m.group().casefold() for m in pattern.finditer(answer)) or Counter([_NONE])

    return sort


def _laughter(answer: str) -> Counter[str]:
    found = (m.group().casefold() for m in LAUGHTER.finditer(answer))
    return Counter(f"{laugh[:2]} {min(len(laugh), 6)}" for laugh in found) or Counter([_NONE])


def _emoji(answer: str) -> Counter[str]:
    emoji = [c for c in answer if unicodedata.category(c) == "So" or 0x1F300 <= ord(c) <= 0x1FAFF]
    return Counter([*_FACE.findall(answer), *emoji]) or Counter([_NONE])


def _opening(answer: str) -> Counter[str]:
    return Counter([_edge(answer.strip(), 0)])


def _ending(answer: str) -> Counter[str]:
    return Counter([_edge(answer.strip(), -1)])


def _edge(answer: str, end: int) -> str:
    """The first or last word of Latin letters, face, or character; line breaks count as blanks."""
    words = re.findall(r"[A-Za-z']+|\[[^\[\]\s]{1,12}\]|\S", answer)
    return words[end].casefold() if words else _NONE


_HABITS: dict[str, Callable[[str], Counter[str]]] = {
    "length": _length, "bubbles": _bubbles, "punctuation": _punctuation, "particles": _matches(_PARTICLES),
    "emoji": _emoji, "laughter": _laughter, "opening": _opening, "ending": _ending,
}  # fmt: skip
_ORDERED = ("length", "bubbles")
HABITS = (*_HABITS, "phrases")
"""Names of the distances that `style` is the mean of."""
