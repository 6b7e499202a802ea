"""The mixture of sources: which source sequence i comes from.

Ratios are shares of sequences, and all sequences are equally long, so they are shares of tokens; ratios of documents
would not be (one project's 1:1 became 10:1 by token). Every window of `WINDOW` sequences holds each source's share as
exactly as whole sequences allow, and what one window owes is paid by the next. Inside a window each source's sequences
are spread evenly, each at a random place of its own stretch; a plain shuffle would leave a run of 40 sequences up to
eight from its ratio. So the share after n sequences is within two or three sequences of the ratio, at any n, for any
number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

WINDOW = 256


class Dealer(Protocol):
    """Deals the sequences of a run to sources, as a pure function of their number."""

    sources: list[str]
    num_sequences: int

    def locate(self, i: int) -> tuple[str, int]:
        """The source of sequence i, and how many sequences of that source came before it."""
        ...


def normalised(ratios: dict[str, float]) -> dict[str, float]:
    """The ratios, summing to 1.

    Raises:
        ValueError: A ratio is negative or not finite, or all are zero.
    """
    for name, ratio in ratios.items():
        if not math.isfinite(ratio) or ratio < 0:
            raise ValueError(f"corpus.mixture.{name}={ratio} is not a share; ratios are finite and not negative")
    total = sum(ratios.values())
    if total == 0:
        raise ValueError(f"corpus.mixture gives no source a share ({ratios}); set at least one ratio above 0")
    return {name: ratio / total for name, ratio in ratios.items()}


class Phase(NamedTuple):
    """Other ratios for the beginning of a run."""

    num_sequences: int  # rounded to whole windows
    ratios: dict[str, float]


class Mixture:
    """Deals sequences to sources.

    Args:
        ratios: Source -> share of the tokens; normalised to 1.
        num_sequences: Length of the run.
        seed: Orders the sequences inside a window.
        phases: Ratios of the run's beginning, one phase after the other, before `ratios` hold to the end.
    """

    def __init__(
        self, ratios: dict[str, float], *, num_sequences: int, seed: int, phases: Sequence[Phase] = ()
    ) -> None:
        self.ratios = normalised(ratios)
        self.sources = list(dict.fromkeys(name for shares in (ratios, *(p.ratios for p in phases)) for name in shares))
        self.seed = seed
        self.num_sequences = num_sequences
        num_windows = math.ceil(num_sequences / WINDOW)
        shares = np.tile(self._shares(self.ratios), (num_windows, 1))  # [num_windows, num_sources]
        start = 0
        for phase in phases:
            end = start + round(phase.num_sequences / WINDOW)
            shares[start:end] = self._shares(normalised(phase.ratios))
            start = end
        self._before = cumulative_counts(shares, np.full(num_windows, WINDOW))

    def _shares(self, ratios: dict[str, float]) -> np.ndarray:
        return np.array([ratios.get(name, 0.0) for name in self.sources])

    def locate(self, i: int) -> tuple[str, int]:
        """The source of sequence i, and how many sequences of that source came before it."""
        if not 0 <= i < self.num_sequences:
            raise IndexError(f"sequence {i} of {self.num_sequences}")
        window, slot = divmod(i, WINDOW)
        order = self._order(window)
        source = int(order[slot])
        return self.sources[source], int(self._before[window, source] + (order[:slot] == source).sum())

    def dealt(self) -> np.ndarray:
        """The source of every sequence, as its place in `sources`, [num_sequences] int64."""
        windows = [self._order(window) for window in range(len(self._before) - 1)]
        return np.concatenate([np.zeros(0, np.int64), *windows])[: self.num_sequences]

    def _order(self, window: int) -> np.ndarray:
        """The sources of one window's sequences, [WINDOW] int64."""
        counts = self._before[window + 1] - self._before[window]
        dealt = np.repeat(np.arange(len(self.sources)), counts)  # [WINDOW]
        number = np.arange(WINDOW) - np.repeat(np.cumsum(counts) - counts, counts)  # of a sequence within its source
        places = (number + np.random.default_rng((self.seed, window)).random(WINDOW)) / counts[dealt]
        return dealt[np.argsort(places)]


class ListedOrder:
    """Deals sequences as a list says.

    Args:
        sources: Names.
        dealt: [num_sequences] integers, the source of each sequence as its place in `sources`.
    """

    def __init__(self, sources: Sequence[str], dealt: np.ndarray) -> None:
        self.sources = list(sources)
        self.num_sequences = len(dealt)
        self._dealt = dealt
        order = np.argsort(dealt, kind="stable")
        counts = np.bincount(dealt, minlength=len(self.sources))
        self._number = np.empty(len(dealt), dtype=np.int64)
        self._number[order] = np.arange(len(dealt)) - np.repeat(np.cumsum(counts) - counts, counts)

    def locate(self, i: int) -> tuple[str, int]:
        """The source of sequence i, and how many sequences of that source came before it."""
        if not 0 <= i < self.num_sequences:
            raise IndexError(f"sequence {i} of {self.num_sequences}")
        return self.sources[int(self._dealt[i])], int(self._number[i])


def cumulative_counts(shares: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Items of each kind before each window, [num_windows + 1, num_kinds] int64, by largest remainder.

    Args:
        shares: [num_windows, num_kinds], each window's ratios.
        sizes: [num_windows] int64, items of each window over all kinds.
    """
    counts = np.zeros((len(shares) + 1, shares.shape[1]), dtype=np.int64)
    for window, due in enumerate(np.cumsum(shares * sizes[:, None], axis=0)):
        owed = np.maximum(due - counts[window], 0.0)
        dealt = np.floor(owed).astype(np.int64)
        left = int(sizes[window]) - int(dealt.sum())
        while left < 0:  # rounding dealt one too many, possible only when a kind was ahead
            dealt[np.argmax(dealt)] -= 1
            left += 1
        for kind in np.argsort(-(owed - dealt), kind="stable")[:left]:
            dealt[kind] += 1
        counts[window + 1] = counts[window] + dealt
    return counts
