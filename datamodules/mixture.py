"""The mixture of sources: in which order rows, or documents, of several sources are read.

Ratios are shares of the tokens. (Ratios of documents are not: one project's 1:1 became 10:1 by token.) Every item, a
row or a piece of a document, has a place on the axis of its source's own tokens, and the mixture says at which token of
the run each source has given how many; so every item has its time in the run, and the items are read in the order of
their times:

    ratios 2/3, 1/3     a: items of 2 tokens    times 0 3 6 9      (a has given n tokens when the run is at 3n/2)
                        b: items of 4 tokens    times 0 12
    order               a b a a a b …           each item at a random time between its first and its last token

At any time each source has given its share to within one item of its own, and so the run's tokens are within one item
of each source of the ratios, whatever the sizes of the items, for any number of ranks. Cost: one sort. The alternative,
drawing a source at random for each row, is eight rows off its ratio after forty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

EXHAUSTION = ("error", "renormalise")
BLOCK = 1 << 16
"""Items whose times are worked out at once."""

# S sources


class Phase(NamedTuple):
    """Other ratios for the beginning of a run."""

    num_tokens: int
    ratios: Mapping[str, float]


def normalised(ratios: Mapping[str, float]) -> dict[str, float]:
    """The ratios, summing to 1.

    Raises:
        ValueError: A ratio is negative or not finite, or all are zero.
    """
    for name, ratio in ratios.items():
        if not math.isfinite(ratio) or ratio < 0:
            raise ValueError(f"corpus.mixture.{name}={ratio} is not a share; ratios are finite and not negative")
    total = sum(ratios.values())
    if total == 0:
        raise ValueError(f"corpus.mixture gives no source a share ({dict(ratios)}); set at least one ratio above 0")
    return {name: ratio / total for name, ratio in ratios.items()}


class Mixture:
    """Shares of the sources over the tokens of a run.

    Args:
        ratios: Source -> share of the tokens; normalised to 1.
        phases: Ratios of the run's beginning, one phase after the other, before `ratios` hold to the end.
    """

    def __init__(self, ratios: Mapping[str, float], *, phases: Sequence[Phase] = ()) -> None:
        self.ratios = normalised(ratios)
        self.sources = list(dict.fromkeys(name for shares in (ratios, *(p.ratios for p in phases)) for name in shares))
        edges = np.cumsum([0, *(phase.num_tokens for phase in phases)], dtype=np.float64)
        shares = [self._shares(normalised(phase.ratios)) for phase in phases] + [self._shares(self.ratios)]
        self._edges, self._rates = edges, np.array(shares)  # [K], [K, S]; the last holds to the end

    def _shares(self, ratios: Mapping[str, float]) -> np.ndarray:
        return np.array([ratios.get(name, 0.0) for name in self.sources])

    def describe(self) -> list[Any]:
        """Plain values that two mixtures share only if they are the same."""
        return [self.sources, self._edges.tolist(), self._rates.tolist()]

    @property
    def phase_ends(self) -> list[float]:
        """At which token of the run each phase ends; the ratios after the last one hold to the end."""
        return self._edges[1:].tolist()

    def given(self, tokens: float) -> np.ndarray:
        """Tokens of each source among the first tokens of the run, [S] float64."""
        spans = np.clip(tokens - self._edges, 0, np.diff(self._edges, append=np.inf))
        return spans @ self._rates

    def times(self, source: int, tokens: np.ndarray) -> np.ndarray:
        """At which token of the run a source has given so many of its own, [n] float64; infinite if it never will."""
        rates = self._rates[:, source]
        before = np.array([self.given(edge)[source] for edge in self._edges])  # [K], at each edge
        # An end that `exhausted` worked out may come back a rounding error beyond what the source holds.
        stage = np.searchsorted(before * (1 - 1e-14), tokens, side="right") - 1
        # Several edges at one value are phases without the source: the last of them is where it goes on.
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(rates[stage] > 0, self._edges[stage] + (tokens - before[stage]) / rates[stage], np.inf)

    def exhausted(self, available: Mapping[str, int | None]) -> tuple[Mixture, list[tuple[str, float]]]:
        """The mixture of sources that end: where one does, the others share the rest of the run by their ratios.

        Args:
            available: Source -> its tokens; None for no end.

        Returns:
            The mixture, and the sources that end with the token of the run at which each does, in order. After the
            last of them nothing is left where that is so.
        """
        mixture, ended = self, []
        while True:
            ends = [
                (float(mixture.times(k, np.array([float(tokens)]))[0]), k)
                for k, name in enumerate(self.sources)
                if (tokens := available.get(name)) is not None and name not in dict(ended)
            ]
            ends = [end for end in ends if math.isfinite(end[0])]
            if not ends:
                return mixture, ended
            time, source = min(ends)
            ended.append((self.sources[source], time))
            mixture = mixture._without(source, time)

    def _without(self, source: int, time: float) -> Mixture:
        """The mixture in which a source gives nothing from a token of the run on."""
        edges = np.unique(np.append(self._edges, time))
        rates = self._rates[np.searchsorted(self._edges, edges, side="right") - 1].copy()
        late = edges >= time
        rates[late, source] = 0
        rates[late] /= np.maximum(rates[late].sum(axis=1, keepdims=True), np.finfo(float).tiny)
        other = object.__new__(Mixture)
        other.ratios, other.sources, other._edges, other._rates = self.ratios, self.sources, edges, rates
        return other

    def order(self, sizes: Sequence[np.ndarray], *, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
        """The order in which the items of all sources are read.

        Args:
            sizes: For each source the tokens of its items, in its own order, [num_items] each.
            seed: Of the time that each item has within its tokens.

        Returns:
            For each item in the order of the run: its source [n] int64 and its number within the source [n] int64; and
            up to which token of the run that order is whole: beyond it, a source may have been given too few items.
        """
        places, _, whole = self.places(sizes, seed=seed)
        begins = np.cumsum([0, *(len(size) for size in sizes)])
        sources = np.searchsorted(begins[1:], places, side="right").astype(np.int32)
        return sources, (places - begins[sources]).astype(np.int32), whole

    def places(self, sizes: Sequence[np.ndarray], *, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
        """As `order`, with the items of all sources numbered one source after the other.

        Returns:
            The items in the order of the run, [n] int32 or int64; the time of every item in the order of the numbers,
            [num_items] float64, which rises within a source; and up to which token of the run the order is whole.
        """
        begins = np.cumsum([0, *(len(size) for size in sizes)])
        times, whole = np.empty(begins[-1], dtype=np.float64), math.inf
        for source, size in enumerate(sizes):
            generator, given = np.random.default_rng((seed, source)), 0.0
            for first in range(0, len(size), BLOCK):  # to need little more memory than the result
                here = np.asarray(size[first : first + BLOCK])
                ends = given + np.cumsum(here, dtype=np.float64)
                begin = begins[source] + first
                times[begin : begin + len(here)] = self.times(source, ends - here * generator.random(len(here)))
                given = float(ends[-1])
            whole = min(whole, float(self.times(source, np.array([given]))[0]))
        last = min(whole, np.finfo(np.float64).max)  # what never has its turn stays out
        inside = int(np.count_nonzero(times <= last))
        places = np.argsort(times, kind="stable")[:inside]
        return places.astype(np.int32 if len(times) < 1 << 31 else np.int64), times, whole
