"""Windows → the rows of a run: all of them, or what is new with some of the old, the newest ones, some general chat."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from bot.config import Training
from bot.errors import TrainingError
from training.batches import Row, row_of, rows_of
from training.samples import Split, Window, uniform

_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Extra:
    """What a run reads besides the persona's windows.

    Args:
        general: general chat, a small part of which is trained; every label of it counts.
        held_out: what the held-out loss is measured on, every label; None: the tune split.
        since: when the LoRA that is gone on with was made; None: a fresh one.
    """

    general: Sequence[Window] = ()
    held_out: Sequence[Window] | None = None
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Selected:
    """The rows of a run.

    Args:
        train: trained.
        tune: held out, for the early stop.
        answers: answers of the person among the trained.
        counts: rows by where they come from: new, replayed, general.
    """

    train: tuple[Row, ...]
    tune: tuple[Row, ...]
    answers: int
    counts: dict[str, int]


def select(windows: Sequence[Window], settings: Training, extra: Extra) -> Selected:
    """The rows of a run.

    Raises:
        TrainingError: too little to learn from.
    """
    chosen, replayed = [], 0
    for window in windows:
        if row_of(window, Split.TRAIN, silence_keep=settings.silence_keep, seed=settings.seed) is None:
            continue
        if extra.since is not None and window.newest is not None and window.newest <= extra.since:
            if uniform("replay", str(extra.since), _name(window)) >= settings.replay:
                continue
            replayed += 1
        chosen.append(window)
    if settings.max_samples is not None and len(chosen) > settings.max_samples:
        by_time = sorted(range(len(chosen)), key=lambda i: chosen[i].newest or _LONG_AGO)
        chosen = [chosen[i] for i in sorted(by_time[-settings.max_samples :])]
        replayed = sum(w.newest is not None and w.newest <= extra.since for w in chosen) if extra.since else 0
    rows = rows_of(chosen, Split.TRAIN, silence_keep=settings.silence_keep, seed=settings.seed)
    samples = [x for w in chosen for x in w.labels if x.split is Split.TRAIN and x.trained]
    labels, answers = len(samples), sum(not x.silence for x in samples)
    if labels < 2 or (answers == 0 and extra.since is None):  # a LoRA that goes on knows how they speak
        none = f"none of {len(windows)} windows holds a word of the person in the train split"
        what = "there is one sample, and two are the least" if labels == 1 else none
        raise TrainingError(
            f"too few messages to train on: {what}; import more history (`twin import`), or check `people` in "
            "persona.toml"
        )
    general = _share([r for w in extra.general if (r := row_of(w, None))], len(rows), settings)
    if extra.held_out is None:
        tune = rows_of(windows, Split.TUNE)
    else:
        tune = [r for w in extra.held_out if (r := row_of(w, None))]
    counts = {"new": len(rows) - replayed, "replayed": replayed, "general": len(general)}
    return Selected((*rows, *general), tuple(tune), answers, counts)


def _share(rows: Sequence[Row], others: int, settings: Training) -> list[Row]:
    """As many rows as make `general_share` of all; which ones, a hash decides."""
    wanted = round(others * settings.general_share / (1 - settings.general_share))
    return sorted(rows, key=lambda r: uniform("general", str(settings.seed), repr(r.ids)))[:wanted]


def _name(window: Window) -> str:
    label = window.labels[0]
    return f"{label.scene} {label.message_id}"
