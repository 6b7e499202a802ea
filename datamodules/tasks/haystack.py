"""Real text to hide facts in or to ask about: stretches of words, and passages of whole sentences.

Cost: one pass over all texts for the edges of words, one more for sentences where they are needed; both on first use.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np

from datamodules.tasks.recall import word_edges

MAX_SENTENCE_WORDS = 40
"""What goes on for longer without a full stop, such as a list of names, is cut."""

SENTENCE_END = re.compile(r"""(?<=[.!?])\s+|(?<=[.!?]["')\]])\s+""")


class Haystack:
    """Texts that separate words with spaces.

    Args:
        texts: At least one, and one of them must hold the longest stretch that is asked for.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def stretch(self, rng: np.random.Generator, num_words: int) -> list[str]:
        """Consecutive words of one text, each with the whitespace before it: joined, they are a slice of it.

        Uniform over all places of all texts.

        Raises:
            ValueError: No text has so many words.
        """
        source, first = _place(rng, [len(edges) - 1 for edges in self._edges], num_words)
        text, edges = self.texts[source], self._edges[source][first : first + num_words + 1].tolist()
        return [text[start:end] for start, end in pairwise(edges)]

    def passage(self, rng: np.random.Generator, num_words: int) -> list[str]:
        """Consecutive sentences of one text, as many as `num_words` words have room for.

        Where they have none for the first, it is cut. Whitespace within a sentence is one space, so that it can be
        quoted in a line.

        Raises:
            ValueError: No text has so many words.
        """
        source, first = _place(rng, [int(ends[-1]) for ends in self._sentence_ends], num_words)
        ends = self._sentence_ends[source]
        start = int(np.searchsorted(ends, first, side="right")) - 1
        stop = int(np.searchsorted(ends, ends[start] + num_words, side="right")) - 1
        found = self._sentences[source]
        return found[start:stop] or [" ".join(found[start].split()[:num_words])]

    @cached_property
    def _edges(self) -> list[np.ndarray]:
        return [word_edges(text) for text in self.texts]

    @cached_property
    def _sentences(self) -> list[list[str]]:
        return [sentences(text) for text in self.texts]

    @cached_property
    def _sentence_ends(self) -> list[np.ndarray]:
        """For each text, words before each sentence, and its number of words at the end."""
        return [np.cumsum([0, *(len(sentence.split()) for sentence in found)]) for found in self._sentences]


def sentences(text: str) -> list[str]:
    """The sentences of a text, in order; every word of it is in one, and none has more than `MAX_SENTENCE_WORDS`."""
    found = []
    for sentence in SENTENCE_END.split(text):
        words = sentence.split()
        found += [" ".join(words[i : i + MAX_SENTENCE_WORDS]) for i in range(0, len(words), MAX_SENTENCE_WORDS)]
    return found


def _place(rng: np.random.Generator, lengths: Sequence[int], num_words: int) -> tuple[int, int]:
    """A text and a word of it, uniform over all from which `num_words` words follow."""
    places = np.cumsum([max(length - num_words + 1, 0) for length in lengths])
    if not len(places) or not places[-1]:
        raise ValueError(
            f"a text of {num_words} words was asked for, but the longest text of the haystack has"
            f" {max(lengths, default=0)}; lower max_length or give longer texts"
        )
    place = int(rng.integers(places[-1]))
    source = int(np.searchsorted(places, place, side="right"))
    return source, place - (int(places[source - 1]) if source else 0)
