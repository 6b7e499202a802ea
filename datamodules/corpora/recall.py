"""The synthetic retrieval corpus of the demo: statements among real text, each asked again at the end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from datamodules.corpora.base import Corpus
from datamodules.tasks.recall import RecallDocuments


@dataclass(frozen=True)
class RecallCorpus:
    """`RecallDocuments` over the texts of another corpus, as a corpus of its own.

    Args:
        haystack: Corpus whose texts fill the space between the statements.
        num_documents: How many documents to make.
        min_words: Shortest document.
        max_words: Longest document; lengths are log-uniform between the two.
        min_density: Smallest share of a document that is statements and questions.
        max_density: Largest share.
        echoed: Share of documents that are a list of words and its repetition.
        seed: Documents are a pure function of (haystack, parameters, seed, index).
    """

    haystack: Corpus
    num_documents: int
    min_words: int
    max_words: int
    min_density: float = 0.1
    max_density: float = 1.0
    echoed: float = 0.0
    seed: int = 0

    def _documents(self, haystack: list[str]) -> RecallDocuments:
        return RecallDocuments(
            haystack=haystack,
            num_documents=self.num_documents,
            min_words=self.min_words,
            max_words=self.max_words,
            min_density=self.min_density,
            max_density=self.max_density,
            echoed=self.echoed,
            seed=self.seed,
        )

    def fingerprint(self) -> str:
        """A string that changes with the haystack and every parameter."""
        own = self._documents([" "]).fingerprint()
        return hashlib.sha256(f"recall {self.haystack.fingerprint()} {own}".encode()).hexdigest()

    def texts(self) -> Iterator[str]:
        """Yield the documents in order."""
        documents = self._documents(list(self.haystack.texts()))
        for i in range(len(documents)):
            yield documents[i]
