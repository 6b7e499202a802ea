"""One document a row, and rows of like length next to one another, so that a micro-batch has little padding.

    documents   aaaaaaa b ccc dd            in windows of the run: by length, in groups, the groups in random order
    rows        dd..|b...|aaaa|ccc.|aaa.    max_seqlen = 4, groups of 2: d with b, and the pieces of a with c

Longest with longest costs the least. Sorting the whole run would do that best, and would train on short documents
first; a window of some steps keeps the order random beyond it (LongAlign, arXiv:2401.18058, section 3.2, finds sorted
batches as good as packing).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datamodules.packing.padded import Padded
from datamodules.packing.plan import PackedRows

WINDOW_ROWS = 1024


@dataclass(frozen=True)
class LengthBuckets:
    """The packing policy.

    Args:
        max_seqlen: Tokens of a row.
        rows_per_group: Rows of like length that stand together; those of a micro-batch.
        document_mask: Changes nothing: a row holds one document.
        reset_positions: Changes nothing: every row begins at position 0.
    """

    max_seqlen: int
    rows_per_group: int = 1
    document_mask: bool = False
    reset_positions: bool = False

    one_piece_a_row = True
    kept_back = 0

    def tokens_for(self, num_rows: int, lengths: np.ndarray) -> int:
        """By the average length of a piece."""
        return Padded(self.max_seqlen).tokens_for(num_rows, lengths)

    def rows(self, lengths: np.ndarray, *, seed: int, complete: bool, num_rows: int | None = None) -> PackedRows:
        """One piece of a document a row, in the order of the stream; `arranged` groups them once they are mixed."""
        return Padded(self.max_seqlen).rows(lengths, seed=seed, complete=complete, num_rows=num_rows)

    def arranged(self, num_tokens: np.ndarray, *, seed: int) -> np.ndarray:
        """The order of a run's rows: groups by length, in random order within windows of the run.

        Args:
            num_tokens: Tokens of each row as the mixture dealt them, [num_rows] int64.
            seed: Of the order of the groups.

        Returns:
            [num_rows] int64, the row that comes at each place.
        """
        order = np.empty(len(num_tokens), dtype=np.int64)
        for first in range(0, len(num_tokens), WINDOW_ROWS):
            by_length = first + np.argsort(num_tokens[first : first + WINDOW_ROWS], kind="stable")
            groups = np.random.default_rng((seed, first)).permutation(-(-len(by_length) // self.rows_per_group))
            places = (groups[:, None] * self.rows_per_group + np.arange(self.rows_per_group)).reshape(-1)
            order[first : first + WINDOW_ROWS] = by_length[places[places < len(by_length)]]  # the last may be smaller
        return order
