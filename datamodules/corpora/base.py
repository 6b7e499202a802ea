"""What a corpus is: an ordered collection of texts with a fingerprint of its content."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable


@runtime_checkable
class Corpus(Protocol):
    """Texts in a fixed order, one a document."""

    def fingerprint(self) -> str:
        """A string that changes whenever the texts may have changed; cached token stores are keyed by it."""
        ...

    def texts(self) -> Iterator[str]:
        """Yield the documents in order.

        Raises:
            ValueError: A document cannot be read; the message names the file, the line and what to change.
        """
        ...
