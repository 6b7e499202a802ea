"""The comments of a YAML file, by line: YAML's own readers drop them.

A comment begins where the last token of its line has ended, so a # inside a quoted text is none.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import yaml

from recipes.provenance.grammar import begins_with_kind

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Comments:
    """What stands behind and above the lines of a file.

    Args:
        text: The whole file.
    """

    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()
        self._ends, self._inside = _extents(text)

    def behind(self, line: int) -> str:
        """The comment at the end of a line that also holds something else; empty if there is none."""
        if line in self._inside or line not in self._ends:
            return ""
        rest = self._lines[line][self._ends[line] :].lstrip("0123456789+-").strip()  # a block text's indicators
        return rest[1:].strip() if rest.startswith("#") else ""

    def above(self, line: int) -> list[str]:
        """Provenances of the comment lines directly above a line, each joined; comments of other kinds are prose."""
        block: list[str] = []
        while line > 0 and line - 1 not in self._inside and self._lines[line - 1].lstrip().startswith("#"):
            line -= 1
            block.insert(0, self._lines[line].lstrip()[1:].strip())
        starts = [number for number, comment in enumerate(block) if begins_with_kind(comment)]
        return [" ".join(block[a:b]) for a, b in pairwise([*starts, len(block)])]


def last_line(start: Any, end: Any) -> int:
    """The line on which what lies between two marks ends; a block text's end mark stands where the next line begins."""
    return end.line - (end.column == 0 and end.line > start.line)


def _extents(text: str) -> tuple[dict[int, int], set[int]]:
    """The column where the last token of each line ends, and the lines that lie inside a text of several lines."""
    ends: dict[int, int] = {}
    inside: set[int] = set()
    for token in yaml.scan(text, Loader=_Loader):
        start, end = token.start_mark, token.end_mark
        last = last_line(start, end)
        if getattr(token, "style", None) in ("|", ">"):
            ends[start.line] = start.column + 1
            inside |= {*range(start.line + 1, last + 1)}
        elif (start.line, start.column) != (end.line, end.column):
            inside |= {*range(start.line, last)}
            ends[last] = max(ends.get(last, 0), end.column)
    return ends, inside
