"""Synthetic long instructions over any corpus, for whoever has none: conversations whose answers are known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from datamodules.corpora.base import Corpus, Document, Quarantine
from datamodules.tasks.exercises import Exercise, Task
from datamodules.tasks.facts import FACT_KINDS, WORDINGS, FactKind, Facts, Wording
from datamodules.tasks.haystack import Haystack
from datamodules.tasks.key_values import KeyValueRetrieval
from datamodules.tasks.multi_document import DOCUMENT_QUESTIONS, MultiDocument
from datamodules.tasks.recall import log_uniform
from datamodules.tasks.table_questions import FAMILIES, Family
from datamodules.tasks.table_reading import TableReading
from datamodules.tasks.word_drills import WordDrills

VERSION = 1
"""Changes with the conversations that a seed gives, so that cached tokens are made anew."""

CONVERSATIONS_PER_SHARD = 1024

LengthUnit = Literal["words", "tokens"]
LENGTH_UNITS: tuple[LengthUnit, ...] = ("words", "tokens")

MIN_WORDS = 20
"""Room for a fact and its question."""

TABLE_TASKS: dict[str, Family] = {f"table_{family}": family for family in FAMILIES}
TASKS = ("key_values", *DOCUMENT_QUESTIONS, *TABLE_TASKS, "word_drills")
"""What can be asked: of `datamodules.tasks` key_values, multi_document, table_reading and word_drills."""


@dataclass(frozen=True)
class InstructionCorpus:
    """Conversations about long texts, each with questions whose answers are known by construction.

    A document is the JSON of one conversation, `{"messages": [{"role": "user", "content": …}, …]}`. Conversation k is a
    pure function of (haystack, parameters, seed, k). With small lengths the same corpus gives short instructions.

    These conversations teach a model to read and to answer in the form of a conversation. They hold no knowledge and no
    style, and are no substitute for real instructions where a model is to chat.

    Args:
        haystack: Corpus of plain texts, which are held in memory.
        tasks: Name -> share of the conversations, in proportion to one another: key_values, what_follows,
            which_document, document_facts, table_retrieval, table_chain_of_thought, table_global, word_drills.
        num_conversations: How many to make.
        min_length: Shortest conversation.
        max_length: Longest conversation; lengths are log-uniform between the two. Some are up to a sentence shorter;
            several documents have at least 100 words, a table 680 characters, and a list of word_drills at most 24
            words.
        length_unit: `words`, or `tokens` as `tokens_per_word` estimates them: a corpus does not know the tokenizer.
        tokens_per_word: Of the texts; 1.4 to 1.8 for English with the demo's tokenizer.
        table_characters_per_token: Of tables, full of digits; 1.55 with the demo's tokenizer.
        max_questions: Most questions about one text, one turn each; tables have one.
        facts: `words`, of which a small model knows each as one token, or `numbers` of six digits.
        wording: How what a text states is asked for: as a `question`, or as a `line` to complete, which a small model
            learns sooner.
        held_out: Whether facts are those that no training conversation has, one in eight of all. So for measuring,
            whatever the other settings; a corpus for training and one that is held out never ask for the same.
        seed: Not negative.

    Raises:
        ValueError: A setting is not in its range.
    """

    haystack: Corpus
    tasks: Mapping[str, float]
    num_conversations: int
    min_length: int
    max_length: int
    length_unit: LengthUnit = "words"
    tokens_per_word: float = 1.4
    table_characters_per_token: float = 1.55
    max_questions: int = 1
    facts: FactKind = "words"
    wording: Wording = "question"
    held_out: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        key = "corpus.sources.*"
        if not self.tasks or not set(self.tasks) <= set(TASKS):
            raise ValueError(f"{key}.tasks={dict(self.tasks)} must name one or more of {', '.join(TASKS)}")
        shares = np.array(list(self.tasks.values()), dtype=float)
        if not np.isfinite(shares).all() or shares.min() < 0 or not shares.sum():
            raise ValueError(f"{key}.tasks={dict(self.tasks)} must be shares, finite and not negative, one above 0")
        if self.num_conversations < 1 or self.seed < 0 or self.max_questions < 1:
            raise ValueError(
                f"{key}.num_conversations={self.num_conversations} and {key}.max_questions={self.max_questions} must be"
                f" at least 1 and {key}.seed={self.seed} at least 0"
            )
        for name, given, allowed in (
            ("length_unit", self.length_unit, LENGTH_UNITS),
            ("facts", self.facts, FACT_KINDS),
            ("wording", self.wording, WORDINGS),
        ):
            if given not in allowed:
                raise ValueError(f"{key}.{name}={given} must be one of {', '.join(allowed)}")
        if not (0 < self.tokens_per_word < float("inf") and 0 < self.table_characters_per_token < float("inf")):
            raise ValueError(
                f"{key}.tokens_per_word={self.tokens_per_word} and {key}.table_characters_per_token="
                f"{self.table_characters_per_token} must be positive"
            )
        shortest = MIN_WORDS / self._words_per_unit
        if not shortest <= self.min_length <= self.max_length:
            raise ValueError(
                f"{key}.min_length={self.min_length} and {key}.max_length={self.max_length} {self.length_unit}: need"
                f" {int(np.ceil(shortest))} <= min_length <= max_length, since a fact has to be stated and asked for"
            )

    def __len__(self) -> int:
        return self.num_conversations

    def __getitem__(self, index: int) -> Exercise:
        """Exercise `index`, whose `conversation` is the document.

        Raises:
            ValueError: The haystack's texts are too short.
        """
        if not 0 <= index < self.num_conversations:
            raise IndexError(f"conversation {index} of {self.num_conversations}")
        rng = np.random.default_rng((self.seed, index))
        shares = np.array([self.tasks[task] for task in self.asked_tasks])
        task = self.asked_tasks[int(rng.choice(len(shares), p=shares / shares.sum()))]
        return self.of_words(task, log_uniform(rng, self.min_length, self.max_length) * self._words_per_unit, rng)

    @property
    def asked_tasks(self) -> list[str]:
        """The tasks that have a share."""
        return [task for task, share in self.tasks.items() if share]

    def of_words(self, task: str, num_words: float, rng: np.random.Generator) -> Exercise:
        """An exercise of one of the tasks and about so many words."""
        return self._makers[task].exercise(rng, max(MIN_WORDS, int(num_words)))

    def fingerprint(self) -> str:
        parameters = {
            "tasks": dict(self.tasks),
            "num_conversations": self.num_conversations,
            "length": [self.min_length, self.max_length, self.length_unit],
            "estimates": [self.tokens_per_word, self.table_characters_per_token],
            "max_questions": self.max_questions,
            "facts": [self.facts, self.wording],
            "held_out": self.held_out,
            "seed": self.seed,
        }
        own = f"instructions {VERSION} {json.dumps(parameters)} {self.haystack.fingerprint()}"
        return hashlib.sha256(own.encode()).hexdigest()

    def shards(self) -> Sequence[InstructionShard]:
        starts = range(0, self.num_conversations, CONVERSATIONS_PER_SHARD)
        return [InstructionShard(self, start, min(start + CONVERSATIONS_PER_SHARD, len(self))) for start in starts]

    def texts(self) -> Iterator[str]:
        for shard in self.shards():
            for document in shard.documents(Quarantine()):
                yield document.text

    @property
    def _words_per_unit(self) -> float:
        return 1.0 if self.length_unit == "words" else 1 / self.tokens_per_word

    @cached_property
    def _makers(self) -> dict[str, Task]:
        """The tasks over one haystack; made at the first conversation, so that a fingerprint alone reads no text."""
        haystack = Haystack(list(self.haystack.texts()))
        facts = Facts(kind=self.facts, wording=self.wording, held_out=self.held_out)
        return {task: self._maker(task, haystack, facts) for task in self.asked_tasks}

    def _maker(self, task: str, haystack: Haystack, facts: Facts) -> Task:
        if task == "key_values":
            return KeyValueRetrieval(haystack=haystack, facts=facts, max_questions=self.max_questions)
        if task == "word_drills":
            return WordDrills(held_out=self.held_out)
        if task in TABLE_TASKS:
            characters = self.tokens_per_word * self.table_characters_per_token
            return TableReading(family=TABLE_TASKS[task], characters_per_word=characters, held_out=self.held_out)
        kind = DOCUMENT_QUESTIONS[DOCUMENT_QUESTIONS.index(task)]
        return MultiDocument(haystack=haystack, facts=facts, kind=kind, max_questions=self.max_questions)

    def __getstate__(self) -> dict[str, Any]:
        """Another process reads the haystack itself: it is larger than what names it."""
        return {name: value for name, value in self.__dict__.items() if name != "_makers"}


@dataclass(frozen=True)
class InstructionShard:
    """Conversations `start` to `end` of a corpus of instructions."""

    corpus: InstructionCorpus
    start: int
    end: int

    @property
    def name(self) -> str:
        return f"synthetic instructions {self.start + 1} to {self.end}"

    def documents(self, quarantine: Quarantine) -> Iterator[Document]:
        for index in range(self.start, self.end):
            yield Document(self.corpus[index].conversation.to_json(), f"synthetic instruction {index + 1}")
