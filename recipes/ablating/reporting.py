"""From the cells of a grid to one table and the pictures that the ablation asks for."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from recipes.ablating.faults import CELL, LENGTH
from recipes.ablating.grid import Ablation, Cell, Picture, Place
from recipes.ablating.running import REPORT, Outcome, root
from recipes.compose import Composed
from recipes.evaluating import BASE, TRAINED, UNTRAINED
from recipes.reporting.ablation_figures import Axis, Mark, Panels, plot_grid_lines, plot_grid_maps
from recipes.reporting.ablation_tables import CellScores, ablation_table, write_ablation
from recipes.reporting.tables import VariantScores, read_scores, write_whole
from recipes.run_folder import RunFolder

BEFORE = "before training"
"""What `UNTRAINED` is called here: with the cell's RoPE, which in some cells is the base model's own."""

VALUES = {"perplexity": "perplexity", "needle": "needle recall", "answers": "share of right answers"}


class Point(NamedTuple):
    """One measurement of one cell."""

    model: str
    places: Mapping[str, Place]  # every dimension: the axes, cell and length
    value: float


def report_ablation(
    ablation: Ablation, composed: Mapping[str, Composed], outcomes: Mapping[str, Outcome]
) -> tuple[str, list[Path]]:
    """Write the table, the numbers and the pictures of a grid.

    Returns:
        The table, and the files that were written.
    """
    folder = root(next(iter(composed.values())).config, ablation) / REPORT
    cells = [cell_scores(cell, outcomes[cell.name]) for cell in ablation.cells]
    table = ablation_table(cells, title=f"ablation={ablation.name}", words=ablation.words)
    write_whole(folder / "table.md", table)
    write_ablation(cells, folder, facts={"ablation": ablation.name, "words": list(ablation.words)})
    files = [folder / "table.md", folder / "scores.csv", folder / "ablation.json"]
    if any(cell.variants for cell in cells):
        files += [draw(picture, ablation, cells, folder) for picture in ablation.pictures]
    return table, files


def cell_scores(cell: Cell, outcome: Outcome) -> CellScores:
    """What a cell's run folder holds, or why there is none."""
    if outcome.folder is None:
        return CellScores(cell.title, cell.places, cell.words, failure=outcome.failure)
    info = RunFolder(outcome.folder).info()
    return CellScores(
        cell.title,
        cell.places,
        cell.words,
        variants=[
            replace(variant, name=BEFORE) if variant.name == UNTRAINED else variant
            for variant in read_scores(outcome.folder / "scores.json")
        ],
        steps=info["steps"],
        tokens=RunFolder(outcome.folder).tokens,
        seconds=info["seconds"],
        val_loss=json.loads((outcome.folder / "metrics.json").read_text(encoding="utf-8")).get("val_loss"),
        folder=str(outcome.folder),
    )


def draw(picture: Picture, ablation: Ablation, cells: Sequence[CellScores], folder: Path) -> Path:
    """One picture of a grid."""
    points = list(_points(cells, picture.metric))
    panels = _panels(picture, ablation, points)
    x, other = _axis(picture.x), _axis(picture.other)
    common: dict[str, Any] = {
        "value": VALUES[picture.metric],
        "is_share": picture.metric in ("needle", "answers"),
        "marks": [Mark(m.name, m.places.get(picture.x), m.places.get(picture.other)) for m in ablation.marks],
        "path": folder / f"{picture.name}.png",
    }
    if picture.kind == "heat_map":
        return plot_grid_maps(panels, x=x, y=other, **common)
    return plot_grid_lines(panels, x=x, series=other, reference=_reference(picture, points), **common)


def _axis(dimension: str) -> Axis:
    return Axis("context length (tokens)", is_length=True) if dimension == LENGTH else Axis(dimension)


def _points(cells: Sequence[CellScores], metric: str) -> Iterator[Point]:
    for cell in cells:
        for variant in cell.variants:
            for length, value in _measures(variant, metric).items():
                yield Point(variant.name, {**cell.places, CELL: cell.name, LENGTH: float(length)}, value)


def _measures(variant: VariantScores, metric: str) -> Mapping[int, float]:
    if metric == "perplexity":
        return variant.perplexity
    if metric == "answers":
        return variant.answers
    return variant.needles.mean_recall() if variant.needles else {}


def _panels(picture: Picture, ablation: Ablation, points: Sequence[Point]) -> Panels:
    """A panel for each model, and each place along the dimensions that the picture does not name."""
    named = {picture.x, picture.other}
    spread = [] if CELL in named else [axis for axis in ablation.axes if axis not in named]
    spread += [LENGTH] if LENGTH not in named else []
    choices = [list(dict.fromkeys(point.places[key] for point in points)) for key in spread]
    panels: dict[str, dict[Place, dict[Place, float]]] = {}
    for model, places in itertools.product(_models(points), itertools.product(*choices)):
        where = dict(zip(spread, places, strict=True))
        title = ", ".join([model, *(f"{key}={_axis(key).said(place)}" for key, place in where.items())])
        for point in points:
            if point.model == model and all(point.places[key] == place for key, place in where.items()):
                series = panels.setdefault(title, {}).setdefault(point.places[picture.other], {})
                series[point.places[picture.x]] = point.value
    return panels


def _models(points: Sequence[Point]) -> list[str]:
    """The trained models, and the untrained ones where the cells have different ones."""
    return [BEFORE, TRAINED] if len(_curves(points, BEFORE)) > 1 else [TRAINED]


def _curves(points: Sequence[Point], model: str) -> set[tuple[tuple[Place, float], ...]]:
    """The different curves of value over length that the cells have for one model."""
    by_cell: dict[Place, list[tuple[Place, float]]] = {}
    for point in points:
        if point.model == model:
            by_cell.setdefault(point.places[CELL], []).append((point.places[LENGTH], point.value))
    return {tuple(curve) for curve in by_cell.values()}


def _reference(picture: Picture, points: Sequence[Point]) -> tuple[str, dict[Place, float]] | None:
    """The base model over length, where that is what the picture shows and all cells have the same one."""
    curves = _curves(points, BASE)
    if picture.x != LENGTH or len(curves) != 1:
        return None
    return BASE, dict(curves.pop())
