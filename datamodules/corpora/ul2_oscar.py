"""The texts of another corpus as UL2 dialogues in words, in the manner of Together's `ul2_plus_oscar_en`."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from datamodules.corpora.base import Corpus, Document, Quarantine, Shard, shards_of
from datamodules.tasks.ul2_oscar import ul2_oscar_dialogue

VERSION = "ul2-oscar-1"
"""Changes whenever the same text and seed would give another dialogue, wordings included."""


@dataclass(frozen=True)
class UL2OscarCorpus:
    """`ul2_oscar_dialogue` over the texts of another corpus, one dialogue a document.

    A dialogue is a pure function of the seed and of its text, not of its place. So it is the same whatever shards the
    corpus is read in, no other document changes when one is added or set aside, and copies of a text stay copies, which
    a search for duplicates still finds.

    Args:
        corpus: Corpus of plain texts.
        seed: Draws what is hidden.
    """

    corpus: Corpus
    seed: int = 0

    def fingerprint(self) -> str:
        """A string that changes with the texts and the seed."""
        return hashlib.sha256(f"{VERSION} {self.seed} {self.corpus.fingerprint()}".encode()).hexdigest()

    def texts(self) -> Iterator[str]:
        """Yield the dialogues in order."""
        for shard in self.shards():
            for document in shard.documents(Quarantine(strict=True)):
                yield document.text

    def shards(self) -> Sequence[Shard]:
        """Those of the other corpus, under the same names."""
        return [DialogueShard(shard, self.seed) for shard in shards_of(self.corpus)]


@dataclass(frozen=True)
class DialogueShard:
    """The dialogues of one shard, each at the place of its text.

    Args:
        shard: Texts.
        seed: Draws what is hidden.
    """

    shard: Shard
    seed: int

    @property
    def name(self) -> str:
        """That of the texts."""
        return self.shard.name

    @property
    def num_bytes(self) -> int | None:
        """Of the texts, about; None where nobody knows."""
        return getattr(self.shard, "num_bytes", None)

    @property
    def num_documents(self) -> int | None:
        """None where nobody knows."""
        return getattr(self.shard, "num_documents", None)

    def documents(self, quarantine: Quarantine) -> Iterator[Document]:
        """Yield the dialogue of each text, in order."""
        for document in self.shard.documents(quarantine):
            yield document._replace(text=ul2_oscar_dialogue(document.text, rng=_own_rng(document.text, self.seed)))


def _own_rng(text: str, seed: int) -> random.Random:
    """Seeded by a digest, since Python's own hash of a string differs from process to process."""
    digest = hashlib.blake2b(f"{seed}\n{text}".encode("utf-8", "surrogatepass"), digest_size=16)
    return random.Random(int.from_bytes(digest.digest(), "little"))
