"""Concatenate and chunk: documents one after the other, cut every `max_seqlen` tokens.

    documents   aaaaaaa bbb cccccc          (in the epoch's random order)
    sequences   aaaa|aaab|bbcc|cccc         max_seqlen = 4; nothing dropped, nothing padded

The stream goes on from one epoch into the next, each epoch with an order of its own, so that sequence i covers the
tokens [i * max_seqlen, (i + 1) * max_seqlen) of an endless stream. Cost: one permutation and one cumulative sum of the
document lengths per epoch, one binary search per sequence. Together's LLaMA-2-7B-32K packs this way, without a
document mask; Index-1.9B-32K masks documents and resets positions (both in docs of the presets).
The alternative, best-fit, keeps documents whole at the price of a plan over all lengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from datamodules.packing.plan import Segment


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

    def plan(self, *, lengths: np.ndarray, seed: int) -> ConcatChunkPlan:
        """The plan over documents of the given lengths, [num_documents] int64, all positive."""
        return ConcatChunkPlan(lengths=lengths, max_seqlen=self.max_seqlen, seed=seed)


class ConcatChunkPlan:
    """See the module's header."""

    def __init__(self, *, lengths: np.ndarray, max_seqlen: int, seed: int) -> None:
        if len(lengths) == 0 or int(lengths.sum()) == 0:
            raise ValueError("there are no tokens to pack; check corpus.sources")
        self.lengths = lengths
        self.max_seqlen = max_seqlen
        self.seed = seed
        self.tokens_per_epoch = int(lengths.sum())
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def __getstate__(self) -> dict[str, object]:
        return {"lengths": self.lengths, "max_seqlen": self.max_seqlen, "seed": self.seed}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # the cache is not pickled, it is cheap to make again

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Document order of one epoch [num_documents], and where each starts in its stream [num_documents + 1]."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.lengths))
        return order, np.concatenate([[0], np.cumsum(self.lengths[order])])

    def drawn(self, num_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """The documents of the stream's first tokens, in order; the last one is cut where they end.

        Returns:
            Documents [n] int64, and how many tokens of each, [n] int64; these sum to `num_tokens`.
        """
        epochs = [self._make_epoch(epoch)[0] for epoch in range(-(-num_tokens // self.tokens_per_epoch))]
        documents = np.concatenate([np.zeros(0, np.int64), *epochs])
        ends = np.minimum(np.cumsum(self.lengths[documents]), num_tokens)
        lengths = np.diff(ends, prepend=0)
        return documents[lengths > 0], lengths[lengths > 0]

    def segments(self, i: int) -> list[Segment]:
        position, missing = i * self.max_seqlen, self.max_seqlen
        pieces: list[Segment] = []
        while missing:
            epoch, offset = divmod(position, self.tokens_per_epoch)
            order, starts = self._epoch(epoch)
            first = int(np.searchsorted(starts, offset, side="right")) - 1
            for slot in range(first, len(order)):
                start = max(offset - int(starts[slot]), 0)
                end = min(start + missing, int(self.lengths[order[slot]]))
                pieces.append(Segment(int(order[slot]), start, end))
                missing -= end - start
                position += end - start
                if not missing:
                    break
        return [piece for piece in pieces if piece.end > piece.start]
