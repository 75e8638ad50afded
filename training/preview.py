"""Windows → text as the model will see it, the trained tokens marked: what a corpus would teach, read before training.

The text comes from the token ids themselves, so what shows is what is trained: control tokens by name, cuts of windows,
labels of held-out conversations unmarked.
"""

import random
from collections.abc import Callable, Sequence
from itertools import groupby

import typer

from bot.config import Training
from training.samples import Split, Window, trained_positions


def chosen(windows: Sequence[Window], n: int, seed: int) -> list[Window]:
    """At most `n` windows that train something, drawn by seed, in their own order."""
    able = [i for i, w in enumerate(windows) if any(x.split is Split.TRAIN and x.trained for x in w.labels)]
    return [windows[i] for i in sorted(random.Random(seed).sample(able, min(n, len(able))))]


def text(window: Window, piece: Callable[[int], bytes], rules: Training, mark: Callable[[str], str]) -> str:
    """The window's text, runs of trained tokens marked.

    Args:
        window: the window.
        piece: UTF-8 bytes of a token, perhaps part of a character; a control token's name.
        rules: which silences are trained.
        mark: how trained text is shown.
    """
    trained = set(trained_positions(window, silence_keep=rules.silence_keep, seed=rules.seed))
    shown = []
    for counts, run in groupby(enumerate(window.ids), key=lambda item: item[0] in trained):
        words = b"".join(piece(token) for _, token in run).decode("utf-8", "replace")
        shown.append(mark(words) if counts else words)
    return "".join(shown)


def bracketed(words: str) -> str:
    """Trained text where there are no colours."""
    return f"⟦{words}⟧"


def green(words: str) -> str:
    """Trained text on a terminal."""
    return typer.style(words, fg="green", bold=True)
