"""A table for a terminal: columns as wide as they must be, cells wrapped or shortened where the whole is too wide."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from itertools import zip_longest

GAP = "  "
_PIECE = re.compile(r"[^\s-]+-?")
"""What a line is not broken within."""
SHORTEST = 11
"""Characters that a shortened cell keeps at least."""


def columns(
    rows: Sequence[Sequence[str]], *, width: int, wrap: bool, prose: Sequence[str] = (), notes: Sequence[str] = ()
) -> list[str]:
    """The lines of a table.

    Args:
        rows: Cells, of as many columns in every row; the first row is the head.
        width: Characters of a line; only a table without anything to wrap or shorten exceeds it.
        wrap: Let long cells go on in a further line; otherwise a row is one line, and long cells end in an ellipsis.
        prose: Heads of the columns that may be shortened; all but the first column may be wrapped.
        notes: What stands below each row but the head, across the columns; nothing where it is empty.
    """
    widths = _widths(rows, width=width, wrap=wrap, prose=prose)
    head, *body = [_lines(row, widths, wrap=wrap) for row in rows]
    lines = [*head, GAP.join("-" * width for width in widths)]
    for row, note in zip_longest(body, notes, fillvalue=""):
        lines += [*row, *textwrap.wrap(note, width, initial_indent=GAP * 2, subsequent_indent=GAP * 3)]
    return lines


def _widths(rows: Sequence[Sequence[str]], *, width: int, wrap: bool, prose: Sequence[str]) -> list[int]:
    """Natural widths, with one character after the other taken where there is any to give, from prose first."""
    cells, heads = [*zip(*rows, strict=True)], rows[0]
    widths = [max(map(len, column)) for column in cells]
    if wrap:
        least = [max((len(word) for cell in column for word in _PIECE.findall(cell)), default=0) for column in cells]
        least[0] = widths[0]
    else:
        least = [min(w, SHORTEST) if head in prose else w for w, head in zip(widths, heads, strict=True)]
    while sum(widths) + len(GAP) * (len(widths) - 1) > width and widths != least:
        widest = max(range(len(widths)), key=lambda k: (widths[k] > least[k], heads[k] in prose, widths[k]))
        widths[widest] -= 1
    return widths


def _lines(row: Sequence[str], widths: Sequence[int], *, wrap: bool) -> list[str]:
    cells = [_cell(cell, width, wrap=wrap) for cell, width in zip(row, widths, strict=True)]
    return [
        GAP.join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()
        for parts in zip_longest(*cells, fillvalue="")
    ]


def _cell(text: str, width: int, *, wrap: bool) -> list[str]:
    if wrap:
        return textwrap.wrap(text, width) or [""]
    return [text if len(text) <= width else f"{text[: width - 1].rstrip()}…"]
