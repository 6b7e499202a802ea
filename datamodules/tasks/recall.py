"""A retrieval task made of ordinary text: words are paired, and the partner of each is asked for again at the end.

Algorithm: a stretch of real text is the haystack; k statements "The pair is {key} {value}." go in at random places;
at the end all k come again in a random order, so that each final value can be predicted only by looking back.
Cost: one pass over the haystack before the first document (word edges), then O(words of the document) a document.
Alternative: natural documents alone. A model of a few million parameters learns to look far back from them only after
very many tokens, since few of their tokens need it; here up to half of the statements' values do.

The design is our own, for the demo (dense key-value recall with answers of one token); it is not a published method.
It resembles multi-query associative recall (https://arxiv.org/abs/2312.04927), worded as the needle test asks.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.resources import files
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class RecallFormat:
    """How a fact is stated, asked and answered; the needle test uses the same words as the training documents."""

    statement: str = "\nThe pair is {key} {value}."
    question: str = "\nThe pair is {key}"
    answer: str = " {value}"

    @property
    def words_per_statement(self) -> int:
        """Words of a stated fact."""
        return len(self.statement.split())

    def state(self, key: str, value: str) -> str:
        """The sentence that tells a fact."""
        return self.statement.format(key=key, value=value)

    def ask(self, key: str) -> str:
        """The question for a key."""
        return self.question.format(key=key)

    def reply(self, value: str) -> str:
        """The answer that a value is."""
        return self.answer.format(value=value)


def load_words() -> list[str]:
    """The 128 keys and values: frequent nouns, verbs and adjectives of the corpus `classics`, most frequent first.

    Each has 3 to 8 letters and is one token, with its leading space, to a byte-level BPE of 4096 entries trained on
    that corpus.
    """
    return files("datamodules.tasks").joinpath("words.txt").read_text(encoding="utf-8").split()


class RecallDocuments:
    r"""Synthetic documents of dense key-value recall, addressed by index.

    Document i draws a length n (words) and a density f, both log-uniform, states k = n f / 2s facts of s words each,
    and asks all of them again:

        before   w1 w2 w3 w4 w5 w6 w7                                 a stretch of one haystack text, whitespace kept
        after    w1 w2 [\nThe pair is sun ship.] w3 w4 w5 [\nThe pair is gate oil.] w6 w7
                 [\nThe pair is gate oil.] [\nThe pair is sun ship.]
                                     ^^^                    ^^^^ predictable only from far back

    A share of the documents, `echoed`, is simpler: n / 2 random words, and the same words once more. Every word of the
    second half can be read off the first, which is what teaches a young model to look back at all.

    A document is a pure function of (haystack, parameters, seed, i): any number of workers, in any order, make the same
    text. The stretch is uniform over all places of all haystack texts that are long enough.

    Args:
        haystack: Texts to hide the facts in; one of them must have `max_words` words.
        num_documents: Length of the corpus.
        min_words: Shortest document in words; a word is what stands between whitespace.
        max_words: Longest document in words.
        min_density: Smallest share of a document's words that belong to statements.
        max_density: Largest such share, at most 1. Keys do not repeat, so long documents have at most 128 facts.
        echoed: Share of documents that are a list of words and its repetition, 0..1.
        seed: Not negative.
        format: The wording.

    Raises:
        ValueError: A range is empty or out of bounds; at the first document, no haystack text has `max_words` words.
    """

    def __init__(
        self,
        *,
        haystack: list[str],
        num_documents: int,
        min_words: int,
        max_words: int,
        min_density: float = 0.1,
        max_density: float = 1.0,
        echoed: float = 0.0,
        seed: int,
        format: RecallFormat = RecallFormat(),  # noqa: A002  (the field's word)
    ) -> None:
        shortest = 2 * format.words_per_statement
        if not shortest <= min_words <= max_words:
            raise ValueError(
                f"min_words={min_words}, max_words={max_words}: need {shortest} <= min_words <= max_words, "
                "since one fact is stated once and asked once"
            )
        if not 0 < min_density <= max_density <= 1:
            raise ValueError(
                f"min_density={min_density}, max_density={max_density}: need 0 < min_density <= max_density <= 1"
            )
        if not 0 <= echoed <= 1:
            raise ValueError(f"echoed={echoed} is a share of the documents; give 0..1")
        if num_documents < 1 or seed < 0:
            raise ValueError(f"num_documents={num_documents} must be at least 1 and seed={seed} at least 0")
        self.haystack = haystack
        self.num_documents = num_documents
        self.min_words, self.max_words = min_words, max_words
        self.min_density, self.max_density = min_density, max_density
        self.echoed = echoed
        self.seed = seed
        self.format = format
        self.words = load_words()

    def __len__(self) -> int:
        return self.num_documents

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.num_documents}")
        rng = np.random.default_rng((self.seed, index))
        num_words = round(log_uniform(rng, self.min_words, self.max_words))
        if rng.random() < self.echoed:
            words = "".join(f" {self.words[word]}" for word in rng.choice(len(self.words), num_words // 2))
            return f"\n{words}\n{words}"
        density = log_uniform(rng, self.min_density, self.max_density)
        words_per_fact = 2 * self.format.words_per_statement
        num_facts = min(max(1, round(num_words * density / words_per_fact)), len(self.words))
        keys = rng.choice(len(self.words), num_facts, replace=False)
        values = rng.choice(len(self.words), num_facts)

        filler = self._filler(rng, max(0, num_words - words_per_fact * num_facts))
        places = np.sort(rng.integers(0, len(filler) + 1, num_facts)).tolist()
        statements = [
            self.format.state(self.words[key], self.words[value]) for key, value in zip(keys, values, strict=True)
        ]
        pieces: list[str] = []
        start = 0
        for place, statement in zip(places, statements, strict=True):
            pieces += [*filler[start:place], statement]
            start = place
        pieces += filler[start:]
        for fact in rng.permutation(num_facts):
            key, value = self.words[keys[fact]], self.words[values[fact]]
            pieces += [self.format.ask(key), self.format.reply(value), "."]
        return "".join(pieces)

    @cached_property
    def _edges(self) -> list[np.ndarray]:
        """Word edges of each haystack text; found on first use, so that a fingerprint alone costs no pass over it."""
        edges = [word_edges(text) for text in self.haystack]
        longest = max((len(found) - 1 for found in edges), default=0)
        if longest < self.max_words:
            raise ValueError(
                f"max_words={self.max_words}, but the longest haystack text has {longest} words; "
                "lower max_words or give longer texts"
            )
        return edges

    def _filler(self, rng: np.random.Generator, num_words: int) -> list[str]:
        """A random stretch of consecutive words, each with the whitespace before it: joined, they are a slice."""
        places = np.cumsum([max(len(edges) - num_words, 0) for edges in self._edges])
        place = int(rng.integers(0, places[-1]))
        source = int(np.searchsorted(places, place, side="right"))
        first = place - (int(places[source - 1]) if source else 0)
        text, edges = self.haystack[source], self._edges[source][first : first + num_words + 1].tolist()
        return [text[start:end] for start, end in pairwise(edges)]

    def fingerprint(self) -> str:
        """Everything the documents depend on, as a stable string for cache keys."""
        digest = hashlib.sha256()
        for text in [*self.words, *self.haystack]:
            digest.update(hashlib.sha256(text.encode()).digest())
        parameters = {
            "num_documents": self.num_documents,
            "words": [self.min_words, self.max_words],
            "density": [self.min_density, self.max_density],
            "echoed": self.echoed,
            "seed": self.seed,
            "format": asdict(self.format),
            "texts": digest.hexdigest(),
        }
        return "recall-1:" + json.dumps(parameters, sort_keys=True)


def word_edges(text: str) -> np.ndarray:
    """[words + 1] int64: the start of the text, then the end of each word; word i is text[edges[i]:edges[i + 1]]."""
    return np.fromiter((0, *(match.end() for match in re.finditer(r"\S+", text))), dtype=np.int64)


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number from `low` to `high` whose logarithm is uniform: short and long are equally likely by factor."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))
