"""The progress bar of a preparation: tokens a second, and the time left where the size of the corpus is known.

What the bar counts, and so what the time left follows, is the first of these that is known of every shard:

    bytes        `num_bytes` of text, about: files, here or on the hub
    documents    `num_documents`: rows that `datasets` has counted, documents that are made or limited in number
    documents    of an unknown number: the total is what the shards that are finished make likely, and nothing before
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from datamodules.prepare.parts import Unit

REFRESH_SECONDS = 0.2


class Progress:
    """Shows how far the parts of a corpus are.

    Args:
        units: Of the corpus.
        description: In front of the bar.
        shown: Whether there is a bar.
    """

    def __init__(self, units: Sequence[Unit], *, description: str, shown: bool = True) -> None:
        self.num_units = len(units)
        self.sizes: list[int] | None = _sizes(units, "num_bytes")
        self.in_bytes = self.sizes is not None
        if self.sizes is None:
            self.sizes = _sizes(units, "num_documents")
        self.num_tokens = 0
        self._started = self._shown_at = time.monotonic()
        self._read = self._inside = 0  # of the unit that is being made, and how much of it the bar shows
        self._finished = 0  # units
        self._counted: list[int] = []  # documents of the units that were made now
        self._bar: Any = None
        if shown:
            from tqdm import tqdm

            unit, scale = ("B", True) if self.in_bytes else (" documents", False)
            total = None if self.sizes is None else sum(self.sizes)
            self._bar = tqdm(desc=description, total=total, unit=unit, unit_scale=scale, miniters=1)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._show()
            self._bar.close()

    def advance(self, num_tokens: int, num_characters: int, num_documents: int | None = None) -> None:
        """Count what was made of a unit that is not finished.

        Args:
            num_tokens: That were made.
            num_characters: That were read for them; 0 where they were counted before.
            num_documents: That were read; None is one where `num_characters` are new, and else none.
        """
        self.num_tokens += num_tokens
        if num_documents is None:
            num_documents = int(num_characters > 0)
        self._read += num_characters if self.in_bytes else num_documents
        if self._bar is not None and time.monotonic() - self._shown_at > REFRESH_SECONDS:
            self._show()

    def finish(self, unit: Unit) -> None:
        """Count a finished unit, made now or earlier."""
        self._finished += 1
        if self._bar is not None:
            if self.sizes is not None:
                self._bar.update(self.sizes[unit.index] - self._inside)
            elif self._read:
                self._bar.update(self._read - self._inside)
                self._counted.append(self._read)
            self._read = self._inside = 0
            self._estimate()
            self._show()

    @property
    def tokens_per_second(self) -> float:
        """Over all that this process made."""
        return self.num_tokens / max(time.monotonic() - self._started, 1e-9)

    def _estimate(self) -> None:
        """The total where no shard tells its size: those to come are taken to be as large as those made now."""
        if self.sizes is None and (self._counted or self._finished == self.num_units):
            mean = sum(self._counted) / max(1, len(self._counted))
            self._bar.total = self._bar.n + round(mean * (self.num_units - self._finished))

    def _show(self) -> None:
        self._shown_at = time.monotonic()
        shards = f"shard {min(self._finished + 1, self.num_units)} of {self.num_units}, " if self.num_units > 1 else ""
        self._bar.set_postfix_str(
            f"{shards}{_short(self.num_tokens)} tokens, {_short(self.tokens_per_second)} tokens/s", refresh=False
        )
        more = self._read - self._inside
        if self.sizes is not None:
            more = min(more, self._bar.total - self._bar.n)  # a shard may hold more than it said
        if more > 0:
            self._inside += more
            self._bar.update(more)
            if self._bar.total is not None:
                self._bar.total = max(self._bar.total, self._bar.n)
        self._bar.refresh()


def _sizes(units: Sequence[Unit], key: str) -> list[int] | None:
    """What every shard says of its size; None where one of them says nothing."""
    sizes = [getattr(unit.shard, key, None) for unit in units]
    return None if None in sizes else [int(size) for size in sizes if size is not None]


def _short(count: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"
