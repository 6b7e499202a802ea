r"""Questions about several numbered documents, of which one holds the answer.

    User        Document 1
                S1. S2. S3.

                Document 2
                S4. S5. The pair is sun ship. S6.

                what_follows     Which sentence follows "S2."?                    Assistant   S3.
                which_document   Which document contains "S5."?                   Assistant   Document 2
                document_facts   In Document 2, which word is paired with sun?    Assistant   ship

or, worded as lines,

                what_follows     Read on from this line:                          Assistant   S2. S3.
                                 S2.
                which_document   Which document holds this line?                  Assistant   Document 2
                                 S5.
                document_facts   In Document 2, what completes this line?         Assistant   The pair is sun ship.
                                 The pair is sun

With `document_facts` all documents pair the same keys, each with values of its own, so that the answer takes document
and key together.

Algorithm: passages of whole sentences from random places of the texts; a place in all of them, uniform over their
characters, and the sentence nearest to it that can be asked for: it has several words and occurs once.
Cost: O(characters) for each question, to see that a sentence occurs once. Alternative: questions that a model writes
about real documents, which take the model, and somebody who says which answers are right.

The design is our own.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from datamodules.tasks.exercises import Exchange, Exercise, is_held_out
from datamodules.tasks.facts import Facts, Pair
from datamodules.tasks.haystack import Haystack
from datamodules.tasks.recall import log_uniform

DocumentQuestion = Literal["what_follows", "which_document", "document_facts"]
DOCUMENT_QUESTIONS: tuple[DocumentQuestion, ...] = ("what_follows", "which_document", "document_facts")

WORDS_PER_DOCUMENT = (60, 600)
"""Documents are about so long, log-uniform; shorter where the exercise has no room for two of them."""

QUOTED_WORDS = range(5, 21)
"""Sentences of so many words are quoted, and answered with."""

WORDS_PER_QUOTATION = 32
"""Kept free for a question and its answer; most are shorter."""

WORDS_PER_FACT = 40
"""With `document_facts`, a document states about one fact in so many words."""

SHORTEST_EXERCISE = 100
"""Words; with fewer, hardly any two passages have a sentence that can be asked for."""

MAX_TRIES = 500
"""Passages that are tried before it is said that nothing in them can be asked for; short ones often have nothing."""


class Sentence(NamedTuple):
    """A sentence and where it stands."""

    text: str
    document: int  # from 0
    start: int  # character of the whole text


class Documents(NamedTuple):
    """Numbered documents as one text, and their sentences in order."""

    text: str
    sentences: list[Sentence]


class MultiDocument:
    """Exercises over several documents.

    Args:
        haystack: Texts that the documents are passages of.
        facts: Draws the pairs of `document_facts`, and says how questions are worded and on which side quotations are.
        kind: What is asked.
        max_questions: Most questions of one conversation.
    """

    def __init__(self, *, haystack: Haystack, facts: Facts, kind: DocumentQuestion, max_questions: int = 1) -> None:
        self.haystack = haystack
        self.facts = facts
        self.kind: DocumentQuestion = kind
        self.max_questions = max_questions

    def exercise(self, rng: np.random.Generator, num_words: int) -> Exercise:
        """Two documents or more, and at least `SHORTEST_EXERCISE` words.

        Raises:
            ValueError: The texts have no sentence that can be asked for.
        """
        num_words = max(num_words, SHORTEST_EXERCISE)
        for _ in range(MAX_TRIES):
            make = self._about_facts if self.kind == "document_facts" else self._about_sentences
            text, exchanges = make(rng, num_words)
            if exchanges:
                return Exercise(self.kind, text, tuple(exchanges))
        raise ValueError(
            f"{MAX_TRIES} passages of {num_words} words have no sentence that can be asked for, of"
            f" {QUOTED_WORDS.start} to {QUOTED_WORDS.stop - 1} words and without a copy; raise min_length or give a"
            " haystack with more sentences"
        )

    def _about_sentences(self, rng: np.random.Generator, num_words: int) -> tuple[str, list[Exchange]]:
        num_questions = min(self.max_questions, max(1, num_words // (4 * WORDS_PER_QUOTATION)))
        text, sentences = number(self._passages(rng, num_words - num_questions * WORDS_PER_QUOTATION))
        starts = np.array([sentence.start for sentence in sentences])
        exchanges, asked = [], set()
        for place in rng.uniform(0, len(text), num_questions):
            for index in np.argsort(np.abs(starts - place), kind="stable").tolist():
                if index not in asked and self._can_be_asked(text, sentences, index):
                    asked.add(index)
                    exchanges.append(self._quote(sentences, index, depth=sentences[index].start / len(text)))
                    break
        return text, exchanges

    def _can_be_asked(self, text: str, sentences: list[Sentence], index: int) -> bool:
        quoted = sentences[index]
        if self.kind == "what_follows":
            following = sentences[index + 1] if index + 1 < len(sentences) else None
            if following is None or following.document != quoted.document or not _quotable(following):
                return False
        return (
            _quotable(quoted)
            and is_held_out(quoted.text) == self.facts.held_out
            and text.find(quoted.text, text.find(quoted.text) + 1) < 0
        )

    def _quote(self, sentences: list[Sentence], index: int, *, depth: float) -> Exchange:
        quoted, line = sentences[index], self.facts.wording == "line"
        if self.kind == "which_document":
            question = "Which document holds this line?\n{}" if line else 'Which document contains "{}"?'
            answer = f"Document {quoted.document + 1}"
        else:
            question = "Read on from this line:\n{}" if line else 'Which sentence follows "{}"?'
            following = sentences[index + 1].text
            answer = f"{quoted.text} {following}" if line else following
        choices = sentences[-1].document + 1 if self.kind == "which_document" else len(sentences)
        return Exchange(question.format(quoted.text), answer, quoted.text, depth, choices)

    def _about_facts(self, rng: np.random.Generator, num_words: int) -> tuple[str, list[Exchange]]:
        per_fact = self.facts.words_per_statement + WORDS_PER_FACT
        num_questions = min(self.max_questions, max(1, num_words // (4 * per_fact)))
        room = num_words - num_questions * (self.facts.words_per_exchange + 3)
        passages = self._passages(rng, max(2, round(room * WORDS_PER_FACT / per_fact)))
        counts = [max(1, round(sum(map(_num_words, passage)) / WORDS_PER_FACT)) for passage in passages]
        keys = self.facts.keys(rng, min(max(counts), self.facts.most))
        stated: list[tuple[int, Pair]] = []
        for document, (passage, count) in enumerate(zip(passages, counts, strict=True)):
            for key in keys[:count]:
                pair = self.facts.pair(rng, key)
                stated.append((document, pair))
                passage.insert(int(rng.integers(len(passage) + 1)), self.facts.state(pair))
        text, sentences = number(passages)
        starts = {(sentence.document, sentence.text): sentence.start for sentence in sentences}
        exchanges = []
        for index in rng.permutation(len(stated))[:num_questions].tolist():
            document, pair = stated[index]
            depth = starts[document, self.facts.state(pair)] / len(text)
            choices = len({other.value for _, other in stated if other.key == pair.key})
            where = f"In Document {document + 1}, "
            exchanges.append(self.facts.ask(pair, depth=depth, num_choices=choices, where=where))
        return text, exchanges

    def _passages(self, rng: np.random.Generator, num_words: int) -> list[list[str]]:
        """Passages of random texts, as many sentences in all as have room, headings counted."""
        shortest, longest = WORDS_PER_DOCUMENT
        size = log_uniform(rng, min(shortest, num_words / 2), min(longest, num_words / 2))
        ends = np.linspace(0, num_words, max(2, round(num_words / size)) + 1)[1:]
        passages, done = [], 0
        for end in ends:
            passages.append(self.haystack.passage(rng, max(1, int(end) - done - 2)))
            done += 2 + sum(map(_num_words, passages[-1]))
        return passages


def number(passages: list[list[str]]) -> Documents:
    """Passages under the headings `Document 1`, `Document 2` and so on."""
    pieces: list[str] = []
    sentences: list[Sentence] = []
    length = 0
    for document, passage in enumerate(passages):
        for before, sentence in zip([f"Document {document + 1}\n", *" " * (len(passage) - 1)], passage, strict=True):
            before = f"\n\n{before}" if document and before != " " else before
            sentences.append(Sentence(sentence, document, length + len(before)))
            pieces += [before, sentence]
            length += len(before) + len(sentence)
    return Documents("".join(pieces), sentences)


def _num_words(sentence: str) -> int:
    return len(sentence.split())


def _quotable(sentence: Sentence) -> bool:
    return _num_words(sentence.text) in QUOTED_WORDS and '"' not in sentence.text
