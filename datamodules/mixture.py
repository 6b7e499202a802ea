"""The mixture of sources: which source sequence i comes from.

Ratios are shares of sequences, and all sequences are equally long, so they are shares of tokens; ratios of documents
would not be (one project's 1:1 became 10:1 by token). Every window of `WINDOW` sequences holds each source's share as
exactly as whole sequences allow, what one window owes is paid by the next, and the order inside a window is random. So
the share after n sequences is within one window's rounding of the ratio, at any n, for any number of ranks.
"""

from __future__ import annotations

import math

import numpy as np

WINDOW = 256


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


class Mixture:
    """Deals sequences to sources.

    Args:
        ratios: Source -> share of the tokens; normalised to 1.
        num_sequences: Length of the run.
        seed: Orders the sequences inside a window.
    """

    def __init__(self, ratios: dict[str, float], *, num_sequences: int, seed: int) -> None:
        self.ratios = normalised(ratios)
        self.sources = list(self.ratios)
        self.seed = seed
        self.num_sequences = num_sequences
        self._before = _cumulative_counts(np.array(list(self.ratios.values())), math.ceil(num_sequences / WINDOW))

    def locate(self, i: int) -> tuple[str, int]:
        """The source of sequence i, and how many sequences of that source came before it."""
        window, slot = divmod(i, WINDOW)
        counts = self._before[window + 1] - self._before[window]
        dealt = np.repeat(np.arange(len(self.sources)), counts)
        order = np.random.default_rng((self.seed, window)).permutation(dealt)
        source = int(order[slot])
        return self.sources[source], int(self._before[window, source] + (order[:slot] == source).sum())


def _cumulative_counts(shares: np.ndarray, num_windows: int) -> np.ndarray:
    """Sequences of each source before each window, [num_windows + 1, num_sources] int64, by largest remainder."""
    counts = np.zeros((num_windows + 1, len(shares)), dtype=np.int64)
    for window in range(num_windows):
        owed = np.maximum(shares * (window + 1) * WINDOW - counts[window], 0.0)
        dealt = np.floor(owed).astype(np.int64)
        left = WINDOW - int(dealt.sum())
        while left < 0:  # rounding dealt one too many, possible only when a source was ahead
            dealt[np.argmax(dealt)] -= 1
            left += 1
        for source in np.argsort(-(owed - dealt), kind="stable")[:left]:
            dealt[source] += 1
        counts[window + 1] = counts[window] + dealt
    return counts
