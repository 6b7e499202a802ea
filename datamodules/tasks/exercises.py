"""Questions about a text whose answers are known by construction, as a conversation.

A task makes an exercise from a generator and a length: a text, and one or more questions about it. What an exercise
asks for is its fact. Facts are divided once and for all into those of training and those that are held out, by a digest
of their words. So an exercise for training and a held-out one never share a fact, whatever their seeds, texts and
tasks; a model that answers held-out questions has read them and not remembered.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple, Protocol

import numpy as np

from datamodules.conversations.conversation import ASSISTANT, USER, Conversation, Message

HELD_OUT_ONE_IN = 8
"""Of so many facts, one is held out."""


class Exchange(NamedTuple):
    """One question and its answer.

    Attributes:
        question: As the user asks it.
        answer: The whole answer.
        fact: What is asked for, in words; `is_held_out` decides by it.
        depth: Where in the text the fact begins, 0..1; None if it takes all of the text.
        num_choices: Among how many answers of the same kind in the text one would guess, such as the number of
            documents; None where nobody counted.
    """

    question: str
    answer: str
    fact: str
    depth: float | None
    num_choices: int | None = None


class Exercise(NamedTuple):
    """A text and questions about it.

    Attributes:
        task: Name of the task.
        text: What is read; empty for questions that need none.
        exchanges: One or more; the first question follows the text in the same message.
        question_first: Whether the first question stands before the text.
    """

    task: str
    text: str
    exchanges: tuple[Exchange, ...]
    question_first: bool = False

    @property
    def conversation(self) -> Conversation:
        """A turn of the user and one of the assistant for each question."""
        messages = []
        for number, exchange in enumerate(self.exchanges):
            asked = self._with_text(exchange.question) if number == 0 and self.text else exchange.question
            messages += [Message(USER, asked), Message(ASSISTANT, exchange.answer)]
        return Conversation(tuple(messages))

    def _with_text(self, question: str) -> str:
        return f"{question}\n\n{self.text}" if self.question_first else f"{self.text}\n\n{question}"


class Task(Protocol):
    """Makes exercises of one kind."""

    def exercise(self, rng: np.random.Generator, num_words: int) -> Exercise:
        """An exercise of about `num_words` words, questions and answers included."""
        ...


def is_held_out(fact: str) -> bool:
    """Whether a fact belongs to the held-out ones, about one in `HELD_OUT_ONE_IN`."""
    digest = hashlib.blake2b(" ".join(fact.split()).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % HELD_OUT_ONE_IN == 0
