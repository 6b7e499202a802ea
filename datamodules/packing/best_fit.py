"""Best fit decreasing: whole documents, longest first, each into the fullest row that still has room for it.

    documents   aaaaaaaaaaa bbb cccc d ee         capacity = 8
    pieces      aaaaaaaa aaa bbb cccc d ee        a is longer than a row: its rest is a piece like any other
    placed      aaaaaaaa cccc aaa bbb ee d        into the row with the least room that is enough, or a new one
    rows        aaaaaaaa|aaaccccd|bbbee           d closes the gap of one; inside a row the order is the given one

No token is dropped, and a document is cut only where it must be. Rows are as good as full: 100,000 documents of the
usual long-context mix need not one row more than tokens / capacity, rounded up. Cost: linear in the documents plus one
pass over the capacity, tens of millions of documents a second on one core (`python -m recipes.benchmark
target=packing`), after about a second to compile in the first process that ever packs.
The alternative, `concat_chunk`, cuts documents at the edges of rows and needs no plan over all lengths.

Reference: Ding et al., "Fewer Truncations Improve Language Modeling" (2024), section 3: same rows as theirs but for
ties, which we give to the bin that came to its space last.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# N documents, P pieces, B bins


class Pieces(NamedTuple):
    """Documents that fit into a row and parts of longer ones: tokens `start` to `end` of `document`."""

    document: np.ndarray  # [P] int32, or int64 where that is too narrow; place in the list that was split
    start: np.ndarray  # [P] of the same type
    end: np.ndarray  # [P] of the same type


class Bins(NamedTuple):
    """Which document stands in which bin, both ways round."""

    bin_of: np.ndarray  # [N] int32, the bin of each document
    order: np.ndarray  # [N] int32, documents by bin; inside a bin in the order in which they were given
    offsets: np.ndarray  # [B + 1] int64, bin b holds order[offsets[b] : offsets[b + 1]]

    @property
    def num_bins(self) -> int:
        return len(self.offsets) - 1


def split(lengths: np.ndarray, *, capacity: int) -> Pieces:
    """Cut documents longer than a row into whole rows and a rest; nothing is dropped.

    Args:
        lengths: Tokens of each document, [N] integers; a document without tokens has no piece.
        capacity: Tokens of a row, at least 1.

    Returns:
        The pieces, in the order of the documents and of their tokens.
    """
    check_capacity(capacity)
    lengths = np.asarray(lengths)
    if lengths.dtype != np.int32:  # which is left as it is: of ten million documents a copy would be felt
        lengths = lengths.astype(np.int64, copy=False)
    if lengths.size and lengths.min() < 0:
        raise ValueError(f"a document of {lengths.min()} tokens cannot be packed; lengths are not negative")
    num_pieces = -(-lengths // capacity)
    most = max(int(lengths.max(initial=0)), int(num_pieces.sum(dtype=np.int64)))
    kind = np.int32 if most < 1 << 31 else np.int64
    document = np.repeat(np.arange(len(lengths), dtype=kind), num_pieces)
    before = np.cumsum(num_pieces, dtype=kind)
    before -= num_pieces.astype(kind, copy=False)  # pieces of all earlier documents
    start = np.arange(len(document), dtype=kind)
    start -= before[document]
    start *= kind(capacity)
    end = lengths.astype(kind, copy=False)[document]
    end -= start
    np.minimum(end, capacity, out=end)
    end += start  # start + capacity might be too large for its type
    return Pieces(document, start, end)


def best_fit(lengths: np.ndarray, *, capacity: int) -> Bins:
    """Pack documents into as few bins as best fit decreasing finds.

    Bins are numbered as they are opened, those with the longest documents first: shuffle them before training.

    Args:
        lengths: Tokens of each document, [N] integers from 1 to capacity; longer ones go through `split`.
        capacity: Tokens of a bin.

    Raises:
        ValueError: A document is empty, or longer than a bin.
    """
    check_capacity(capacity)
    lengths = np.asarray(lengths)
    if lengths.size == 0:
        return Bins(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(1, np.int64))
    if lengths.min() < 1 or lengths.max() > capacity:
        raise ValueError(
            f"documents of {lengths.min()} to {lengths.max()} tokens do not all fit into bins of {capacity};"
            " pack pieces of 1 to capacity tokens, as split() makes them"
        )
    from datamodules.packing.best_fit_kernel import pack

    return Bins(*pack(np.require(lengths, np.int32, ["C", "W"]), capacity))


def check_capacity(capacity: int) -> None:
    if not 1 <= capacity < 2**31:
        raise ValueError(f"a row of {capacity} tokens cannot be packed; set max_seqlen from 1 to {2**31 - 1}")
