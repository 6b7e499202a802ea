r"""Key-value retrieval: facts stated among real text and asked for afterwards, in a conversation.

    User        w1 w2 w3 [\nThe pair is sun ship.] w4 w5 [\nThe pair is gate oil.] w6

                Which word is paired with gate?
    Assistant   oil
    User        Which word is paired with sun?
    Assistant   ship

Algorithm: a stretch of real text, k statements at uniformly random places of it, and the facts asked in random order.
Asking several of one long text gives several answers to learn from for one reading of it.
Cost: O(words). Alternative: one question a text, which gives the loss one answer in thousands of tokens.

The design is our own; the wording of statements is that of `datamodules.tasks.recall`. Tasks of this kind are common in
tests of long context, such as RULER's needles with many keys (https://arxiv.org/abs/2404.06654, section 3).
"""

from __future__ import annotations

import numpy as np

from datamodules.tasks.exercises import Exercise
from datamodules.tasks.facts import Facts, Pair
from datamodules.tasks.haystack import Haystack
from datamodules.tasks.recall import log_uniform


class KeyValueRetrieval:
    """Exercises of key-value retrieval.

    Args:
        haystack: Texts to hide facts in.
        facts: Draws them.
        min_density: Smallest share of the words that belong to statements; densities are log-uniform.
        max_density: Largest such share.
        max_questions: Most questions of one conversation; as many are asked, or all facts where there are fewer.
    """

    def __init__(
        self,
        *,
        haystack: Haystack,
        facts: Facts,
        min_density: float = 0.02,
        max_density: float = 0.5,
        max_questions: int = 1,
    ) -> None:
        self.haystack = haystack
        self.facts = facts
        self.min_density, self.max_density = min_density, max_density
        self.max_questions = max_questions

    def exercise(self, rng: np.random.Generator, num_words: int) -> Exercise:
        """At least one fact is stated and asked, however few words there are."""
        room = num_words * log_uniform(rng, self.min_density, self.max_density)
        num_facts = min(max(1, int(room / self.facts.words_per_statement)), self.facts.most)
        num_questions = min(self.max_questions, num_facts)
        spent = num_facts * self.facts.words_per_statement + num_questions * self.facts.words_per_exchange
        pairs = [self.facts.pair(rng, key) for key in self.facts.keys(rng, num_facts)]
        text, starts = self._hide(rng, self.haystack.stretch(rng, max(0, num_words - spent)), pairs)
        asked = rng.permutation(num_facts)[:num_questions].tolist()
        choices = len({pair.value for pair in pairs})
        exchanges = [self.facts.ask(pairs[fact], depth=starts[fact] / len(text), num_choices=choices) for fact in asked]
        return Exercise("key_values", text, tuple(exchanges))

    def _hide(self, rng: np.random.Generator, filler: list[str], pairs: list[Pair]) -> tuple[str, list[int]]:
        """The text with the statements in it, and the character at which each begins."""
        places = np.sort(rng.integers(0, len(filler) + 1, len(pairs))).tolist()
        pieces: list[str] = []
        starts: list[int] = []
        done = length = 0
        for place, pair in zip(places, pairs, strict=True):
            words, statement = "".join(filler[done:place]), f"\n{self.facts.state(pair)}"
            starts.append(length + len(words) + 1)
            pieces += [words, statement]
            length += len(words) + len(statement)
            done = place
        return "".join([*pieces, *filler[done:]]), starts
