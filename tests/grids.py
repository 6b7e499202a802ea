"""Wide grids of one claim: enough of their cells run every time that each value is tried, the others are slow."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import pytest


def covering(cells: Iterable[tuple[Hashable, ...]]) -> list[Any]:
    """Parameters of which so many stay quick that every value of every place is in one of them.

        (a, x) (a, y) (b, x) (b, y)   ->   (a, x) and (b, y) are quick

    Args:
        cells: The grid's, of values that can be written as names.
    """
    rest = list(cells)
    left = {place for cell in rest for place in enumerate(cell)}
    quick: set[tuple[Hashable, ...]] = set()
    while left:
        cell = max(rest, key=lambda one: len(left.intersection(enumerate(one))))
        quick.add(cell)
        left.difference_update(enumerate(cell))
    return quick_where(rest, lambda *cell: cell in quick)


def quick_where(cells: Iterable[tuple[Any, ...]], is_quick: Callable[..., bool]) -> list[Any]:
    """Parameters that are slow but for some.

    Args:
        cells: The grid's, of values that can be written as names.
        is_quick: Takes a cell's values.
    """
    return [
        pytest.param(*cell, id="-".join(map(str, cell)), marks=() if is_quick(*cell) else pytest.mark.slow)
        for cell in cells
    ]
