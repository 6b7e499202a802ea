"""Documents in order of their length over the whole run, short ones first: Index-1.9B-32K's negative result.

    drawn      cc aaaaa b dddd | ee …        the first tokens of the source's random order, as many as the run takes
    sorted     b cc dddd aaaaa               the very same tokens, by the length of their document
    rows       bccd ddda aaaa                max_seqlen = 4

So the run reads the same tokens as without the schedule, and only their order is another. Index's validation loss
jumped from 1.57 to 1.92 between steps 300 and 400 and stayed there (figure in the report). They suspected an uneven
distribution: where one source has the short documents and another the long ones, sorting all of them changes the
mixture on the way. `remix` tells the two apart. Cost: one sort of the documents of the run, one binary search per row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from datamodules.length_schedules.rows import Rows
from datamodules.mixture import ListedOrder, Mixture
from datamodules.packing.concat_chunk import ConcatChunk
from datamodules.packing.plan import Segment, source_seed


@dataclass(frozen=True)
class SortByLength:
    """The order of a run by document length.

    Args:
        remix: Every source goes from short to long on its own, and the mixture deals sequences as ever, so that its
            shares hold at any time. Without it all rows stand in one order, by the document that they begin with, and
            the shares hold over the whole run only.

    Reference:
        The technical report of Index-1.9B-32K (github.com/bilibili/Index-1.9B), context-length warm-up. Buckets, steps
        and learning rate were not published; one order without buckets, and `remix`, are ours.
    """

    remix: bool = False

    @property
    def keeps_phases(self) -> bool:
        return self.remix

    def rows(
        self,
        mixture: Mixture,
        *,
        lengths: Mapping[str, np.ndarray],
        packing: ConcatChunk,
        seed: int,
        sequences_per_step: int,
    ) -> Rows:
        """As in the module's header; every row at its full length."""
        counts = np.bincount(mixture.dealt(), minlength=len(mixture.sources))
        plans = {}
        for number, name in enumerate(mixture.sources):
            stream = packing.plan(lengths=lengths[name], seed=source_seed(seed, number))
            documents, drawn = stream.drawn(int(counts[number]) * packing.max_seqlen)
            plans[name] = SortedPlan(documents, drawn, max_seqlen=packing.max_seqlen)
        num_steps = mixture.num_sequences // sequences_per_step
        return Rows(
            mixture=mixture if self.remix else _one_order(plans),
            plans=plans,
            context_lengths=np.full(num_steps, packing.max_seqlen),
        )


class SortedPlan:
    """The rows of one source.

    Args:
        documents: [n] int64, the documents of the run.
        lengths: [n] int64, how many tokens of each, from its first; these sum to whole rows.
        max_seqlen: Tokens of a row.
    """

    def __init__(self, documents: np.ndarray, lengths: np.ndarray, *, max_seqlen: int) -> None:
        order = np.argsort(lengths, kind="stable")
        self.documents = documents[order]
        self.starts = np.concatenate([[0], np.cumsum(lengths[order])])  # [n + 1], where each lies in the stream
        self.max_seqlen = max_seqlen

    def segments(self, i: int) -> list[Segment]:
        """The pieces of row i."""
        begin, end = i * self.max_seqlen, (i + 1) * self.max_seqlen
        first, last = self._slot(np.array([begin, end - 1]))
        pieces = []
        for slot in range(first, last + 1):
            start = int(self.starts[slot])
            pieces.append(
                Segment(int(self.documents[slot]), max(begin - start, 0), min(end, int(self.starts[slot + 1])) - start)
            )
        return pieces

    def first_lengths(self) -> np.ndarray:
        """The length of the document that each row begins with, [num_rows] int64; it never falls."""
        slots = self._slot(np.arange(0, self.starts[-1], self.max_seqlen))
        return np.diff(self.starts)[slots]

    def _slot(self, places: np.ndarray) -> np.ndarray:
        """Which document lies at each place of the stream."""
        return np.searchsorted(self.starts, places, side="right") - 1


def _one_order(plans: Mapping[str, SortedPlan]) -> ListedOrder:
    """All rows of all sources by the length of the document that they begin with."""
    lengths = [plan.first_lengths() for plan in plans.values()]
    sources = np.repeat(np.arange(len(plans)), [len(found) for found in lengths])
    return ListedOrder(list(plans), sources[np.argsort(np.concatenate(lengths), kind="stable")])
