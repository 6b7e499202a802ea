"""Concatenate and chunk: documents one after the other, cut every `max_seqlen` tokens.

    documents   aaaaaaa bbb cccccc          (in the epoch's random order)
    rows        aaaa|aaab|bbcc|cccc         max_seqlen = 4; nothing dropped, nothing padded

The stream goes on from one epoch into the next, each epoch with an order of its own. Cost: one cumulative sum of the
document lengths. Together's LLaMA-2-7B-32K packs this way, without a document mask; Index-1.9B-32K masks documents and
resets positions (both in docs of the presets). The alternative, best-fit, keeps documents whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datamodules.packing.plan import PackedRows, blocks, joined, narrow


@dataclass(frozen=True)
class ConcatChunk:
    """The packing policy.

    Args:
        max_seqlen: Tokens of a row.
        document_mask: Pieces of different documents in a row do not see one another.
        reset_positions: `position_ids` restart at 0 with every piece.
    """

    max_seqlen: int
    document_mask: bool = False
    reset_positions: bool = False

    one_piece_a_row = False

    @property
    def kept_back(self) -> int:
        """Less than a row; two, for good measure."""
        return 2 * self.max_seqlen

    def tokens_for(self, num_rows: int, lengths: np.ndarray) -> int:
        """Just as many as the rows hold."""
        return num_rows * self.max_seqlen

    def rows(self, lengths: np.ndarray, *, seed: int, complete: bool, num_rows: int | None = None) -> PackedRows:
        """Every row is full but the last of a complete stream, which holds what is left."""
        lengths = np.asarray(lengths)
        num_tokens = int(lengths.sum(dtype=np.int64))
        if not complete:
            num_tokens -= num_tokens % self.max_seqlen
        if num_rows is not None:
            num_tokens = min(num_tokens, num_rows * self.max_seqlen)
        parts = [PackedRows(np.zeros(1, np.int64), *(np.zeros(0, np.int32) for _ in range(3)))]
        before = 0
        for block in blocks(len(lengths)):
            if before < num_tokens:
                parts.append(self._cut(lengths, block, before=before, num_tokens=num_tokens))
            before += int(lengths[block].sum(dtype=np.int64))
        return joined(parts)

    def _cut(self, lengths: np.ndarray, block: slice, *, before: int, num_tokens: int) -> PackedRows:
        """The pieces of some documents of the stream, and the rows that begin within them."""
        ends = before + np.cumsum(lengths[block], dtype=np.int64)  # of the documents in the stream
        last = min(int(ends[-1]), num_tokens)
        cuts = np.arange(-(-before // self.max_seqlen) * self.max_seqlen, last, self.max_seqlen)
        begins = np.sort(np.concatenate([cuts, [before], ends[ends < last]]), kind="stable")  # of the pieces
        begins = begins[np.diff(begins, prepend=-1) > 0]  # np.union1d takes seconds for what is nearly sorted
        items = np.searchsorted(ends, begins, side="right")
        starts = begins - (ends - lengths[block])[items]
        return PackedRows(
            offsets=np.append(np.searchsorted(begins, cuts), len(begins)),
            items=narrow(block.start + items),
            starts=narrow(starts),
            ends=narrow(starts + np.diff(begins, append=last)),
        )
