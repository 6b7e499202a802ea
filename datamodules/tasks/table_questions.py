"""Questions about a table, each with the answer that code computes from it.

    retrieval         the cell of a row, the cells of several rows, the rows in which columns have given values
    chain_of_thought  2 to 5 rows compared or combined: the cells looked up, then the result
    global            count, highest and lowest, total, most frequent label, the first k by a number: over all rows

The examples below ask about this table:

    id,price,status
    K1,30,open
    K2,7,closed
    K3,30,open

Where several rows qualify, the question says which one counts. Rows are drawn uniformly, so evidence is anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from datamodules.tasks.table_columns import Column, Table

Family = Literal["retrieval", "chain_of_thought", "global"]
FAMILIES: tuple[Family, ...] = ("retrieval", "chain_of_thought", "global")
MAX_NAMED_ROWS = 5
MAX_LISTED_ROWS = 8
"""A list of rows is narrowed down by one more column as long as it holds more."""


class Question(NamedTuple):
    """A question about a table.

    Attributes:
        text: As the reader asks it.
        answer: Computed from the table.
        evidence_rows: Rows, from 0, that the answer rests on; all of them for a global question.
    """

    text: str
    answer: str
    evidence_rows: tuple[int, ...]


def ask(table: Table, family: Family, rng: np.random.Generator) -> Question:
    """A random question of one family."""
    questions = QUESTIONS[family]
    return questions[int(rng.integers(len(questions)))](table, rng)


def cell(table: Table, column: Column, row: int) -> Question:
    """A row's cell.

    What is the price of K2?
    7
    """
    return Question(f"What is the {column.name} of {table.keys[row]}?", str(column.cells[row]), (row,))


def cells(table: Table, column: Column, rows: Sequence[int]) -> Question:
    """The cells of several rows.

    What is the status of each of K3 and K2?
    K3: open, K2: closed
    """
    text = f"What is the {column.name} of each of {_named(table, rows)}?"
    return Question(text, _looked_up(table, column, rows), tuple(rows))


def matching(table: Table, columns: Sequence[Column], row: int) -> Question:
    """The rows that have the same values in `columns` as a given one; no column is asked for that is not needed.

    List the id of every row with price 30 and status open, in the order of the table.
    K1, K3
    """
    rows, conditions = list(range(table.num_rows)), []
    for column in columns:
        value = column.cells[row]
        held = list(column.cells)
        rows = [i for i in rows if held[i] == value]
        conditions.append(f"{column.name} {value}")
        if len(rows) <= MAX_LISTED_ROWS:
            break
    text = f"List the {table.columns[0].name} of every row with {_joined(conditions)}, in the order of the table."
    return Question(text, _keys(table, rows), tuple(rows))


def compare(table: Table, column: Column, rows: Sequence[int], *, highest: bool) -> Question:
    """Which of several rows has the highest or lowest number, or the latest or earliest date.

    Which of K2, K1 and K3 has the highest price? Of equal ones, take the one named first.
    K2: 7, K1: 30, K3: 30. The highest price is 30, so it is K1.
    """
    word = _extreme(column, highest)
    best = _by_value(column, rows, highest)[0]
    text = f"Which of {_named(table, rows)} has the {word} {column.name}? Of equal ones, take the one named first."
    result = f"The {word} {column.name} is {column.cells[best]}, so it is {table.keys[best]}."
    return Question(text, f"{_looked_up(table, column, rows)}. {result}", tuple(rows))


def total(table: Table, column: Column, rows: Sequence[int]) -> Question:
    """The sum of several rows.

    What is the total price of K2 and K3?
    K2: 7, K3: 30. 7 + 30 = 37.
    """
    numbers = [int(column.cells[row]) for row in rows]
    result = f"{' + '.join(map(str, numbers))} = {sum(numbers)}."
    text = f"What is the total {column.name} of {_named(table, rows)}?"
    return Question(text, f"{_looked_up(table, column, rows)}. {result}", tuple(rows))


def difference(table: Table, column: Column, rows: Sequence[int]) -> Question:
    """How far the higher of two rows is above the other.

    How much higher is the price of K3 than that of K2?
    K3: 30, K2: 7. 30 - 7 = 23.
    """
    high, low = _by_value(column, rows, highest=True)
    numbers = int(column.cells[high]), int(column.cells[low])
    result = f"{numbers[0]} - {numbers[1]} = {numbers[0] - numbers[1]}."
    text = f"How much higher is the {column.name} of {table.keys[high]} than that of {table.keys[low]}?"
    return Question(text, f"{_looked_up(table, column, (high, low))}. {result}", (high, low))


def count(table: Table, column: Column, value: str) -> Question:
    """How many rows have a label.

    How many rows have the status open?
    2
    """
    number = sum(held == value for held in column.cells)
    return Question(f"How many rows have the {column.name} {value}?", str(number), _all_rows(table))


def extreme(table: Table, column: Column, *, highest: bool) -> Question:
    """The highest or lowest number, or the latest or earliest date, of all.

    What is the lowest price in the table?
    7
    """
    best = _by_value(column, range(table.num_rows), highest)[0]
    text = f"What is the {_extreme(column, highest)} {column.name} in the table?"
    return Question(text, str(column.cells[best]), _all_rows(table))


def grand_total(table: Table, column: Column) -> Question:
    """The sum of all rows.

    What is the total price of all rows?
    67
    """
    return Question(f"What is the total {column.name} of all rows?", str(sum(map(int, column.cells))), _all_rows(table))


def most_frequent(table: Table, column: Column) -> Question:
    """The label that most rows have.

    Which status occurs most often? Of equally frequent ones, take the first in alphabetical order.
    open
    """
    frequency = Counter(map(str, column.cells))
    label = min(frequency, key=lambda value: (-frequency[value], value))
    text = f"Which {column.name} occurs most often? Of equally frequent ones, take the first in alphabetical order."
    return Question(text, label, _all_rows(table))


def top(table: Table, column: Column, num_rows: int, *, highest: bool) -> Question:
    """The first rows by a number or date.

    List the id of the 2 rows with the lowest price, lowest first. Of equal ones, take the one higher up in the table.
    K2, K1
    """
    word = _extreme(column, highest)
    rows = _by_value(column, range(table.num_rows), highest)[:num_rows]
    text = (
        f"List the {table.columns[0].name} of the {num_rows} rows with the {word} {column.name}, {word} first."
        " Of equal ones, take the one higher up in the table."
    )
    return Question(text, _keys(table, rows), _all_rows(table))


def _one_of(columns: Sequence[Column], rng: np.random.Generator) -> Column:
    return columns[int(rng.integers(len(columns)))]


def _some_rows(table: Table, rng: np.random.Generator, most: int = MAX_NAMED_ROWS) -> list[int]:
    """2 to `most` different rows in random order."""
    number = int(rng.integers(2, min(most, table.num_rows) + 1))
    return rng.choice(table.num_rows, number, replace=False).tolist()


def _coin(rng: np.random.Generator) -> bool:
    return bool(rng.integers(2))


QUESTIONS: dict[Family, tuple[Callable[[Table, np.random.Generator], Question], ...]] = {
    "retrieval": (
        lambda table, rng: cell(table, _one_of(table.columns[1:], rng), int(rng.integers(table.num_rows))),
        lambda table, rng: cells(table, _one_of(table.columns[1:], rng), _some_rows(table, rng)),
        lambda table, rng: matching(
            table,
            [table.columns[1 + i] for i in rng.permutation(len(table.columns) - 1)],
            int(rng.integers(table.num_rows)),
        ),
    ),
    "chain_of_thought": (
        lambda table, rng: compare(
            table, _one_of(table.of_kind("number", "date"), rng), _some_rows(table, rng), highest=_coin(rng)
        ),
        lambda table, rng: total(table, _one_of(table.of_kind("number"), rng), _some_rows(table, rng)),
        lambda table, rng: difference(table, _one_of(table.of_kind("number"), rng), _some_rows(table, rng, most=2)),
    ),
    "global": (
        lambda table, rng: _count_of_some_row(table, rng),
        lambda table, rng: extreme(table, _one_of(table.of_kind("number", "date"), rng), highest=_coin(rng)),
        lambda table, rng: grand_total(table, _one_of(table.of_kind("number"), rng)),
        lambda table, rng: most_frequent(table, _one_of(table.of_kind("label"), rng)),
        lambda table, rng: top(
            table,
            _one_of(table.of_kind("number", "date"), rng),
            int(rng.integers(2, min(MAX_NAMED_ROWS, table.num_rows) + 1)),
            highest=_coin(rng),
        ),
    ),
}


def _count_of_some_row(table: Table, rng: np.random.Generator) -> Question:
    column = _one_of(table.of_kind("label", "place"), rng)
    return count(table, column, str(column.cells[int(rng.integers(table.num_rows))]))


def _by_value(column: Column, rows: Sequence[int], highest: bool) -> list[int]:
    """Rows by the value of a column, those of equal value in their given order."""
    value = list(column.cells).__getitem__
    return sorted(rows, key=value, reverse=highest)  # stable in both directions; ISO dates sort


def _extreme(column: Column, highest: bool) -> str:
    if column.kind == "date":
        return "latest" if highest else "earliest"
    return "highest" if highest else "lowest"


def _looked_up(table: Table, column: Column, rows: Sequence[int]) -> str:
    return ", ".join(f"{table.keys[row]}: {column.cells[row]}" for row in rows)


def _named(table: Table, rows: Sequence[int]) -> str:
    return _joined([str(table.keys[row]) for row in rows])


def _keys(table: Table, rows: Sequence[int]) -> str:
    return ", ".join(str(table.keys[row]) for row in rows)


def _joined(words: Sequence[str]) -> str:
    """K1, K2 and K3"""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _all_rows(table: Table) -> tuple[int, ...]:
    return tuple(range(table.num_rows))
