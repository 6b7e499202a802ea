"""The order in which a source's documents are read: epoch after epoch, each in a random order of its own.

    epoch 1    c a d b | epoch 2    b d c a | …
    upsample {min_length: 6, times: 2}       a document of six tokens or more is read twice in every epoch
    downsample {max_length: 2, keep: 0.5}    one of fewer than two tokens in half of the epochs, drawn anew in each

What a rule does to long and short documents changes nothing in the source's share of the run: the mixture counts
tokens. Fu et al. 2024 (arXiv:2402.10171) keep a tenth of the documents below 4096 tokens at unchanged domain shares.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, count
from typing import Any

import numpy as np

from datamodules.packing.plan import narrow


@dataclass(frozen=True)
class Sampling:
    """How often an epoch of one source reads a document, and how many epochs there may be.

    Args:
        upsample: `{"min_length": tokens, "times": n}`: documents at least so long are read n times an epoch; a
            fraction is a chance, drawn in every epoch.
        downsample: `{"max_length": tokens, "keep": share}`: of the documents below this length, only this share.
        max_epochs: The source is exhausted after so many epochs; None reads on for ever.
        name: The source, for messages.

    Raises:
        ValueError: A value is not in its range.
    """

    upsample: Mapping[str, Any] | None = None
    downsample: Mapping[str, Any] | None = None
    max_epochs: float | None = None
    name: str = "*"

    def __post_init__(self) -> None:
        key = f"corpus.sampling.{self.name}"
        for rule, length, factor, most in (
            ("upsample", "min_length", "times", math.inf),
            ("downsample", "max_length", "keep", 1.0),
        ):
            given = getattr(self, rule)
            if given is None:
                continue
            if not isinstance(given, Mapping) or set(given) != {length, factor}:
                raise ValueError(f"{key}.{rule}={given} must have the keys {length} and {factor}, and no other")
            if not _is_number(given[length]) or given[length] < 1:
                raise ValueError(f"{key}.{rule}.{length}={given[length]} must be a number of tokens, at least 1")
            if not _is_number(given[factor]) or not 0 <= given[factor] <= most:
                limits = "from 0 to 1" if most == 1 else "of at least 0"
                raise ValueError(f"{key}.{rule}.{factor}={given[factor]} must be a number {limits}")
        if self.max_epochs is not None and (not _is_number(self.max_epochs) or self.max_epochs <= 0):
            raise ValueError(f"{key}.max_epochs={self.max_epochs} must be a number above 0, or null")

    def factors(self, lengths: np.ndarray) -> np.ndarray:
        """How often an epoch reads each document on average, [num_documents] float64; 0 for one without tokens."""
        factors = np.asarray(lengths > 0, dtype=np.float64)
        if self.upsample is not None:
            factors[lengths >= self.upsample["min_length"]] *= self.upsample["times"]
        if self.downsample is not None:
            factors[lengths < self.downsample["max_length"]] *= self.downsample["keep"]
        return factors


class DocumentStream:
    """The documents of one source in the order of a run.

    Args:
        lengths: Tokens of each document, [num_documents] int64; documents without tokens are never read.
        seed: Orders the epochs.
        sampling: Length rules and the end of the stream.

    Raises:
        ValueError: There is nothing to read.
    """

    def __init__(self, lengths: np.ndarray, *, seed: int, sampling: Sampling | None = None) -> None:
        self.lengths = narrow(np.asarray(lengths))
        self.seed = seed
        self.sampling = sampling or Sampling()
        if not self.lengths.any():
            raise ValueError("there are no tokens to pack; check corpus.sources")
        self._factors = self._read_how_often()
        if self._factors is not None and not self._factors.any():
            raise ValueError(
                f"corpus.sampling.{self.sampling.name} leaves no document of the source; loosen its upsample and"
                " downsample"
            )

    def _read_how_often(self) -> np.ndarray | None:
        """See `Sampling.factors`; None where that is once for every document, and no array need be kept."""
        if self.sampling.upsample is None and self.sampling.downsample is None and self.lengths.all():
            return None
        factors = self.sampling.factors(self.lengths)
        return None if (factors == 1).all() else factors

    @property
    def tokens_per_epoch(self) -> float:
        """Tokens of an epoch; on average, where a rule draws."""
        if self._factors is None:
            return float(self.lengths.sum(dtype=np.int64))
        return float((self._factors * self.lengths).sum())

    @cached_property
    def available(self) -> int | None:
        """Tokens of all epochs that there may be; None where the stream has no end."""
        most = self.sampling.max_epochs
        if most is None:
            return None
        if self._factors is None or (self._factors % 1 == 0).all():  # every epoch is as long
            epoch = int(self.tokens_per_epoch)
            return int(most) * epoch + (int(self.lengths[self._part(int(most))].sum()) if most % 1 else 0)
        return sum(int(self.lengths[order].sum()) for order in self._epochs())

    def drawn(self, num_tokens: int) -> np.ndarray:
        """The first documents of the stream, as many as it takes for so many tokens, or all, [n] int32."""
        drawn, found = [np.zeros(0, np.int32)], 0
        for order in self._epochs():
            if found >= num_tokens:
                break
            here = int(self.lengths[order].sum(dtype=np.int64))
            if found + here > num_tokens:
                ends = np.cumsum(self.lengths[order], dtype=np.int64)
                order = order[: np.searchsorted(ends, num_tokens - found) + 1].copy()
            drawn.append(order)
            found += here
        return drawn[-1] if len(drawn) == 2 else np.concatenate(drawn)

    def epoch_end(self, place: int) -> int:
        """Where in the stream the epoch of a place ends."""
        if self._factors is None:
            return (place // len(self.lengths) + 1) * len(self.lengths)
        ends = accumulate(len(order) for order in self._epochs())
        return next((end for end in ends if end > place), place + 1)

    def first(self, num_documents: int) -> np.ndarray:
        """The first so many documents of the stream, or all, [n] int32."""
        drawn, found = [np.zeros(0, np.int32)], 0
        for order in self._epochs():
            if found >= num_documents:
                break
            drawn.append(order)
            found += len(order)
        return np.concatenate(drawn)[:num_documents]

    def _epochs(self) -> Iterator[np.ndarray]:
        """The documents of each epoch in its order; a part of an epoch at the end is its first documents."""
        most = self.sampling.max_epochs
        for epoch in count():
            if most is not None and epoch >= most:
                return
            yield self._epoch(epoch) if most is None or epoch + 1 <= most else self._part(epoch)

    def _part(self, epoch: int) -> np.ndarray:
        """The first documents of the epoch that `max_epochs` cuts."""
        assert self.sampling.max_epochs is not None
        order = self._epoch(epoch)
        return order[: round((self.sampling.max_epochs - epoch) * len(order))]

    def _epoch(self, epoch: int) -> np.ndarray:
        """The documents of one epoch in its order, [n] int32."""
        generator = np.random.default_rng((self.seed, epoch))
        order = np.arange(len(self.lengths), dtype=np.int32)
        generator.shuffle(order)
        if self._factors is None:
            return order
        factors = self._factors[order]
        whole = np.floor(factors)
        copies = (whole + (generator.random(len(order)) < factors - whole)).astype(np.int64)
        if (copies <= 1).all():
            return order[copies == 1]
        return generator.permutation(np.repeat(order, copies))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
