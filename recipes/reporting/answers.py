"""Answers before and after: a table of tasks by length, some questions with both answers, JSON and a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

from recipes.reporting.figures import FAINT, INK, LINES, new_figure, save, short_length
from recipes.reporting.tables import NOT_MEASURED, join_cells, write_whole

SHOWN_CHARACTERS = 160
"""Of a question and of an answer, as they are printed."""


class Shown(NamedTuple):
    """A question as it is printed; a text's questions are shown without the text.

    Attributes:
        task: Name of the task.
        num_tokens: Of the prompt.
        depth: Where in the text the fact begins, 0..1; None if it takes all of it.
        question: What is asked.
        expected: The right answer.
    """

    task: str
    num_tokens: int
    depth: float | None
    question: str
    expected: str


@dataclass(frozen=True)
class VariantAnswers:
    """What one model answered.

    Attributes:
        name: What stands in the table.
        accuracy: Task -> context length in tokens -> share of the questions that are answered exactly, 0..1.
        answers: What it wrote to each question that is shown; none of what writes nothing, as guessing.
    """

    name: str
    accuracy: Mapping[str, Mapping[int, float]]
    answers: Sequence[str] = field(default_factory=list)


def answers_table(variants: Sequence[VariantAnswers]) -> str:
    """Tasks and variants as rows, context lengths as columns.

    | task and model              |  512 | 4096 |
    |:----------------------------|-----:|-----:|
    | key_values, base as it is   | 0.00 | 0.00 |
    | key_values, after training  | 1.00 | 0.90 |
    """
    lengths = sorted({length for variant in variants for found in variant.accuracy.values() for length in found})
    tasks = list(dict.fromkeys(task for variant in variants for task in variant.accuracy))
    header = ["task and model", *map(str, lengths)]
    rows = []
    for task in tasks:
        for variant in variants:
            found = variant.accuracy.get(task, {})
            cells = [f"{found[length]:.2f}" if length in found else NOT_MEASURED for length in lengths]
            rows.append([f"{task}, {variant.name}", *cells])
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = "|:" + "|".join(["-" * (widths[0] + 1), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([join_cells(header, widths), rule, *(join_cells(row, widths) for row in rows)]) + "\n"


def answers_text(shown: Sequence[Shown], variants: Sequence[VariantAnswers]) -> str:
    """Some questions, the right answers, and what each variant wrote."""
    width = max(len(name) for name in ("right answer", *(variant.name for variant in variants)))
    blocks = []
    for number, question in enumerate(shown):
        place = "" if question.depth is None else f", fact at {question.depth:.0%} of the text"
        lines = [f"{question.task}, {question.num_tokens} tokens{place}: {_line(question.question)}"]
        written = {
            "right answer": question.expected,
            **{one.name: one.answers[number] for one in variants if one.answers},
        }
        lines += [f"    {name:<{width}}  {_line(text)}" for name, text in written.items()]
        blocks.append("\n".join(lines))
    return "\n".join(blocks) + "\n"


def write_answers(shown: Sequence[Shown], variants: Sequence[VariantAnswers], path: str | os.PathLike[str]) -> None:
    """All of it as JSON; the file appears whole or not at all."""
    record: dict[str, Any] = {
        "variants": [asdict(variant) for variant in variants],
        "questions": [question._asdict() for question in shown],
    }
    write_whole(Path(path), json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def read_accuracy(path: str | os.PathLike[str], *, name: str) -> dict[int, float]:
    """Context length -> share of right answers of one variant over all tasks, from what `write_answers` wrote.

    Empty where the variant was not asked.
    """
    by_length: dict[int, list[float]] = {}
    for variant in json.loads(Path(path).read_text(encoding="utf-8"))["variants"]:
        for found in variant["accuracy"].values() if variant["name"] == name else ():
            for length, share in found.items():
                by_length.setdefault(int(length), []).append(share)
    return {length: sum(shares) / len(shares) for length, shares in sorted(by_length.items())}


def plot_answers(variants: Sequence[VariantAnswers], *, trained_length: int, path: str | os.PathLike[str]) -> Path:
    """A panel a task: share of right answers over context length, a line a variant.

    Args:
        variants: Dotted where they write nothing, as guessing.
        trained_length: Context length that the base model was trained for; a dashed line.
        path: Where the picture goes; the suffix is the format.
    """
    tasks = list(dict.fromkeys(task for variant in variants for task in variant.accuracy))
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = new_figure(1.2 + 3.0 * columns, 1.0 + 2.1 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for place, axes in enumerate(grid.flat):
        if place >= len(tasks):
            axes.set_visible(False)
            continue
        task = tasks[place]
        lengths = sorted({length for variant in variants for length in variant.accuracy.get(task, ())})
        axes.set_xscale("log", base=2)
        for variant, color in zip(variants, (INK, LINES[0], *LINES[2:]), strict=False):
            found = variant.accuracy.get(task, {})
            x = sorted(found)
            style = "o-" if variant.answers else ":"
            axes.plot(x, [found[n] for n in x], style, color=color, label=variant.name, linewidth=2, markersize=5)
        axes.axvline(trained_length, color=INK, linestyle="--", linewidth=1)
        axes.set_title(task, fontsize=10, color=INK)
        axes.set_xticks(lengths, [short_length(length) for length in lengths])
        axes.minorticks_off()
        axes.set_ylim(-0.05, 1.05)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].legend(frameon=False, loc="best", fontsize=8)
    figure.supxlabel("context length (tokens)", fontsize=10)
    figure.supylabel("share of right answers", fontsize=10)
    return save(figure, path)


def _line(text: str) -> str:
    return shorten(text, SHOWN_CHARACTERS, placeholder=" …") or "(nothing)"
