"""Dataset Decomposition: documents in pieces of 2^k tokens, each step of one length, short ones first in every cycle.

    documents   aaaaaaaaaaa bbbbb               smallest = 2, max_seqlen = 8
    pieces      8: aaaaaaaa   4: bbbb   2: aa   what is below the smallest is dropped (here: a, b) and reported
    a row of 2  aa cc dd ee                     a row of 8  aaaaaaaa          each piece is a sequence of its own

No sequence holds tokens of two documents, and a document is cut no oftener than it has binary digits. A step takes all
its rows from one bucket: shorter pieces are more sequences and as many tokens. The steps of each bucket are in
proportion to the tokens that the mixture has in it. Each of several cycles goes through all buckets: at every step a
bucket is drawn, in proportion to its tokens times its odds, until it is used up for the cycle. Large odds for short
pieces make a cycle begin short and end long. Cost: arrays over the pieces of the run, made once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from datamodules.length_schedules.rows import Rows
from datamodules.mixture import ListedOrder, Mixture, cumulative_counts
from datamodules.packing.concat_chunk import ConcatChunk
from datamodules.packing.plan import Segment, source_seed

# S sources, K buckets


@dataclass(frozen=True)
class DatasetDecomposition:
    """The curriculum of a run over buckets of pieces.

    Args:
        max_seqlen: Tokens of a row and of the largest piece: `smallest` times a power of two.
        smallest: Tokens of the smallest piece.
        odds: For each bucket, the shortest first; None takes powers of two, 32:16:8:4:2:1 for six buckets.
        cycles: How often the run goes from short to long.

    Raises:
        ValueError: `max_seqlen` is no power of two times `smallest`, or a value is not in its range.

    Reference:
        Pouransari et al. 2024, arXiv:2405.13226, and github.com/apple/ml-dataset-decomposition: buckets from 256 to
        8192, odds "Grow-P2", 8 cycles; weights of tokens times odds that stay until a bucket is used up. Ours: a piece
        has 2^k tokens and so one target less (theirs 2^k + 1 tokens), documents beyond the largest piece are cut into
        largest pieces first (theirs at random, in favour of short ones), the mixture is of all sources together.
    """

    max_seqlen: int
    smallest: int = 256
    odds: Sequence[float] | None = None
    cycles: int = 8

    keeps_phases = False

    def __post_init__(self) -> None:
        if self.smallest < 2:
            raise ValueError(f"length_schedule.smallest={self.smallest} must be a whole number of at least 2")
        times, rest = divmod(self.max_seqlen, self.smallest)
        if rest or times & (times - 1) or not times:
            raise ValueError(
                f"packing.max_seqlen={self.max_seqlen} is not length_schedule.smallest={self.smallest} times a power of"
                " two; change one of them"
            )
        if self.cycles < 1:
            raise ValueError(f"length_schedule.cycles={self.cycles} must be a whole number of at least 1")
        if self.odds is not None and not all(_is_positive(number) for number in self.odds):
            raise ValueError(f"length_schedule.odds={list(self.odds)} must be numbers above 0")
        if self.odds is not None and len(self.odds) != len(self.buckets):
            raise ValueError(
                f"length_schedule.odds has {len(self.odds)} numbers for the {len(self.buckets)} buckets"
                f" {', '.join(map(str, self.buckets))}; give one for each, or null"
            )

    @property
    def buckets(self) -> list[int]:
        """Tokens of a piece, the shortest first."""
        return [self.smallest << k for k in range((self.max_seqlen // self.smallest).bit_length())]

    def rows(
        self,
        mixture: Mixture,
        *,
        lengths: Mapping[str, np.ndarray],
        packing: ConcatChunk,
        seed: int,
        sequences_per_step: int,
    ) -> Rows:
        """As in the module's header; a source's share of the run is the mixture's, of a bucket its own."""
        assert packing.max_seqlen == self.max_seqlen
        buckets, num_steps = np.array(self.buckets), mixture.num_sequences // sequences_per_step
        pieces = {name: decompose(lengths[name], self.buckets) for name in mixture.sources}
        tokens = np.array([[len(found.documents) for found in pieces[name]] for name in mixture.sources]) * buckets
        ratios = np.array([mixture.ratios[name] for name in mixture.sources])
        for name, ratio, found in zip(mixture.sources, ratios, tokens, strict=True):
            if ratio and not found.any():
                raise ValueError(
                    f"corpus.sources.{name} has no document of length_schedule.smallest={self.smallest} tokens; lower"
                    " length_schedule.smallest or leave the source out of corpus.mixture"
                )
        shares = ratios[:, None] * tokens / np.maximum(tokens.sum(axis=1, keepdims=True), 1)  # [S, K]
        odds = self.odds or [2.0 ** (len(buckets) - 1 - k) for k in range(len(buckets))]
        bucket = curriculum(shares.sum(axis=0), num_steps=num_steps, odds=odds, cycles=self.cycles, seed=seed)

        of_row = np.repeat(bucket, sequences_per_step)  # [num_sequences]
        dealt = _dealt(mixture.sources, shares, of_row, seed=seed)
        plans = {}
        for number, name in enumerate(mixture.sources):
            rng = np.random.default_rng((source_seed(seed, number), len(buckets)))
            plans[name] = DecomposedPlan(pieces[name], self.buckets, of_row[dealt == number], rng)
        return Rows(
            mixture=ListedOrder(mixture.sources, dealt),
            plans=plans,
            context_lengths=buckets[bucket],
            cut=True,
            notes=tuple(
                f"length_schedule.smallest={self.smallest} drops {int(lengths[name].sum() - found.sum()):,} of the"
                f" {int(lengths[name].sum()):,} tokens of {name}, the ends of its documents"
                for name, found in zip(mixture.sources, tokens, strict=True)
                if lengths[name].sum() > found.sum()
            ),
        )


class Pieces(NamedTuple):
    """All pieces of one length."""

    documents: np.ndarray  # [n] int64
    starts: np.ndarray  # [n] int64, where each begins in its document


def decompose(lengths: np.ndarray, buckets: Sequence[int]) -> list[Pieces]:
    """Cut documents into pieces, from the front the longest that fits; what is below the smallest is left out.

    Args:
        lengths: Tokens of the documents, [num_documents] int64.
        buckets: Tokens of a piece, each twice the one before.
    """
    found, largest = [], buckets[-1]
    for size in buckets[:-1]:
        # The digits of the rest say which pieces there are, and those above a digit lie before its piece.
        documents = np.flatnonzero(lengths % (2 * size) >= size)
        found.append(Pieces(documents, lengths[documents] // (2 * size) * (2 * size)))
    times = lengths // largest
    documents = np.repeat(np.arange(len(lengths)), times)
    number = np.arange(len(documents)) - np.repeat(np.cumsum(times) - times, times)
    return [*found, Pieces(documents, number * largest)]


def curriculum(shares: np.ndarray, *, num_steps: int, odds: Sequence[float], cycles: int, seed: int) -> np.ndarray:
    """The bucket of every step, [num_steps] int64.

    Args:
        shares: [K], the share of the steps that each bucket gets; exact to a step over the run and in each cycle.
        num_steps: Steps of the run.
        odds: [K], how much sooner a bucket is drawn than another of as many steps.
        cycles: Cycles of the run; each has the same shares.
        seed: Of the draws.
    """
    sizes = np.diff(np.round(np.arange(cycles + 1) * num_steps / cycles).astype(np.int64))
    counts = np.diff(cumulative_counts(np.tile(shares / shares.sum(), (cycles, 1)), sizes), axis=0)  # [cycles, K]
    found = [np.zeros(0, np.int64)]
    for cycle, dealt in enumerate(counts):
        kinds = np.repeat(np.arange(len(shares)), dealt)
        # Drawing in proportion to weights until a kind is used up is a race of Poisson processes with these rates.
        rates = np.asarray(odds)[kinds] * dealt[kinds]
        waits = np.random.default_rng((seed, cycle, len(shares))).exponential(size=len(kinds)) / rates
        arrivals = [np.cumsum(waits[kinds == kind]) for kind in range(len(shares))]
        found.append(kinds[np.argsort(np.concatenate(arrivals), kind="stable")])
    return np.concatenate(found)


class DecomposedPlan:
    """The rows of one source.

    Args:
        pieces: [K], its pieces.
        buckets: [K], tokens of a piece.
        of_row: [num_rows] int64, the bucket of each of its rows.
        rng: Orders the pieces of each bucket, anew each time that they have all been read.
    """

    def __init__(
        self, pieces: Sequence[Pieces], buckets: Sequence[int], of_row: np.ndarray, rng: np.random.Generator
    ) -> None:
        self.buckets = buckets
        self.of_row = of_row
        self.number = np.zeros_like(of_row)  # [num_rows], of a row within its bucket
        self.pieces: list[Pieces] = []
        for k, found in enumerate(pieces):
            rows = np.flatnonzero(of_row == k)
            self.number[rows] = np.arange(len(rows))
            needed, available = len(rows) * buckets[-1] // buckets[k], len(found.documents)
            epochs = [rng.permutation(available) for _ in range(-(-needed // max(available, 1)))]
            order = np.concatenate([np.zeros(0, np.int64), *epochs])[:needed]
            self.pieces.append(Pieces(found.documents[order], found.starts[order]))

    def segments(self, i: int) -> list[Segment]:
        """The pieces of row i, all of one bucket; they fill it."""
        k = int(self.of_row[i])
        size, per_row = self.buckets[k], self.buckets[-1] // self.buckets[k]
        first = int(self.number[i]) * per_row
        documents, starts = (values[first : first + per_row].tolist() for values in self.pieces[k])
        return [Segment(document, start, start + size) for document, start in zip(documents, starts, strict=True)]


def _dealt(sources: Sequence[str], shares: np.ndarray, of_row: np.ndarray, *, seed: int) -> np.ndarray:
    """The source of every row, [num_sequences] int64: in each bucket by the sources' shares of it, [S, K]."""
    dealt = np.zeros(len(of_row), dtype=np.int64)
    for k in np.unique(of_row):
        rows = np.flatnonzero(of_row == k)
        ratios = {name: float(share) for name, share in zip(sources, shares[:, k], strict=True)}
        dealt[rows] = Mixture(ratios, num_sequences=len(rows), seed=seed + int(k)).dealt()
    return dealt


def _is_positive(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and 0 < number < float("inf")
