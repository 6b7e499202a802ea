"""From documents to the samples that a store holds: for plain text one a document, its tokens and what stands around.

Other policies make their samples elsewhere: `datamodules/conversations/samples.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from datamodules.corpora.base import Document, Quarantine
from datamodules.corpora.filters import DocumentFilters, Drops, content_hash, kept
from datamodules.prepare.encoding import TextEncoder
from datamodules.tokens.policy import TokenPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Sample(NamedTuple):
    """One entry of a store.

    Attributes:
        ids: [num_tokens] unsigned.
        mask: [num_tokens] bool, which of them are labels; None where all are.
        num_characters: Of the document that it is of; 0 for its further samples.
        hash: Equal for samples with the same content.
        further: Whether an earlier sample is of the same document.
    """

    ids: np.ndarray
    mask: np.ndarray | None
    num_characters: int
    hash: bytes
    further: bool = False


class SampleMaker(Protocol):
    """Makes the samples of documents; its threads do not show in them."""

    masked: bool
    """Whether samples have masks."""

    def samples(
        self, documents: Iterable[Document], *, filters: DocumentFilters, drops: Drops, quarantine: Quarantine
    ) -> Iterator[Sample]:
        """Yield the samples of the documents that no filter drops, in order.

        Args:
            documents: Of one shard.
            filters: What is dropped.
            drops: Counts it.
            quarantine: Receives what cannot be used; the same that `documents` was read with.

        Raises:
            ValueError: A document cannot be used, and the quarantine is strict.
        """
        ...


class TextSamples:
    """Samples of plain text.

    Args:
        tokenizer: Of transformers.
        policy: What stands around each document.
        num_threads: Threads that encode; None takes one for each core.
    """

    masked = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase, policy: TokenPolicy, *, num_threads: int | None) -> None:
        self.policy = policy
        self.encoder = TextEncoder(tokenizer, num_threads=num_threads)
        self.head, self.tail = (np.array(ids, dtype=np.uint32) for ids in policy.around(tokenizer))

    def samples(
        self, documents: Iterable[Document], *, filters: DocumentFilters, drops: Drops, quarantine: Quarantine
    ) -> Iterator[Sample]:
        """Yield the documents that no filter drops, tokenised."""
        read: deque[tuple[int, bytes]] = deque()  # characters and hash of the documents that are being encoded

        def texts() -> Iterator[str]:
            for document in kept(documents, filters=filters, drops=drops):
                read.append((len(document.text), content_hash(document.text)))
                yield self.policy.separator + document.text

        for ids in self.encoder.encode(texts()):
            num_characters, content = read.popleft()
            yield Sample(np.concatenate([self.head, ids, self.tail]), None, num_characters, content)
