"""With which rows a run ends, where rows are of very unequal size, so that its shares of tokens are right to the end.

A run is so many rows, and a row of one document may hold a hundred times the tokens of another: one long row more or
less is then several percent of a run. Two things are done to the last row of each source, and to no other:

    asked       a: rows of 2, half of the tokens           b: rows of 40, the other half; 43 rows
    as dealt    a: 40 rows, 80 tokens                      b: 3 rows, 120 tokens       each within a row of its share
    nearest     a: 41 rows, 82 tokens                      b: 2 rows, 80 tokens        each within half a row of it
    exchanged   b's last row for one, of the next that its stream would bring, that fits what is missing; or b has one
                row more, and a one less, and that is the row that is exchanged

A source of ratio r whose longest row is m is then within ((1 - r) * m + r * (the sum of the others' m)) / 2 tokens of
its share, and no source is farther off than the largest of these: with two sources half of the longest row, with S of
them at most half of S - 1 such rows. Where rows are of many lengths the exchange does much better, because one of
CANDIDATES mostly fits: runs of 1,000 rows have their ratios to 0.5 % though one row may be a tenth of them. It stays
within the source's epoch, so that no document is read again before all have been read. No row is cut, and none but
these is chosen by its length. Cost: a pass over the run's rows. The alternative, to cut a document where the share is
full, would be exact and would train on a beginning whose end is never read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from datamodules.mixture import Mixture

CANDIDATES = 64
"""Rows of a source that its last row is chosen from."""

NEAR = 0.001
"""Where every share is this near to what was asked, no row is exchanged; a fifth of what is promised."""

MOST_PASSES = 3

# S sources


def last_rows(
    mixture: Mixture,
    sizes: Sequence[np.ndarray],
    *,
    places: np.ndarray,
    times: np.ndarray,
    num_rows: int,
    epoch_end: Callable[[int, int], int],
) -> np.ndarray:
    """The rows of a run in their order.

    Args:
        mixture: Shares of the sources.
        sizes: For each source the tokens of its rows, in its own order.
        places: As `Mixture.places` gives them; at least `num_rows`.
        times: Likewise.
        num_rows: Rows of the run.
        epoch_end: Source and row -> the first row of the source that does not begin in the same epoch any more.

    Returns:
        [num_rows], rows of all sources, numbered one source after the other.
    """
    begins = np.cumsum([0, *(len(size) for size in sizes)])
    end = _End(mixture, sizes)
    last = float(times[places[num_rows - 1]])
    for source in range(len(sizes)):  # the times of a source rise
        own = times[begins[source] : begins[source + 1]]
        end.counts[source] = np.searchsorted(own, last, side="right")
        end.tokens[source] = sizes[source][: end.counts[source]].sum(dtype=np.int64)
    end.to_nearest(last, num_rows)
    more = end.with_one_more()
    for either in (end, more):
        either.exchange(epoch_end)
    end = more if more.error < end.error else end

    inside = np.zeros(len(times), dtype=bool)
    for source, count in enumerate(end.counts):
        inside[begins[source] : begins[source] + count] = True
    found = places[inside[places]]
    if len(found) < num_rows:  # rows whose time is beyond what the mixture is sure of come last
        inside[found] = False
        late = np.flatnonzero(inside)
        found = np.concatenate([found, late[np.argsort(times[late], kind="stable")]])
    for source, row in end.lasts.items():
        found[found == begins[source] + end.counts[source] - 1] = begins[source] + row
    assert len(found) == num_rows
    return found


class _End:
    """How many rows a run has of each source, and how many tokens.

    Args:
        mixture: Shares of the sources.
        sizes: For each source the tokens of its rows.
    """

    def __init__(self, mixture: Mixture, sizes: Sequence[np.ndarray]) -> None:
        self.mixture, self.sizes = mixture, sizes
        self.counts = np.zeros(len(sizes), dtype=np.int64)  # [S]
        self.tokens = np.zeros(len(sizes), dtype=np.int64)  # [S]
        self.lasts: dict[int, int] = {}  # source -> the row that stands for its last one

    @property
    def error(self) -> float:
        """The largest difference of a source's share of the run's tokens from what was asked."""
        return self._error(self.tokens)

    def with_one_more(self) -> _End:
        """With one row more of the source that lacks most, for one less of the source whose last row is the shortest.

        Where a source lacks less than half of its next row, no exchange of a full last row gives it more.
        """
        other = _End(self.mixture, self.sizes)
        other.counts, other.tokens = self.counts.copy(), self.tokens.copy()
        lacking = int(np.argmax(self.mixture.given(float(self.tokens.sum())) - self.tokens))
        givers = [source for source in range(len(self.sizes)) if source != lacking and self.counts[source]]
        if givers and self.counts[lacking] < len(self.sizes[lacking]):
            other._add(min(givers, key=self._last), -1)
            other._add(lacking, 1)
        return other

    def _last(self, source: int) -> int:
        """Tokens of a source's last row."""
        return int(self.sizes[source][self.counts[source] - 1]) if self.counts[source] else 0

    def to_nearest(self, time: float, num_rows: int) -> None:
        """Count a row when half of it is due at a token of the run, and make that token one of so many rows."""
        for source in range(len(self.sizes)):
            if self._due_next(source) <= time:
                self._add(source, 1)
            elif self._due_last(source) > time:
                self._add(source, -1)
        sources = range(len(self.sizes))
        while (missing := num_rows - int(self.counts.sum())) > 0:
            self._add(min(sources, key=self._due_next), 1)
        while missing < 0:
            self._add(max(sources, key=self._due_last), -1)
            missing += 1

    def _add(self, source: int, sign: int) -> None:
        self.tokens[source] += sign * int(self.sizes[source][self.counts[source] - (sign < 0)])
        self.counts[source] += sign

    def _due_next(self, source: int) -> float:
        """When half of a source's next row is due; infinite where there is none."""
        return self._due(source, self.counts[source], np.inf)

    def _due_last(self, source: int) -> float:
        return self._due(source, self.counts[source] - 1, -np.inf)

    def _due(self, source: int, row: int, missing: float) -> float:
        if not 0 <= row < len(self.sizes[source]):
            return missing
        half = int(self.sizes[source][row]) / 2
        middle = float(self.tokens[source]) + (half if row == self.counts[source] else -half)
        # What will never be due in full, because a phase ends or a source does, is due later than all that will be.
        return min(float(self.mixture.times(source, np.array([middle]))[0]), np.finfo(np.float64).max)

    def exchange(self, epoch_end: Callable[[int, int], int]) -> None:
        """Let the row that fits best stand for the last one of each source, that with the longest first."""
        for source in sorted(range(len(self.sizes)), key=self._last, reverse=True) * MOST_PASSES:
            if self.error <= NEAR:
                break
            if not self.counts[source]:
                continue
            last = int(self.counts[source]) - 1
            rows = self.sizes[source][last : min(last + CANDIDATES, epoch_end(source, last))]
            others = np.repeat(self.tokens[None], len(rows), axis=0)  # [num_candidates, S]
            others[:, source] += rows - int(self.sizes[source][self.lasts.get(source, last)])
            errors = [self._error(tokens) for tokens in others]
            best = int(np.argmin(errors))
            if errors[best] < self.error:
                self.lasts[source], self.tokens = last + best, others[best]

    def _error(self, tokens: np.ndarray) -> float:
        total = float(tokens.sum())
        return float(np.abs(tokens - self.mixture.given(total)).max()) / total
