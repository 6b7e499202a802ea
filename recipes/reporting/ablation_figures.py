"""Pictures of a grid of runs: lines along one dimension, or a map over two, a panel for each model that was measured.

The colours do not need red told from green: Okabe and Ito's for names, viridis for what has an order.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np

from recipes.reporting.figures import FAINT, INK, new_figure, save, short_length, show_plain_numbers
from recipes.reporting.tables import format_perplexity

NAMED = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F5F00")
MARKERS = "osD^vP*X"
REFERENCE = "#8A8F98"
OUTLINES = ("-", (0, (2, 1.2)), (0, (0.6, 0.8)))

Place = float | str
Panels = Mapping[str, Mapping[Place, Mapping[Place, float]]]
"""Title -> series, or y of a map -> x -> value. A value that is not there leaves a gap."""


class Axis(NamedTuple):
    """One dimension of a picture: what it is called, and whether its numbers are token counts."""

    label: str
    is_length: bool = False

    def said(self, place: Place) -> str:
        if isinstance(place, str):
            return place
        return short_length(int(place)) if self.is_length else f"{place:,.10g}"


class Mark(NamedTuple):
    """A place that the picture points out; None where the mark says nothing about that dimension."""

    name: str
    x: Place | None
    other: Place | None


def plot_grid_lines(
    panels: Panels,
    *,
    x: Axis,
    series: Axis,
    value: str,
    is_share: bool = False,
    reference: tuple[str, Mapping[Place, float]] | None = None,
    marks: Sequence[Mark] = (),
    path: str | os.PathLike[str],
) -> Path:
    """One line a series over x, panels side by side with one scale; numbers that at least double are on a log axis.

    Args:
        panels: What is drawn.
        x: The horizontal dimension.
        series: What tells the lines apart; in the order of a map where it is numbers.
        value: Label of the vertical axis.
        is_share: Values are shares of 1; else they may grow without end, and have a log axis where they do.
        reference: A grey line in every panel, and its name.
        marks: A dashed vertical line at `x`, and a ring around the point of the series `other`.
        path: Where the picture goes; the suffix is the format.
    """
    columns, names = _places(panels, inner=True), _places(panels, inner=False)
    if reference is not None:
        columns = _ordered([*columns, *reference[1]])
    numeric = not any(isinstance(place, str) for place in columns)
    at = {place: float(place) if numeric else float(k) for k, place in enumerate(columns)}
    values = [v for lines in panels.values() for line in lines.values() for v in line.values()]
    values += list(reference[1].values()) if reference is not None else []
    figure = new_figure(1.9 + 4.2 * len(panels), 4.3)
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    styles = dict(zip(names, _styles(names), strict=True))
    for axes, (title, lines) in zip(grid, panels.items(), strict=True):
        if reference is not None:
            points = sorted((at[place], v) for place, v in reference[1].items())
            axes.plot(*zip(*points, strict=True), "--", color=REFERENCE, linewidth=1.8, label=reference[0])
        for name, line in lines.items():
            color, marker = styles[name]
            points = sorted((at[place], v) for place, v in line.items())
            label = series.said(name)
            axes.plot(
                *zip(*points, strict=True), marker=marker, color=color, label=label, linewidth=1.8, markersize=4.5
            )
        _mark_lines(axes, marks, lines, at, numeric)
        _finish_lines(axes, columns, at, x, numeric)
        axes.set_title(fill(title, 44), fontsize=10.5, pad=20 if marks else 8, color=INK)
    _value_scale(grid[0], values, is_share)
    grid[0].set_ylabel(value)
    handles, labels = grid[0].get_legend_handles_labels()
    order = range(len(labels)) if isinstance(names[0], str) else reversed(range(len(labels)))
    pairs = [(handles[k], labels[k]) for k in order]
    figure.legend(*zip(*pairs, strict=True), loc="outside right center", frameon=False, title=series.label)
    return save(figure, path)


def plot_grid_maps(
    panels: Panels,
    *,
    x: Axis,
    y: Axis,
    value: str,
    is_share: bool = False,
    marks: Sequence[Mark] = (),
    path: str | os.PathLike[str],
) -> Path:
    """Maps side by side on one colour scale, x across and y upwards, the number in each cell; bright is good.

    Args:
        panels: What is drawn.
        x: The horizontal dimension.
        y: The vertical one, the outer key of a panel.
        value: Label of the colours.
        is_share: Values are shares of 1, of which more is good; else, as with perplexity, less is.
        marks: Cells to outline; those that are not on the map are left out.
        path: Where the picture goes; the suffix is the format.
    """
    from matplotlib.colors import LogNorm, Normalize

    columns, rows = _places(panels, inner=True), _places(panels, inner=False)
    values = [v for lines in panels.values() for line in lines.values() for v in line.values()]
    low, high = (0.0, 1.0) if is_share else (min(values), max(values))
    norm = LogNorm(low, high) if low > 0 and high > 2 * low else Normalize(low, high if high > low else low + 1)
    figure = new_figure(2.0 + (0.8 + 0.56 * len(columns)) * len(panels), 1.7 + 0.4 * len(rows))
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    image: Any = None
    for axes, (title, lines) in zip(grid, panels.items(), strict=True):
        cells = np.array([[lines.get(row, {}).get(column, np.nan) for column in columns] for row in rows])
        image = axes.imshow(
            np.ma.masked_invalid(cells),
            cmap="viridis" if is_share else "viridis_r",
            norm=norm,
            aspect="auto",
            origin="lower",
            interpolation="nearest",
        )
        axes.set_facecolor(FAINT)  # where a cell failed
        for row, column in np.ndindex(cells.shape):
            _write_number(axes, row, column, float(cells[row, column]), image, is_share)
        _outline(axes, marks, columns, rows)
        axes.set_xticks(range(len(columns)), [x.said(place) for place in columns])
        axes.set_yticks(range(len(rows)), [y.said(place) for place in rows])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(x.label)
        axes.set_title(fill(title, 44), fontsize=10.5, pad=8, color=INK)
    grid[0].set_ylabel(y.label)
    bar = figure.colorbar(image, ax=list(grid), pad=0.02, aspect=30)
    bar.set_label(value)
    bar.ax.minorticks_off()
    show_plain_numbers(bar.ax.yaxis, low, high)
    bar.outline.set_visible(False)
    bar.set_ticks(_round_numbers(low, high))
    if handles := _outline_handles(marks, columns, rows):
        figure.legend(handles=handles, loc="outside lower center", frameon=False, ncols=len(handles))
    return save(figure, path)


def _places(panels: Panels, *, inner: bool) -> list[Place]:
    """Every x (inner) or every series, numbers in their order and names in that of their first appearance."""
    if inner:
        return _ordered(place for lines in panels.values() for line in lines.values() for place in line)
    return _ordered(place for lines in panels.values() for place in lines)


def _ordered(places: Iterable[Place]) -> list[Place]:
    unique = list(dict.fromkeys(places))
    return unique if any(isinstance(place, str) for place in unique) else sorted(unique)


def _styles(names: Sequence[Place]) -> list[tuple[Any, str]]:
    """Colour and marker of each series."""
    from matplotlib import colormaps

    if any(isinstance(name, str) for name in names):
        colors: list[Any] = [NAMED[k % len(NAMED)] for k in range(len(names))]
    else:
        colors = [colormaps["viridis"](0.88 * (1 - k / max(1, len(names) - 1))) for k in range(len(names))]
    return [(color, MARKERS[k % len(MARKERS)]) for k, color in enumerate(colors)]


def _mark_lines(
    axes: Any,
    marks: Sequence[Mark],
    lines: Mapping[Place, Mapping[Place, float]],
    at: Mapping[Place, float],
    numeric: bool,
) -> None:
    for mark in marks:
        if mark.x is None or (mark.x not in at and not (numeric and isinstance(mark.x, float))):
            continue
        place = at.get(mark.x, mark.x)
        axes.axvline(place, color=INK, linestyle="--", linewidth=0.9, zorder=0)
        text = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "fontsize": 8.5, "color": INK}
        axes.annotate(mark.name, xy=(place, 1), xytext=(0, 4), ha="center", va="bottom", **text)
        if mark.other is not None and mark.x in lines.get(mark.other, {}):
            axes.plot(place, lines[mark.other][mark.x], "o", mfc="none", mec=INK, markersize=11, markeredgewidth=1.3)


def _finish_lines(axes: Any, columns: Sequence[Place], at: Mapping[Place, float], x: Axis, numeric: bool) -> None:
    if numeric and at[columns[0]] > 0 and at[columns[-1]] >= 2 * at[columns[0]]:
        axes.set_xscale("log")
    said = [x.said(place) if numeric else fill(x.said(place), 14) for place in columns]
    axes.set_xticks([at[place] for place in columns], said, fontsize=8.5)
    if _is_crowded([at[place] for place in columns], said, axes.get_xscale() == "log"):
        axes.tick_params(axis="x", labelrotation=40)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.minorticks_off()
    axes.set_xlabel(x.label)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _is_crowded(places: Sequence[float], said: Sequence[str], log: bool) -> bool:
    """Whether labels side by side would run into one another: a letter takes about 1/42 of the axis."""
    scale = np.log(places) if log else np.asarray(places)
    if len(scale) < 2:
        return False
    gaps = np.diff(scale) / (scale[-1] - scale[0])
    widths = [max(map(len, text.splitlines())) / 42 for text in said]
    return any(gap < (left + right) / 2 for gap, left, right in zip(gaps, widths, widths[1:], strict=False))


def _value_scale(axes: Any, values: Sequence[float], is_share: bool) -> None:
    """Logarithmic where a model breaks down, which would flatten all others."""
    low, high = min(values), max(values)
    if is_share:
        axes.set_ylim(-0.03, 1.03)
    elif low > 0 and high > 4 * low:
        axes.set_yscale("log")
        axes.set_yticks(_round_numbers(low, high))
    show_plain_numbers(axes.yaxis, 1, 1)
    axes.minorticks_off()


def _round_numbers(low: float, high: float) -> list[float]:
    """A few numbers between two that people read easily."""
    from matplotlib.ticker import MaxNLocator

    if low <= 0 or high <= 4 * low:
        return [tick for tick in MaxNLocator(6).tick_values(low, high) if low <= tick <= high]
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    steps = (1, 2, 3, 5) if high < 100 * low else (1, 3)
    return [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]


def _write_number(axes: Any, row: int, column: int, value: float, image: Any, is_share: bool) -> None:
    if np.isnan(value):
        return
    red, green, blue, _ = image.cmap(image.norm(value))
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.45
    text = f"{value:.2f}" if is_share else format_perplexity(value)
    axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=INK if bright else "white")


def _outline(axes: Any, marks: Sequence[Mark], columns: Sequence[Place], rows: Sequence[Place]) -> None:
    from matplotlib.patches import Rectangle

    for k, mark in enumerate(_on_map(marks, columns, rows)):
        column, row = columns.index(mark.x), rows.index(mark.other)  # type: ignore[arg-type]
        for color, width, style in (("white", 4.2, "-"), (INK, 2.0, OUTLINES[k % len(OUTLINES)])):
            box = Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False)
            box.set(edgecolor=color, linewidth=width, linestyle=style, clip_on=False, zorder=3)
            axes.add_patch(box)


def _outline_handles(marks: Sequence[Mark], columns: Sequence[Place], rows: Sequence[Place]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=INK, linewidth=2.0, linestyle=OUTLINES[k % len(OUTLINES)], label=mark.name)
        for k, mark in enumerate(_on_map(marks, columns, rows))
    ]


def _on_map(marks: Sequence[Mark], columns: Sequence[Place], rows: Sequence[Place]) -> list[Mark]:
    return [mark for mark in marks if mark.x in columns and mark.other in rows]
