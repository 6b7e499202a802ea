"""Synthetic tables with a question and its answer: long text whose every fact is known.

Algorithm: a schema and a format are drawn, rows until a size is reached, and a question of one family; code computes
the answer from the cells. Cost: O(cells), about the time in which a tokenizer reads the text once.
Alternative: questions about natural text, which need an annotator or a model, and whose answers may be wrong.

The design is our own, after what is known of SynL (LongSkywork, https://arxiv.org/abs/2406.00605): tables of 2K to 100K
tokens and tasks of retrieval, chain-of-thought reasoning and global understanding. The paper was not read, and its
schemas, wording and mixture are not reproduced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from datamodules.tasks.table_columns import Kind, Table, draw_schema, draw_table
from datamodules.tasks.table_formats import FORMATS, Format, render
from datamodules.tasks.table_questions import FAMILIES, Family, Question, ask

MIN_CHARACTERS = 680
"""Room for a table of two rows and any question about it."""

QUESTION_CHARACTERS = 330
"""Kept free for question and answer."""

SLACK_CHARACTERS = 500
"""A problem is at most this much shorter than it may be: a short question, and less than one more row."""

SAMPLE_ROWS = 64


class TableProblem(NamedTuple):
    """One table and one question about it; `f"{prompt} {answer}"` is the whole text.

    Attributes:
        prompt: The table and the question in either order, then `Answer:`.
        answer: Computed from the table.
        family: What kind of reading it takes.
        format: How the table is written.
        evidence_rows: Rows, from 0, that the answer rests on; all of them for a global question.
        num_rows: Rows of the table.
        seed: What the problem was drawn from, with the same `num_characters`.
    """

    prompt: str
    answer: str
    family: Family
    format: Format
    evidence_rows: tuple[int, ...]
    num_rows: int
    seed: tuple[int, ...]

    @property
    def text(self) -> str:
        """Prompt and answer."""
        return f"{self.prompt} {self.answer}"


@dataclass(frozen=True)
class TableDraft:
    """What a seed decides before the size of the table is known.

    Args:
        seed: One or more integers, not negative.
        format: How the table is written.
        family: Of its question.
        question_first: Whether the question stands before the table.
        schema: Names and kinds of the columns.
        sample: Some rows, by which to tell how many have room; none of them is in the table.
    """

    seed: tuple[int, ...]
    format: Format
    family: Family
    question_first: bool
    schema: tuple[tuple[str, Kind], ...]
    sample: Table

    def draw(self, num_rows: int) -> Table:
        """A table of so many rows; another number of rows gives another table."""
        return draw_table(self.schema, num_rows, _generators(self.seed)[1])

    def ask(self, table: Table) -> Question:
        """The question about a table of this schema."""
        return ask(table, self.family, _generators(self.seed)[2])

    def around(self, question: Question) -> tuple[str, str]:
        """What of the prompt stands before the table, and what behind it."""
        asked = f"Question: {question.text}"
        return (f"{asked}\n\n", "\n\nAnswer:") if self.question_first else ("", f"\n\n{asked}\nAnswer:")


def draft_problem(
    seed: Sequence[int],
    *,
    max_columns: int,
    formats: Sequence[Format] = FORMATS,
    families: Sequence[Family] = FAMILIES,
) -> TableDraft:
    """The problem of a seed as far as it does not depend on its size.

    Args:
        seed: One or more integers, not negative.
        max_columns: At least 4; the schema has so many columns at most.
        formats: Drawn from with equal probability.
        families: Drawn from with equal probability.
    """
    rng, _, _ = _generators(seed)
    written = formats[int(rng.integers(len(formats)))]
    family = families[int(rng.integers(len(families)))]
    question_first = bool(rng.integers(2))
    schema = tuple(draw_schema(rng, max_columns=max_columns))
    sample = draw_table(schema, SAMPLE_ROWS, rng)
    return TableDraft(tuple(seed), written, family, question_first, schema, sample)


def columns_for(size: int) -> int:
    """Columns at most of a table of so many characters, or of so few tokens: small ones are to have some rows too."""
    return max(4, min(8, size // 250))


def rows_for(size: float, *, row_size: float) -> int:
    """Rows to draw for a table of a size, a few too many, where rows of the sample have `row_size` on average."""
    return int(1.05 * size / row_size) + 8


def make_problem(
    seed: Sequence[int],
    *,
    num_characters: int,
    formats: Sequence[Format] = FORMATS,
    families: Sequence[Family] = FAMILIES,
) -> TableProblem:
    """The problem of a seed and a size.

    Format, family and the order of table and question depend on the seed alone; so does the schema from 2000 characters
    on, below which there may be fewer columns.

    Args:
        seed: One or more integers, not negative.
        num_characters: Length of the whole text, at least `MIN_CHARACTERS`; it gets at most `SLACK_CHARACTERS` shorter,
            and not longer.
        formats: Drawn from with equal probability.
        families: Drawn from with equal probability.
    """
    assert num_characters >= MIN_CHARACTERS, "checked by whoever reads the configuration"
    draft = draft_problem(seed, max_columns=columns_for(num_characters), formats=formats, families=families)
    sample = render(draft.sample, draft.format)
    mean_row = len(sample.between) + sum(map(len, sample.rows)) / len(sample.rows)
    most_rows = rows_for(num_characters, row_size=mean_row)
    table, text = _cut(draft.draw(most_rows), draft.format, num_characters - QUESTION_CHARACTERS)
    question = draft.ask(table)
    before, behind = draft.around(question)
    return TableProblem(
        prompt=before + text + behind,
        answer=question.answer,
        family=draft.family,
        format=draft.format,
        evidence_rows=question.evidence_rows,
        num_rows=table.num_rows,
        seed=draft.seed,
    )


def check_choices(chosen: Sequence[str], allowed: Sequence[str], key: str) -> None:
    """Raises: ValueError: `chosen` is empty or holds something that is not allowed; the message names `key`."""
    if not chosen or not set(chosen) <= set(allowed):
        raise ValueError(f"{key}={list(chosen)} must list one or more of {', '.join(allowed)}")


def _cut(table: Table, written: Format, num_characters: int) -> tuple[Table, str]:
    """As many of the first rows as have room, and their text."""
    whole = render(table, written)
    room = num_characters - len(whole.head) - len(whole.tail) + len(whole.between)
    ends = np.cumsum([len(row) + len(whole.between) for row in whole.rows])
    num_rows = int(np.searchsorted(ends, room, side="right"))
    return table.head(num_rows), whole._replace(rows=whole.rows[:num_rows]).text


def _generators(seed: Sequence[int]) -> list[np.random.Generator]:
    """Of what is drawn first, of the rows, and of the question; so that none changes with the others."""
    return np.random.default_rng(list(seed)).spawn(3)
