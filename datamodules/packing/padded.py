"""One document a row, padded to its end; the plainest layout, and the most wasteful.

    documents   aaaaaaa bbb ccc             a longer document is cut into rows of its own
    rows        aaaa|aaa.|bbb.|ccc.         max_seqlen = 4; a dot is padding, which costs memory and no loss

Rows differ in their tokens as documents do; that the mixture's shares are right all the same, see `run_end`.
A micro-batch is cut to its longest row, so padding up to `max_seqlen` is not computed where all its rows are short.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datamodules.packing.best_fit import split
from datamodules.packing.plan import PackedRows


@dataclass(frozen=True)
class Padded:
    """The packing policy.

    Args:
        max_seqlen: Tokens of a row.
        document_mask: Changes nothing: a row holds one document.
        reset_positions: Changes nothing: every row begins at position 0.
    """

    max_seqlen: int
    document_mask: bool = False
    reset_positions: bool = False

    one_piece_a_row = True
    kept_back = 0

    def tokens_for(self, num_rows: int, lengths: np.ndarray) -> int:
        """By the average length of a piece."""
        return num_rows * int(lengths.sum()) // max(int((-(-lengths // self.max_seqlen)).sum()), 1)

    def rows(self, lengths: np.ndarray, *, seed: int, complete: bool, num_rows: int | None = None) -> PackedRows:
        """One piece of a document a row, in the order of the stream."""
        items, starts, ends = (column[:num_rows] for column in split(lengths, capacity=self.max_seqlen))
        return PackedRows(offsets=np.arange(len(items) + 1), items=items, starts=starts, ends=ends)
