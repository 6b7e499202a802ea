"""Best-fit packing of a run: whole documents, in windows of the stream, so that the order stays random.

    stream    documents in the epoch's order, those longer than a row in pieces
    window    about `WINDOW_ROWS` rows' worth of them, packed by `best_fit`; its rows in random order
    carried   the rows that are least full, whose documents go into the next window

Packing all documents of a run at once would fill rows no better and would mix the phases of the run. Cost: that of
`best_fit`, and one permutation of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from datamodules.packing.best_fit import Bins, Pieces, best_fit, split
from datamodules.packing.plan import PackedRows, joined, narrow, sums, take_rows

WINDOW_ROWS = 1024
FULL = 0.99
"""Share of a row from which on it is not worth carrying."""
MOST_CARRIED = 8
"""One row in so many is carried at most; where no two documents fit together, all rows are half empty for good."""


@dataclass(frozen=True)
class BestFitPacking:
    """The packing policy.

    Args:
        max_seqlen: Tokens of a row.
        document_mask: Pieces of different documents in a row do not see one another.
        reset_positions: `position_ids` restart at 0 with every piece.

    Reference:
        Ding et al. 2024, "Fewer Truncations Improve Language Modeling" (arXiv:2404.10830); the windows are ours.
    """

    max_seqlen: int
    document_mask: bool = False
    reset_positions: bool = False

    one_piece_a_row = False

    @property
    def kept_back(self) -> int:
        """The carried rows: few of a thousand, or one in `MOST_CARRIED` of at most twice as many where little fits."""
        return WINDOW_ROWS // 2 * self.max_seqlen

    def tokens_for(self, num_rows: int, lengths: np.ndarray) -> int:
        """Nearly as many as the rows hold."""
        return num_rows * self.max_seqlen

    def rows(self, lengths: np.ndarray, *, seed: int, complete: bool, num_rows: int | None = None) -> PackedRows:
        """Rows of whole documents, and of pieces of those that are longer than a row."""
        left = 1 << 62 if num_rows is None else num_rows  # rows that are still to be filled
        found = [PackedRows(np.zeros(1, np.int64), *(np.zeros(0, np.int32) for _ in range(3)))]
        carried = Pieces(*(np.zeros(0, np.int64) for _ in range(3)))
        edges = window_edges(lengths, tokens=WINDOW_ROWS * self.max_seqlen)
        for window, (first, last) in enumerate(pairwise(edges)):
            fresh = split(lengths[first:last], capacity=self.max_seqlen)
            pieces = Pieces(
                *(
                    np.concatenate(both)
                    for both in zip(carried, fresh._replace(document=fresh.document + first), strict=True)
                )
            )
            sizes = pieces.end - pieces.start
            bins = best_fit(sizes, capacity=self.max_seqlen)
            if is_end := bins.num_bins >= left:
                bins = self._just_enough(sizes, num_carried=len(carried.document), num_rows=left)
            is_last = is_end or (complete and window == len(edges) - 2)
            fill = sums(sizes[bins.order], bins.offsets) / self.max_seqlen
            kept = np.arange(bins.num_bins) if is_last else np.sort(_fullest(fill))
            kept = kept[np.random.default_rng((seed, window)).permutation(len(kept))][:left]
            left -= len(kept)
            offsets, places = take_rows(bins.offsets, kept)
            placed = bins.order[places]
            rest = np.ones(len(sizes), dtype=bool)
            rest[placed] = False
            found.append(PackedRows(offsets, *(narrow(column[placed]) for column in pieces)))
            if is_end:
                break
            carried = Pieces(*(column[rest] for column in pieces))
        return joined(found)

    def _just_enough(self, sizes: np.ndarray, *, num_carried: int, num_rows: int) -> Bins:
        """The first pieces of a window that fill so many rows, packed.

        Rows that are left out because they are not full would be of one source rather than of another.

        Args:
            sizes: Of the pieces, the carried ones first; all of them fill the rows.
            num_carried: Pieces that have to be used.
            num_rows: Rows that are wanted.
        """
        fewest, enough = num_carried, len(sizes)
        while fewest < enough:
            middle = (fewest + enough) // 2
            if best_fit(sizes[:middle], capacity=self.max_seqlen).num_bins >= num_rows:
                enough = middle
            else:
                fewest = middle + 1
        return best_fit(sizes[:enough], capacity=self.max_seqlen)


def window_edges(lengths: np.ndarray, *, tokens: int) -> np.ndarray:
    """Cut a stream where about so many tokens are full, [num_windows + 1] int64; no window is empty."""
    ends = np.cumsum(lengths, dtype=np.int64)
    if not len(ends):
        return np.zeros(1, np.int64)
    cuts = np.searchsorted(ends, np.arange(tokens, int(ends[-1]), tokens), side="right")
    return np.unique(np.concatenate([[0], cuts, [len(lengths)]]))


def _fullest(fill: np.ndarray) -> np.ndarray:
    """The rows that are not carried into the next window, [n] int64."""
    order = np.argsort(-fill, kind="stable")
    return order[: max((fill >= FULL).sum(), len(fill) - len(fill) // MOST_CARRIED)]
