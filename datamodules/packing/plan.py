"""What a packing plan is: for each sequence, the pieces of documents that fill it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np


class Segment(NamedTuple):
    """A piece of one document inside a sequence: its tokens `start` to `end`."""

    document: int
    start: int
    end: int


def source_seed(seed: int, number: int) -> int:
    """The seed of a run's source by its number, so that two sources of the same length have different orders."""
    return seed + 7919 * number


class PackingPlan(Protocol):
    """Sequence i of one source, as a pure function of (document lengths, configuration, seed, i)."""

    def segments(self, i: int) -> list[Segment]:
        """The pieces of sequence i, in order; together at most `max_seqlen` tokens."""
        ...


class Packing(Protocol):
    """A packing policy."""

    def plan(self, *, lengths: np.ndarray, seed: int) -> PackingPlan:
        """The plan over documents of the given lengths, [num_documents] int64."""
        ...


def source_plans(
    packing: Packing, lengths: Mapping[str, np.ndarray], *, sources: Sequence[str], seed: int
) -> dict[str, PackingPlan]:
    """Source -> its plan, each source with documents in an order of its own."""
    return {
        name: packing.plan(lengths=lengths[name], seed=source_seed(seed, number)) for number, name in enumerate(sources)
    }
