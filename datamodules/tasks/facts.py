"""Facts of a key and a value: how they are drawn, stated, asked for and answered.

state    The pair is sun ship.
ask      Which word is paired with sun?
answer   ship                          or, with answers that quote: The pair is sun ship.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from datamodules.tasks.exercises import Exchange, is_held_out
from datamodules.tasks.recall import RecallFormat, load_words

FactKind = Literal["words", "numbers"]
FACT_KINDS: tuple[FactKind, ...] = ("words", "numbers")

Wording = Literal["question", "line"]
WORDINGS: tuple[Wording, ...] = ("question", "line")


class Pair(NamedTuple):
    """A key and what it is paired with."""

    key: str
    value: str


class Facts:
    """Draws pairs of one side, of training or held out, and words them.

    Args:
        kind: `words`: 128 keys and values of one word each, for small models. `numbers`: keys of two words, of which
            there are 16,256, and values of six digits.
        wording: How pairs are asked for: `question` or `line`.
        held_out: Whether the pairs are those that no training exercise has.
    """

    def __init__(self, *, kind: FactKind = "words", wording: Wording = "question", held_out: bool = False) -> None:
        self.kind: FactKind = kind
        self.wording: Wording = wording
        self.held_out = held_out
        self.words = load_words()
        self.format = RecallFormat()

    @property
    def most(self) -> int:
        """How many keys there are."""
        return len(self.words) if self.kind == "words" else len(self.words) * (len(self.words) - 1)

    @property
    def words_per_statement(self) -> int:
        return len(self.state(self._longest).split())

    @property
    def words_per_exchange(self) -> int:
        exchange = self.ask(self._longest, depth=0.0)
        return len(f"{exchange.question} {exchange.answer}".split())

    def keys(self, rng: np.random.Generator, number: int) -> list[str]:
        """Different keys in random order."""
        if self.kind == "words":
            return [self.words[key] for key in rng.choice(len(self.words), number, replace=False)]
        firsts, seconds = np.divmod(rng.choice(self.most, number, replace=False), len(self.words) - 1)
        seconds += seconds >= firsts  # the two words of a key differ
        return [f"{self.words[first]} {self.words[second]}" for first, second in zip(firsts, seconds, strict=True)]

    def pair(self, rng: np.random.Generator, key: str) -> Pair:
        """A key with a random value."""
        if self.kind == "words":
            values = self._values[key]
            return Pair(key, values[int(rng.integers(len(values)))])
        while True:
            pair = Pair(key, str(rng.integers(100_000, 1_000_000)))
            if is_held_out(fact(pair)) == self.held_out:
                return pair

    def state(self, pair: Pair) -> str:
        return self.format.state(*pair).strip()

    def ask(self, pair: Pair, *, depth: float, num_choices: int = 1, where: str = "") -> Exchange:
        """The question for a pair and its answer.

        Args:
            pair: What is asked for.
            depth: Where it is stated.
            num_choices: How many values one would guess among.
            where: What the question begins with, such as `In Document 2, `.
        """
        if self.wording == "line":
            line = self.format.ask(pair.key).strip()
            question, answer = f"{where}what completes this line?\n{line}", self.state(pair)
        else:
            noun = "word" if self.kind == "words" else "number"
            question, answer = f"{where}which {noun} is paired with {pair.key}?", pair.value
        return Exchange(question[0].upper() + question[1:], answer, fact(pair), depth, num_choices)

    @property
    def _longest(self) -> Pair:
        return Pair("key", "value") if self.kind == "words" else Pair("two words", "value")

    @cached_property
    def _values(self) -> dict[str, list[str]]:
        """The words that each may be paired with."""
        return {
            key: [value for value in self.words if is_held_out(fact(Pair(key, value))) == self.held_out]
            for key in self.words
        }


def fact(pair: Pair) -> str:
    """The words that decide on which side a pair is."""
    return f"{pair.key} {pair.value}"
