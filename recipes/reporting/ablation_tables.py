"""A grid of runs in numbers: one Markdown table to read, CSV to plot elsewhere, JSON with everything."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.reporting.tables import (
    NOT_MEASURED,
    VariantScores,
    format_perplexity,
    format_share,
    needles_to_json,
    write_whole,
)

MOST_LENGTHS = 5
"""Columns of one measure that a table holds before it leaves lengths out."""


@dataclass(frozen=True)
class CellScores:
    """One cell of a grid.

    Attributes:
        name: What stands in the table.
        places: Axis -> where the cell stands along it, a number or a name.
        words: What the cell was composed from.
        variants: What was measured, the trained model last; empty where the cell failed.
        steps: Optimizer steps.
        tokens: Tokens trained on.
        seconds: Time of training.
        val_loss: Of the run's own validation, after training; None where there is none.
        folder: Its run folder.
        failure: Why it is not there, in one sentence.
    """

    name: str
    places: Mapping[str, float | str]
    words: Sequence[str] = ()
    variants: Sequence[VariantScores] = field(default_factory=tuple)
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    val_loss: float | None = None
    folder: str | None = None
    failure: str | None = None


def ablation_table(cells: Sequence[CellScores], *, title: str, words: Sequence[str] = ()) -> str:
    """All cells before and after training, under a sentence that says whether they may be compared.

        | cell | model | steps | tokens | minutes | val loss | ppl 512 | … | needle 512 | … | answers 512 | … |

    The base model stands first, once for each way that it was measured; then every cell before training, then every
    cell after it. Where more lengths were measured than fit, those stay that at least double.
    """
    rows = [row for group in _groups(cells) for row in group]
    scores = [variant for _, variant in rows if variant is not None]
    lengths = thinned(sorted({length for variant in scores for length in (*variant.perplexity, *_recall(variant))}))
    asked = thinned(sorted({length for variant in scores for length in variant.answers}))
    with_loss = any(cell.val_loss is not None for cell in cells)
    header = ["cell", "model", "steps", "tokens", "minutes", *(["val loss"] if with_loss else [])]
    header += [*(f"ppl {length}" for length in lengths), *(f"needle {length}" for length in lengths)]
    header += [f"answers {length}" for length in asked]
    body = [_row(cell, variant, lengths, asked, with_loss=with_loss) for cell, variant in rows]
    given = [f"Every cell with {', '.join(f'`{word}`' for word in words)}.", ""] if words else []
    parts = [f"# {title}", "", *given, equality_sentence(cells), "", markdown(header, body, names=2).rstrip()]
    parts += ["", "Perplexity (ppl) of the same tail tokens, and needle recall, by context length."] if scores else []
    failures = [f"- {cell.name} failed: {cell.failure}" for cell in cells if cell.failure is not None]
    return "\n".join([*parts, *(["", *failures] if failures else [])]) + "\n"


def equality_sentence(cells: Sequence[CellScores]) -> str:
    """Whether the cells trained equally long, in steps and in tokens: a difference would be part of what is seen."""
    trained = [cell for cell in cells if cell.failure is None]
    if not trained:
        return "No cell is finished."
    steps, tokens = sorted({cell.steps for cell in trained}), sorted({cell.tokens for cell in trained})
    if len(steps) == len(tokens) == 1:
        return f"Every cell trained {steps[0]:,} steps and {tokens[0]:,} tokens."
    unequal = [
        f"{name} ({', '.join(f'{count:,}' for count in counts)})"
        for name, counts in (("steps", steps), ("tokens", tokens))
        if len(counts) > 1
    ]
    return f"The cells differ in {' and in '.join(unequal)}: part of what is seen may come from that."


def thinned(lengths: Sequence[int]) -> list[int]:
    """The lengths, or where they are many, the first and each that is at least twice the one before."""
    if len(lengths) <= MOST_LENGTHS:
        return list(lengths)
    kept = [lengths[0]]
    for length in lengths[1:]:
        if length >= 2 * kept[-1]:
            kept.append(length)
    return kept


def write_ablation(cells: Sequence[CellScores], folder: Path, *, facts: Mapping[str, Any]) -> None:
    """Write `scores.csv`, one measurement a line, and `ablation.json`, everything; each whole or not at all.

    The CSV's columns are cell, one for each axis, model, steps, tokens, seconds, metric (`perplexity`, `needle`,
    `answers`), length and value; steps, tokens and seconds are 0 for models that were not trained.
    """
    records = [
        {
            "name": cell.name,
            "places": dict(cell.places),
            "words": list(cell.words),
            "folder": cell.folder,
            "failure": cell.failure,
            "steps": cell.steps,
            "tokens": cell.tokens,
            "seconds": cell.seconds,
            "val_loss": cell.val_loss,
            "models": [
                {
                    "name": variant.name,
                    "perplexity": {str(length): value for length, value in variant.perplexity.items()},
                    "needles": needles_to_json(variant.needles) if variant.needles else None,
                    "answers": {str(length): value for length, value in variant.answers.items()},
                }
                for variant in cell.variants
            ],
        }
        for cell in cells
    ]
    text = json.dumps({**facts, "cells": records}, indent=2, ensure_ascii=False)
    write_whole(folder / "ablation.json", text + "\n")
    axes = list(dict.fromkeys(axis for cell in cells for axis in cell.places if axis != "cell"))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["cell", *axes, "model", "steps", "tokens", "seconds", "metric", "length", "value"])
    for group in _groups(cells):
        for cell, variant in group:
            if variant is None:
                continue
            trained = variant is cell.variants[-1]
            start = [cell.name, *(cell.places.get(axis, "") for axis in axes), variant.name]
            if not trained and variant is cell.variants[0]:  # the base, which stands at no place of the grid
                start = ["", *("" for _ in axes), variant.name]
            start += [cell.steps, cell.tokens, cell.seconds] if trained else [0, 0, 0]
            measures = {"perplexity": variant.perplexity, "needle": _recall(variant), "answers": variant.answers}
            for metric, values in measures.items():
                writer.writerows([*start, metric, length, value] for length, value in sorted(values.items()))
    write_whole(folder / "scores.csv", table.getvalue())


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], *, names: int) -> str:
    """A padded Markdown table whose first `names` columns are left-aligned, the others right-aligned."""
    rows = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if k < names else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = [f":{'-' * (width + 1)}" if k < names else f"{'-' * (width + 1)}:" for k, width in enumerate(widths)]
    return "\n".join([line(header), f"|{'|'.join(rule)}|", *map(line, rows)]) + "\n"


Rows = list[tuple[CellScores, VariantScores | None]]


def _groups(cells: Sequence[CellScores]) -> tuple[Rows, Rows, Rows]:
    """Rows of base models, of untrained cells, of trained cells; equal base scores stand once."""
    bases: Rows = []
    untrained: Rows = []
    trained: Rows = []
    for cell in cells:
        if not cell.variants:
            trained.append((cell, None))
            continue
        *before, after = cell.variants
        trained.append((cell, after))
        for place, variant in enumerate(before):
            if place > 0:
                untrained.append((cell, variant))
            elif not any(known is not None and known.perplexity == variant.perplexity for _, known in bases):
                bases.append((cell, variant))
    return bases, untrained, trained


def _row(
    cell: CellScores, variant: VariantScores | None, lengths: Sequence[int], asked: Sequence[int], *, with_loss: bool
) -> list[str]:
    if variant is None:
        return [cell.name, "failed", *([NOT_MEASURED] * (3 + with_loss + 2 * len(lengths) + len(asked)))]
    recall = _recall(variant)
    numbers = [
        *(format_perplexity(variant.perplexity.get(length)) for length in lengths),
        *(format_share(recall.get(length)) for length in lengths),
        *(format_share(variant.answers.get(length)) for length in asked),
    ]
    if variant is cell.variants[-1]:
        loss = NOT_MEASURED if cell.val_loss is None else f"{cell.val_loss:.4f}"
        trained = [f"{cell.steps:,}", f"{cell.tokens:,}", f"{cell.seconds / 60:.1f}", *([loss] if with_loss else [])]
        return [cell.name, variant.name, *trained, *numbers]
    name = NOT_MEASURED if variant is cell.variants[0] else cell.name
    return [name, variant.name, "0", "0", NOT_MEASURED, *([NOT_MEASURED] if with_loss else []), *numbers]


def _recall(variant: VariantScores) -> dict[int, float]:
    return variant.needles.mean_recall() if variant.needles else {}
