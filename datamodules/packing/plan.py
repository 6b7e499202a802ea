"""What a packing plan is: for each sequence, the pieces of documents that fill it."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Segment(NamedTuple):
    """A piece of one document inside a sequence: its tokens `start` to `end`."""

    document: int
    start: int
    end: int


class PackingPlan(Protocol):
    """Sequence i of one source, as a pure function of (document lengths, configuration, seed, i)."""

    def segments(self, i: int) -> list[Segment]:
        """The pieces of sequence i, in order; together at most `max_seqlen` tokens."""
        ...
