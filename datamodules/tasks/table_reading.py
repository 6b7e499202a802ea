"""Questions about a synthetic table, as an exercise; the tables are those of `datamodules.tasks.tables`.

    User        id,price,status
                K1,30,open
                K2,7,closed

                Question: What is the price of K2?
    Assistant   7

Algorithm: problems are drawn until one is on the side of training or of the held-out facts that is asked for, a fact
being question and answer. Cost: that of one problem for training, and of eight for a held-out one on average.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datamodules.tasks.exercises import Exchange, Exercise, is_held_out
from datamodules.tasks.table_formats import FORMATS, Format
from datamodules.tasks.table_questions import Family
from datamodules.tasks.tables import MIN_CHARACTERS, make_problem

QUESTION = "Question: "


class TableReading:
    """Exercises of one family of table questions.

    Args:
        family: Of retrieval, chain_of_thought and global.
        formats: Of markdown, csv and json.
        characters_per_word: Tables have hardly any spaces, so that a word of prose stands for so many characters here:
            as many as take the same tokens.
        held_out: On which side the questions are.
    """

    def __init__(
        self,
        *,
        family: Family,
        formats: Sequence[Format] = FORMATS,
        characters_per_word: float = 2.2,
        held_out: bool = False,
    ) -> None:
        self.family: Family = family
        self.formats = formats
        self.characters_per_word = characters_per_word
        self.held_out = held_out

    def exercise(self, rng: np.random.Generator, num_words: int) -> Exercise:
        """One table and one question; no table is smaller than `MIN_CHARACTERS`."""
        num_characters = max(MIN_CHARACTERS, round(num_words * self.characters_per_word))
        while True:
            problem = make_problem(
                rng.integers(2**63, size=2).tolist(),
                num_characters=num_characters,
                formats=self.formats,
                families=[self.family],
            )
            text, question, question_first = split_prompt(problem.prompt)
            fact = f"{question} {problem.answer}"
            if is_held_out(fact) == self.held_out:
                break
        rows = problem.evidence_rows
        depth = None if self.family == "global" else min(rows) / problem.num_rows
        exchange = Exchange(question, problem.answer, fact, depth)
        return Exercise(f"table_{self.family}", text, (exchange,), question_first)


def split_prompt(prompt: str) -> tuple[str, str, bool]:
    """Table, question, and whether the question stands first, of a problem's prompt."""
    body = prompt.removesuffix("Answer:").rstrip("\n")
    if body.startswith(QUESTION):
        question, _, table = body.partition("\n\n")
        return table, question, True
    table, _, question = body.rpartition("\n\n")
    return table, question, False
