"""One optimizer step is the unit: a loader that yields, for each step, this rank's micro-batches.

The global order of sequences is the data set's own; step s covers the sequences [s * n, (s + 1) * n). Ranks take them
in turn, or by what they cost (`row_planning.py`); who computes a row changes nothing in the step. A changed number of
ranks or workers therefore changes nothing in what a step sees, and resuming needs one integer, the sequences consumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from datamodules.batch import IGNORE_INDEX, PADDING_DOCUMENT, Batch
from datamodules.packed_dataset import PackedDataset, Sequence

PADDED_TO = 64
"""A micro-batch is padded to a multiple of this, so that kernels see few lengths."""

PADDING = {"labels": IGNORE_INDEX, "document_ids": PADDING_DOCUMENT}
"""What fills a row that its tokens do not; 0 in the other fields, and positions that count on their own."""


class StepSampler(Sampler[list[int]]):
    """The row indices of each optimizer step, for one rank.

    Args:
        num_steps: Optimizer steps of the whole run; also `len()`, on resumption too, as Lightning counts from 0.
        sequences_per_step: Rows of one step over all ranks.
        consumed: Returns the number of rows consumed so far; read when iteration begins.
        rank: This rank.
        world_size: Number of data-parallel ranks; divides `sequences_per_step`.
        may_be_uneven: A step may have any number of rows: `share` gives ranks as many each, some of them empty.
        share: Rows of a step, rank -> those that the rank computes, in the order of its micro-batches. None deals them
            in turn. Who computes a row changes nothing in the step.
    """

    def __init__(
        self,
        *,
        num_steps: int,
        sequences_per_step: int,
        consumed: Callable[[], int],
        rank: int = 0,
        world_size: int = 1,
        share: Callable[[np.ndarray, int], np.ndarray] | None = None,
        may_be_uneven: bool = False,
    ) -> None:
        if not may_be_uneven and sequences_per_step % world_size:
            raise ValueError(
                f"{sequences_per_step} sequences per step do not divide over {world_size} ranks;"
                " set data.tokens_per_step or trainer.devices"
            )
        self.num_steps = num_steps
        self.sequences_per_step = sequences_per_step
        self.consumed = consumed
        self.rank = rank
        self.world_size = world_size
        self.share = share or (lambda rows, rank: rows[rank::world_size])

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.consumed() // self.sequences_per_step, self.num_steps):
            first = step * self.sequences_per_step
            yield self.share(np.arange(first, first + self.sequences_per_step), self.rank).tolist()


class RankRows(Dataset[Sequence]):
    """Every R-th row of a data set for one rank, as many on every rank.

    A rank with fewer batches than others would leave them waiting in a collective for ever. Where the rows do not
    divide, a rank that has none left repeats row 0 with every label masked, which adds nothing to the loss: the result
    is over the same rows for every R.

    Args:
        data: At least one row.
        rank: This rank.
        world_size: R.
    """

    def __init__(self, data: PackedDataset, *, rank: int, world_size: int) -> None:
        self.data = data
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return math.ceil(len(self.data) / self.world_size)

    def __getitem__(self, k: int) -> Sequence:
        if not 0 <= k < len(self):
            raise IndexError(f"row {k} of {len(self)}")
        i = k * self.world_size + self.rank
        if i < len(self.data):
            return self.data[i]
        row = self.data[0]
        return row._replace(labels=np.full_like(row.labels, IGNORE_INDEX))


def collate(sequences: list[Sequence], *, max_seqlen: int | None = None) -> Batch:
    """Stack rows into one batch, padded to the longest.

    Args:
        sequences: At least one.
        max_seqlen: The longest row that there can be. Shorter batches get a length that is a multiple of `PADDED_TO`;
            None pads to the longest row.
    """
    num_tokens = max(1, *(len(row.input_ids) for row in sequences))
    if max_seqlen is not None:
        num_tokens = min(-(-num_tokens // PADDED_TO) * PADDED_TO, max_seqlen)
    names = [name for name in Sequence._fields if getattr(sequences[0], name) is not None]
    return Batch(**{name: torch.from_numpy(_stacked(sequences, name, num_tokens)) for name in names})  # type: ignore[typeddict-item]


def _stacked(sequences: list[Sequence], name: str, num_tokens: int) -> np.ndarray:
    """One field of all rows, [B, num_tokens] of its dtype."""
    rows = [getattr(row, name) for row in sequences]
    if all(len(row) == num_tokens for row in rows):
        return rows[0][None] if len(rows) == 1 else np.stack(rows)
    stacked = np.full((len(rows), num_tokens), PADDING.get(name, 0), dtype=rows[0].dtype)
    for place, row in zip(stacked, rows, strict=True):
        place[: len(row)] = row
        if name == "position_ids":
            place[len(row) :] = np.arange(num_tokens - len(row))
    return stacked


def _collate_step(sequences: list[Sequence], *, micro_batch_size: int, max_seqlen: int | None) -> list[Batch]:
    return [
        collate(sequences[k : k + micro_batch_size], max_seqlen=max_seqlen)
        for k in range(0, len(sequences), micro_batch_size)
    ]


def step_collator(micro_batch_size: int, max_seqlen: int | None = None) -> Callable[[list[Sequence]], list[Batch]]:
    """A collate function that turns one rank's share of a step into micro-batches; the last one may be smaller."""
    return partial(_collate_step, micro_batch_size=micro_batch_size, max_seqlen=max_seqlen)
