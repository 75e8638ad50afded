"""Windows → rows of one split → batches of similar length, in an order that depends on seed and epoch alone.

Rows are padded on the right and carry no attention mask: attention looks back only, so no real token ever sees the
padding, and no label stands on it. (A mask of ones beside packed rows silently mixes them; this has none to get wrong.)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Sampler

from training.samples import Split, Window, trained_positions

IGNORED = -100
"""Target of a position without a label."""
_STEP = 32
"""Batches are a multiple of so many tokens wide. oneDNN compiles kernels for each width it meets and keeps them: 15 MB
and a tenth of a second a width (Gemma 3 270M). 302 rows of a history have 117 widths, so ten, with 3 % more padding."""
_SORTED_BATCHES = 16
"""Rows are sorted by length within so many batches: shorter padding, and still a shuffle."""


@dataclass(frozen=True, slots=True)
class Row:
    """One forward pass.

    Args:
        ids: input ids, up to the last one a label is predicted from.
        targets: for each, the id to predict, or `IGNORED`.
    """

    ids: list[int]
    targets: list[int]

    @property
    def labels(self) -> int:
        """How many positions are trained."""
        return sum(t != IGNORED for t in self.targets)


def rows_of(windows: Sequence[Window], split: Split, *, silence_keep: float = 1.0, seed: int = 0) -> list[Row]:
    """The rows that hold labels of a split; what follows the last label is cut off, it costs and teaches nothing.

    Args:
        windows: from `training.samples.windows`.
        split: whose labels.
        silence_keep: part of the silences trained (train split only).
        seed: of that choice.
    """
    found = (row_of(w, split, silence_keep=silence_keep, seed=seed) for w in windows)
    return [row for row in found if row is not None]


def row_of(window: Window, split: Split | None, *, silence_keep: float = 1.0, seed: int = 0) -> Row | None:
    """The row of one window; None where it holds no label of the split (None: of any)."""
    if split is Split.TRAIN:
        positions = trained_positions(window, silence_keep=silence_keep, seed=seed)
    else:
        positions = [p for label in window.labels if split in (None, label.split) for p in label.trained]
    if not positions:
        return None
    targets = [IGNORED] * positions[-1]
    for position in positions:
        targets[position - 1] = window.ids[position]
    return Row(list(window.ids[: positions[-1]]), targets)


def wide(tokens: int) -> int:
    """How wide a batch is made for its longest row."""
    return -(-tokens // _STEP) * _STEP


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """`input_ids` and `labels` (already shifted), both (batch, longest row and a little), padded on the right."""
    width = wide(max(len(r["input_ids"]) for r in rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED, dtype=torch.long)
    for number, row in enumerate(rows):
        n = len(row["input_ids"])
        ids[number, :n] = torch.tensor(row["input_ids"])
        labels[number, :n] = torch.tensor(row["labels"])
    return {"input_ids": ids, "labels": labels}


def pack(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """`input_ids`, `labels` and `position_ids`, all (1, tokens): rows behind one another, positions beginning anew.

    Attention kernels keep rows apart by the positions where no mask is given.
    """
    ids = [t for r in rows for t in r["input_ids"]]
    labels = [t for r in rows for t in r["labels"]]
    positions = [n for r in rows for n in range(len(r["input_ids"]))]
    columns = {"input_ids": ids, "labels": labels, "position_ids": positions}
    return {name: torch.tensor([column]) for name, column in columns.items()}


class ByLength(Sampler[int]):
    """Row numbers, so that each run of `batch_size` has similar lengths.

    Args:
        lengths: of the rows, in tokens.
        batch_size: rows in a batch.
        seed: with the epoch, decides the order; a resumed run goes on with the order it had.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        # The rest that fills no batch goes last, or it would shift every batch behind it.
        full = len(order) // self.batch_size * self.batch_size
        step = self.batch_size * _SORTED_BATCHES
        batches = []
        for start in range(0, full, step):
            part = sorted(order[start : min(start + step, full)], key=lambda i: self.lengths[i])
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        for number in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[number]
        yield from order[full:]
