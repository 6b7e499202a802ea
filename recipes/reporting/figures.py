"""The two pictures of a context extension: perplexity by context length, and the needle map."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_modules.evaluation.scoring import NeedleResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISS_TO_HIT = ("#F0496E", "#EBB839", "#0CD79F")
"""Red, amber, green of G. Kamradt's needle map, which OpenCompass uses as well."""

LINES = ("#8A8F98", "#E0913A", "#1F77B4", "#2AA876", "#A0559B", "#C44E52")
"""Grey first: the first variant is the one that the others are measured against."""

INK, FAINT = "#2B2F36", "#D5D8DD"


def plot_perplexity(
    series: Mapping[str, Mapping[int, float]], *, trained_length: int, path: str | os.PathLike[str]
) -> Path:
    """One line a model variant, over context length (log2), with a dashed line at the original context length.

    Args:
        series: Variant -> context length in tokens -> perplexity.
        trained_length: Context length that the base model was trained for.
        path: Where the picture goes; the suffix is the format.
    """
    figure = new_figure(7.2, 4.2)
    axes = figure.add_subplot()
    lengths = sorted({length for points in series.values() for length in points} | {trained_length})
    values = [value for points in series.values() for value in points.values()]
    axes.set_xscale("log", base=2)
    # A model outside its context length may be worse by orders of magnitude, which would flatten every other line.
    if max(values) > 8 * min(values):
        axes.set_yscale("log", base=2 if max(values) < 100 * min(values) else 10)
    for place, (name, points) in enumerate(series.items()):
        x = sorted(points)
        color = LINES[place % len(LINES)]
        axes.plot(x, [points[length] for length in x], "o-", color=color, label=name, linewidth=2, markersize=5)
    axes.axvline(trained_length, color=INK, linestyle="--", linewidth=1)
    axes.annotate(
        f"original context, {short_length(trained_length)}",
        xy=(trained_length, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=9,
        color=INK,
    )
    axes.set_xticks(lengths, [short_length(length) for length in lengths])
    axes.minorticks_off()
    show_plain_numbers(axes.yaxis, min(values), max(values))
    axes.set_xlabel("context length (tokens)")
    axes.set_ylabel("perplexity of the same tail tokens")
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")
    return save(figure, path)


def plot_needles(results: Mapping[str, NeedleResult], *, original_length: int, path: str | os.PathLike[str]) -> Path:
    """Needle maps side by side: context length by depth (0 at the top), with the mean of each length beneath.

    Args:
        results: Variant -> its needle recall; all over the same lengths and depths.
        original_length: Context length that the base model was trained for; drawn between the columns.
        path: Where the picture goes; the suffix is the format.
    """
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("needle", MISS_TO_HIT)
    widest, tallest = max(len(r.lengths) for r in results.values()), max(len(r.depths) for r in results.values())
    panel = max(2.6, 0.55 * widest)
    figure = new_figure(0.9 + (panel + 0.25) * len(results), 1.6 + 0.36 * (tallest + 1))
    grid = figure.add_gridspec(2, len(results), height_ratios=(tallest, 1), hspace=0.04, wspace=0.06)
    for place, (name, result) in enumerate(results.items()):
        maps = figure.add_subplot(grid[0, place])
        means = figure.add_subplot(grid[1, place])
        draw_cells(maps, result.recall.T, colors)
        draw_cells(means, result.recall.mean(1)[None], colors)
        maps.set_title(fill(name, round(13 * panel)), fontsize=10.5, pad=8, color=INK)
        maps.set_xticks([])
        means.set_xticks(range(len(result.lengths)), [short_length(length) for length in result.lengths])
        means.set_xlabel("context length (tokens)")
        trained = sum(length <= original_length for length in result.lengths)
        if 0 < trained < len(result.lengths):
            for axes in (maps, means):
                axes.axvline(trained - 0.5, color=INK, linestyle="--", linewidth=1.4)
        maps.set_yticks(range(len(result.depths)), [f"{depth:g}" for depth in result.depths] if not place else [])
        means.set_yticks([0], ["mean"] if not place else [""])
        if not place:
            maps.set_ylabel("depth of the needle")
    return save(figure, path)


def draw_cells(axes: Any, recall: np.ndarray, colors: Any) -> None:
    """Recall [rows, columns] as coloured cells with the number in each."""
    axes.imshow(recall, cmap=colors, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    rows, columns = recall.shape
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    for row, column in np.ndindex(rows, columns):
        axes.text(column, row, f"{recall[row, column]:.2f}", ha="center", va="center", fontsize=8, color=INK)


def show_plain_numbers(axis: Any, low: float, high: float) -> None:
    """Labels such as 12.5 instead of 1.25e1 or 2^4, also on a log axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if high > 100 * low:
        axis.set_major_locator(LogLocator(base=10, subs=(1, 3)))


def short_length(length: int) -> str:
    """512, 1K, 1.5K, 32K: tokens as papers write them."""
    return f"{length / 1024:g}K" if length >= 1024 and length % 256 == 0 else str(length)


def new_figure(width: float, height: float) -> Figure:
    """A figure of its own, without pyplot: no global state, no window system (inches)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write the picture whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    figure.savefig(partial, dpi=160, facecolor="white")
    partial.replace(path)
    return path
