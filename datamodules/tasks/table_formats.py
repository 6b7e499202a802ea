"""Tables as text: Markdown, CSV and JSON.

Cells hold letters, digits, spaces and hyphens alone (`table_columns.py`), so that no format has to quote or escape.
"""

from __future__ import annotations

import json
from typing import Literal, NamedTuple

from datamodules.tasks.table_columns import Table

Format = Literal["markdown", "csv", "json"]
FORMATS: tuple[Format, ...] = ("markdown", "csv", "json")


class Frame(NamedTuple):
    """What stands around the cells of a table: `before[0]` cell `before[1]` cell … `after` is a row."""

    head: str
    before: tuple[str, ...]  # one a column
    after: str
    between: str  # rows
    tail: str


class Rendered(NamedTuple):
    """A table's text in pieces, so that rows can be left out at its end."""

    head: str
    rows: list[str]
    between: str
    tail: str

    @property
    def text(self) -> str:
        """The whole table."""
        return self.head + self.between.join(self.rows) + self.tail


def render(table: Table, format: Format) -> Rendered:  # noqa: A002  (the field's word)
    """The text of a table.

        >>> print(render(table, "markdown").text)
        | id | price | status |
        |---|---|---|
        | K1 | 30 | open |
        | K2 | 7 | closed |
        | K3 | 30 | open |
        >>> print(render(table, "csv").text)
        id,price,status
        K1,30,open
        K2,7,closed
        K3,30,open
        >>> print(render(table, "json").text)
        [
        {"id": "K1", "price": 30, "status": "open"},
        {"id": "K2", "price": 7, "status": "closed"},
        {"id": "K3", "price": 30, "status": "open"}
        ]

    Cost: O(cells).
    """
    around = frame(table, format)
    row = "".join(f"{before.replace('%', '%%')}%s" for before in around.before) + around.after
    cells = zip(*(column.cells for column in table.columns), strict=True)
    return Rendered(around.head, list(map(row.__mod__, cells)), around.between, around.tail)


def frame(table: Table, format: Format) -> Frame:  # noqa: A002
    """What a format puts around the cells of this table; depends on names and kinds of its columns alone."""
    names = [column.name for column in table.columns]
    if format == "markdown":
        head = f"| {' | '.join(names)} |\n{'|---' * len(names)}|\n"
        return Frame(head, ("| ", *[" | "] * (len(names) - 1)), " |", "\n", "")
    if format == "csv":
        return Frame(",".join(names) + "\n", ("", *[","] * (len(names) - 1)), "", "\n", "")
    quotes = ["" if column.kind == "number" else '"' for column in table.columns]
    opened = [f"{json.dumps(name)}: {quote}" for name, quote in zip(names, quotes, strict=True)]
    later = [f"{quote}, {begun}" for quote, begun in zip(quotes, opened[1:], strict=False)]
    return Frame("[\n", ("{" + opened[0], *later), quotes[-1] + "}", ",\n", "\n]")
