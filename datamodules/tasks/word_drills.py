"""Short drills over a few words of a text: what to mix with long exercises when there are no instructions at hand.

    repeat     Repeat these words: sun ship gate                      sun ship gate
    nth_word   What is word 2 of: sun ship gate                       ship
    last_word  What is the last word of: sun ship gate                gate
    after      Which word comes after ship in: sun ship gate          gate

They keep a model used to short turns. They are no general instructions: they hold no knowledge and no style, and a
model that should chat needs real ones beside them (`mixture` takes any corpus of conversations).

The design is our own.
"""

from __future__ import annotations

import numpy as np

from datamodules.tasks.exercises import Exchange, Exercise, is_held_out
from datamodules.tasks.recall import load_words

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
"""The places that are asked for; further back it is the last word."""


class WordDrills:
    """One question over a list of different words; the longer the exercise, the more words.

    Args:
        held_out: Whether the drills are those that training does not have.
        max_words: Longest list.
    """

    def __init__(self, *, held_out: bool = False, max_words: int = 24) -> None:
        self.held_out = held_out
        self.max_words = max_words
        self.words = load_words()

    def exercise(self, rng: np.random.Generator, num_words: int) -> Exercise:
        """At least three words are listed, however few there should be."""
        number = int(np.clip(num_words // 2 - 4, 3, self.max_words))
        while True:
            words = [self.words[i] for i in rng.choice(len(self.words), number, replace=False)]
            question, answer, place = self._drill(rng, words)
            fact = f"{question} {answer}"
            if is_held_out(fact) == self.held_out:
                return Exercise("word_drills", "", (Exchange(question, answer, fact, place),))

    def _drill(self, rng: np.random.Generator, words: list[str]) -> tuple[str, str, float | None]:
        listed = " ".join(words)
        kind = int(rng.integers(4))
        if kind == 0:
            return f"Repeat these words: {listed}", listed, None
        if kind == 1:
            place = int(rng.integers(min(len(words), len(ORDINALS))))
            return f"What is the {ORDINALS[place]} word of: {listed}", words[place], place / len(words)
        if kind == 2:
            return f"What is the last word of: {listed}", words[-1], (len(words) - 1) / len(words)
        place = int(rng.integers(1, len(words)))
        return f"Which word comes after {words[place - 1]} in: {listed}", words[place], place / len(words)
