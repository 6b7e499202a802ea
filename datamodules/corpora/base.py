"""What a corpus is: an ordered collection of documents with a fingerprint of its content.

A corpus is read in shards, in order: a shard is what one process can read alone, such as a file or a range of a
Parquet file's rows. So several processes or machines read one corpus, and what they read, put together in the order of
the shards, is the same as what one reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable


class Document(NamedTuple):
    """One document of a corpus."""

    text: str
    place: str  # what messages call it: "books.jsonl, line 17"


class QuarantinedRow(NamedTuple):
    """A row that holds no document that can be used."""

    place: str
    reason: str


@dataclass
class Quarantine:
    """Collects the rows of a shard that cannot be used, so that none is dropped silently.

    Args:
        strict: Raise at the first one.
        num_joined: Rows that went into a document with an earlier row: the share that is set aside is one of rows.
    """

    strict: bool = True
    rows: list[QuarantinedRow] = field(default_factory=list)
    num_joined: int = 0

    def add(self, place: str, reason: str) -> None:
        """Set a row aside.

        Raises:
            BadDocument: With `strict`.
        """
        if self.strict:
            raise BadDocument(f"{place}: {reason}")
        self.rows.append(QuarantinedRow(place, reason))


class BadDocument(ValueError):
    """A document that a user has to repair; the message names its place."""


class Shard(Protocol):
    """A part of a corpus that one process reads alone; pickled to get there.

    It may tell its size, about, for the progress bar: `num_bytes` of text, or `num_documents`; None where it does not
    know.
    """

    @property
    def name(self) -> str:
        """What messages and finished parts call it."""
        ...

    def documents(self, quarantine: Quarantine) -> Iterator[Document]:
        """Yield the documents in order; rows that cannot be used go into `quarantine`.

        Raises:
            ValueError: The shard cannot be read at all.
        """
        ...


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


@dataclass(frozen=True)
class WholeCorpus:
    """The one shard of a corpus that has none of its own, such as a synthetic one."""

    corpus: Corpus

    @property
    def name(self) -> str:
        """The corpus'."""
        return type(self.corpus).__name__

    @property
    def num_documents(self) -> int | None:
        """Where the corpus says so."""
        return getattr(self.corpus, "num_documents", None)

    def documents(self, quarantine: Quarantine) -> Iterator[Document]:
        """Yield the documents in order."""
        for number, text in enumerate(self.corpus.texts(), 1):
            yield Document(text, f"{self.name}, document {number}")


def shards_of(corpus: Corpus) -> Sequence[Shard]:
    """The shards of a corpus, in order; at least one."""
    own = getattr(corpus, "shards", None)
    return own() if own is not None else [WholeCorpus(corpus)]
