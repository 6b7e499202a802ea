"""Tables of typed columns: a unique key, names, places, dates, numbers and labels.

Algorithm: a schema of 4 to 8 columns is drawn, the key first; each column draws its cells at once, rows independent of
one another. So whatever a question asks about is anywhere in the table with the same probability.
Cost: one vectorised draw a column; its cells are written when one of them is first read, so that a table of which only
the tokens are wanted costs no string a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from importlib.resources import files
from typing import Literal, NamedTuple, overload

import numpy as np

Kind = Literal["key", "name", "place", "date", "number", "label"]

KEYS = ("id", "code", "ticket", "order")
NAMES = ("owner", "contact", "author")
PLACES = ("city", "origin", "destination")
DATES = ("date", "deadline", "delivery")
NUMBERS = {"age": (18, 99), "score": (0, 1000), "price": (10, 9999), "stock": (0, 5000), "distance": (1, 20000)}
LABELS = {
    "status": ("cancelled", "closed", "open", "pending"),
    "region": ("centre", "east", "north", "south", "west"),
    "colour": ("black", "blue", "green", "grey", "red", "white"),
    "size": ("large", "medium", "small"),
}
FIRST_DAY, NUM_DAYS = np.datetime64("2015-01-01"), 3653
YEARS = tuple(str(year) for year in range(2015, 2025))
MONTHS = tuple(f"-{month:02}" for month in range(1, 13))
DAYS = tuple(f"-{day:02}" for day in range(1, 32))


class Part(NamedTuple):
    """What the cells of a column hold at one place: `words[indices]`, or in digits the numbers `indices` themselves."""

    words: tuple[str, ...] | None
    indices: np.ndarray  # [n] int64, not negative

    def written(self) -> list[str]:
        """One string a cell."""
        if self.words is None:
            return list(map(str, self.indices.tolist()))
        return list(map(self.words.__getitem__, self.indices.tolist()))


class DrawnCells(Sequence[str | int]):
    """The cells of a column that was drawn; written when one is first read.

        parts      2015 2021 | -07 -12 | -30 -02
        cells      2015-07-30 2021-12-02

    Args:
        parts: The parts of every cell, in order; each part but the first begins with no letter. One part without words
            makes a column of `int`.
    """

    def __init__(self, *parts: Part) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts[0].indices)

    @overload
    def __getitem__(self, index: int) -> str | int: ...
    @overload
    def __getitem__(self, index: slice) -> DrawnCells: ...
    def __getitem__(self, index: int | slice) -> str | int | DrawnCells:
        if isinstance(index, slice):
            return DrawnCells(*(part._replace(indices=part.indices[index]) for part in self.parts))
        return self.written[index]

    @cached_property
    def written(self) -> Sequence[str | int]:
        """All cells."""
        if len(self.parts) == 1:
            (part,) = self.parts
            return part.indices.tolist() if part.words is None else part.written()
        return list(map("".join, zip(*(part.written() for part in self.parts), strict=True)))


class Column(NamedTuple):
    """One column; numbers are `int`, everything else `str`, and no cell needs quotes or escapes in any format."""

    name: str
    kind: Kind
    cells: Sequence[str | int]


class Table(NamedTuple):
    """Columns of equal length; the first one is the key."""

    columns: tuple[Column, ...]

    @property
    def keys(self) -> Sequence[str | int]:
        """The cells of the first column, all different."""
        return self.columns[0].cells

    @property
    def num_rows(self) -> int:
        """Without the header."""
        return len(self.keys)

    def of_kind(self, *kinds: Kind) -> list[Column]:
        """The columns of some kinds, in order."""
        return [column for column in self.columns if column.kind in kinds]

    def head(self, num_rows: int) -> Table:
        """The first rows alone."""
        return Table(tuple(column._replace(cells=column.cells[:num_rows]) for column in self.columns))


@cache
def load_table_words() -> dict[str, tuple[str, ...]]:
    """What names and places are made of: ASCII words without spaces, by kind."""
    lines = files("datamodules.tasks").joinpath("table_words.txt").read_text(encoding="utf-8").splitlines()
    return {kind: tuple(words) for kind, *words in map(str.split, lines)}


@cache
def _after_space(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f" {word}" for word in words)


def draw_schema(rng: np.random.Generator, *, max_columns: int) -> list[tuple[str, Kind]]:
    """Names and kinds of 4 to `max_columns` columns, the key first; there is a number and a label among them."""
    kinds: dict[str, Kind] = {
        **dict.fromkeys(NAMES, "name"),
        **dict.fromkeys(PLACES, "place"),
        **dict.fromkeys(DATES, "date"),
        **dict.fromkeys(NUMBERS, "number"),
        **dict.fromkeys(LABELS, "label"),
    }
    chosen = [str(rng.choice(list(NUMBERS))), str(rng.choice(list(LABELS)))]
    others = [name for name in kinds if name not in chosen]
    num_columns = int(rng.integers(4, max_columns + 1))
    chosen += [others[i] for i in rng.permutation(len(others))[: num_columns - 3]]
    shuffled = [chosen[i] for i in rng.permutation(len(chosen))]
    return [(str(rng.choice(KEYS)), "key"), *((name, kinds[name]) for name in shuffled)]


def draw_table(schema: Sequence[tuple[str, Kind]], num_rows: int, rng: np.random.Generator) -> Table:
    """A table of this schema with `num_rows` rows, each drawn alone; keys differ."""
    return Table(tuple(Column(name, kind, _cells(name, kind, num_rows, rng)) for name, kind in schema))


def _cells(name: str, kind: Kind, num_rows: int, rng: np.random.Generator) -> DrawnCells:
    if kind == "key":
        letter = "ABCDEFGHKLMNPRSTVWXYZ"[int(rng.integers(21))]
        lowest = 10 ** max(4, len(str(num_rows)))  # all keys of one length, at most every ninth number in use
        numbers = lowest + _distinct(9 * lowest, num_rows, rng)
        return DrawnCells(Part((letter,), np.zeros(num_rows, dtype=np.int64)), Part(None, numbers))
    if kind == "number":
        low, high = NUMBERS[name]
        return DrawnCells(Part(None, rng.integers(low, high + 1, num_rows)))
    if kind == "date":
        return _dates(FIRST_DAY + rng.integers(0, NUM_DAYS, num_rows))
    words = load_table_words()
    if kind == "name":
        first_names, last_names = words["first_names"], _after_space(words["last_names"])
        pairs = rng.integers(0, (len(first_names), len(last_names)), (num_rows, 2))
        return DrawnCells(Part(first_names, pairs[:, 0]), Part(last_names, pairs[:, 1]))
    chosen = words["places"] if kind == "place" else LABELS[name]
    return DrawnCells(Part(chosen, rng.integers(0, len(chosen), num_rows)))


def _dates(days: np.ndarray) -> DrawnCells:
    months = days.astype("datetime64[M]")
    years = months.astype("datetime64[Y]")
    return DrawnCells(
        Part(YEARS, (years - np.datetime64(YEARS[0], "Y")).astype(np.int64)),
        Part(MONTHS, (months - years.astype("datetime64[M]")).astype(np.int64)),
        Part(DAYS, (days - months.astype("datetime64[D]")).astype(np.int64)),
    )


def _distinct(below: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` different numbers in random order; `Generator.choice` would permute all that are below."""
    numbers = np.unique(rng.integers(0, below, count))
    while len(numbers) < count:
        numbers = np.union1d(numbers, rng.integers(0, below, count - len(numbers)))
    return rng.permutation(numbers)
