"""Synthetic tables, each with a question and its answer, as a corpus; see `datamodules.tasks.tables`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from datamodules.corpora.base import Document, Quarantine
from datamodules.tasks.recall import log_uniform
from datamodules.tasks.table_formats import FORMATS, Format
from datamodules.tasks.table_questions import FAMILIES, Family
from datamodules.tasks.tables import MIN_CHARACTERS, TableProblem, check_choices, make_problem

VERSION = 1
"""Changes with the texts that a seed gives, so that cached tokens are made anew."""

DOCUMENTS_PER_SHARD = 256


@dataclass(frozen=True)
class SyntheticTablesCorpus:
    """Documents of a table, a question and the answer.

    A corpus does not know the tokenizer, since cached tokens are named by corpus and tokenizer; so sizes are tokens as
    `characters_per_token` estimates them, and `prepare` reports the real ones. Training on these documents learns all
    their tokens, the table's too; the augmentation `SyntheticTables` learns the answer alone.

    Args:
        num_documents: How many documents to make.
        min_tokens: Smallest document.
        max_tokens: Largest document; sizes are log-uniform between the two.
        characters_per_token: Of these texts, full of digits; 1.55 with the demo's tokenizer of 4096 tokens, and more
            with larger vocabularies.
        formats: Of markdown, csv and json.
        families: Of retrieval, chain_of_thought and global.
        seed: Not negative; document k is a pure function of (parameters, seed, k).

    Raises:
        ValueError: A setting is not in its range.
    """

    num_documents: int
    min_tokens: int = 2_000
    max_tokens: int = 100_000
    characters_per_token: float = 1.55
    formats: Sequence[Format] = FORMATS
    families: Sequence[Family] = FAMILIES
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_documents < 1 or self.seed < 0:
            raise ValueError(
                f"corpus.sources.*.num_documents={self.num_documents} must be at least 1 and"
                f" corpus.sources.*.seed={self.seed} at least 0"
            )
        if not 0 < self.characters_per_token < float("inf"):
            raise ValueError(f"corpus.sources.*.characters_per_token={self.characters_per_token} must be positive")
        if self.min_tokens * self.characters_per_token < MIN_CHARACTERS:
            raise ValueError(
                f"corpus.sources.*.min_tokens={self.min_tokens} has no room for a table and its question; give"
                f" {int(np.ceil(MIN_CHARACTERS / self.characters_per_token))} or more"
            )
        if self.max_tokens < self.min_tokens:
            raise ValueError(
                f"corpus.sources.*.max_tokens={self.max_tokens} is below corpus.sources.*.min_tokens={self.min_tokens}"
            )
        check_choices(self.formats, FORMATS, "corpus.sources.*.formats")
        check_choices(self.families, FAMILIES, "corpus.sources.*.families")

    def __len__(self) -> int:
        return self.num_documents

    def __getitem__(self, index: int) -> TableProblem:
        """Problem `index`, whose `text` is the document."""
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.num_documents}")
        num_tokens = log_uniform(np.random.default_rng((self.seed, index)), self.min_tokens, self.max_tokens)
        num_characters = max(MIN_CHARACTERS, round(num_tokens * self.characters_per_token))
        return make_problem(
            (self.seed, index), num_characters=num_characters, formats=self.formats, families=self.families
        )

    def fingerprint(self) -> str:
        """A string that changes with every parameter."""
        parameters = {
            "num_documents": self.num_documents,
            "tokens": [self.min_tokens, self.max_tokens],
            "characters_per_token": self.characters_per_token,
            "formats": list(self.formats),
            "families": list(self.families),
            "seed": self.seed,
        }
        return hashlib.sha256(f"tables {VERSION} {json.dumps(parameters)}".encode()).hexdigest()

    def shards(self) -> list[TableShard]:
        """The documents, `DOCUMENTS_PER_SHARD` a shard, in order."""
        starts = range(0, self.num_documents, DOCUMENTS_PER_SHARD)
        return [TableShard(self, start, min(start + DOCUMENTS_PER_SHARD, self.num_documents)) for start in starts]

    def texts(self) -> Iterator[str]:
        """Yield the documents in order."""
        for shard in self.shards():
            for document in shard.documents(Quarantine()):
                yield document.text


@dataclass(frozen=True)
class TableShard:
    """Documents `start` to `end` of a corpus of tables."""

    corpus: SyntheticTablesCorpus
    start: int
    end: int

    @property
    def name(self) -> str:
        """Which documents."""
        return f"synthetic tables {self.start + 1} to {self.end}"

    @property
    def num_documents(self) -> int:
        """How many."""
        return self.end - self.start

    def documents(self, quarantine: Quarantine) -> Iterator[Document]:
        """Yield the documents in order."""
        for index in range(self.start, self.end):
            yield Document(self.corpus[index].text, f"synthetic table {index + 1}")
