"""Before and after in numbers: one Markdown table to read, JSON to load again, CSV to plot elsewhere."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lightning_modules.evaluation.scoring import NeedleResult

NOT_MEASURED = "-"


@dataclass(frozen=True)
class VariantScores:
    """What was measured on one model: the base as it is, the base with the RoPE change untrained, after training.

    Attributes:
        name: What stands in the table.
        perplexity: Context length in tokens -> perplexity; empty if not measured.
        needles: Needle recall; None if not measured.
        answers: Context length in tokens -> share of right answers over all tasks; empty if nothing was asked.
    """

    name: str
    perplexity: dict[int, float] = field(default_factory=dict)
    needles: NeedleResult | None = None
    answers: dict[int, float] = field(default_factory=dict)


def comparison_table(variants: Sequence[VariantScores]) -> str:
    """Variants as rows; perplexity, needle recall (mean over depths) and right answers, by context length, as columns.

        | model | ppl 512 | ppl 1024 | needle 512 | needle 1024 |
        |:------|--------:|---------:|-----------:|------------:|

    Cells that were not measured show a dash. The columns are padded, so that it reads as plain text too.
    """
    recalls = [variant.needles.mean_recall() if variant.needles else {} for variant in variants]
    perplexity_lengths = sorted({length for variant in variants for length in variant.perplexity})
    needle_lengths = sorted({length for recall in recalls for length in recall})
    answer_lengths = sorted({length for variant in variants for length in variant.answers})
    header = ["model", *(f"ppl {length}" for length in perplexity_lengths), *(f"needle {n}" for n in needle_lengths)]
    header += [f"answers {length}" for length in answer_lengths]
    rows = [
        [
            variant.name.replace("|", r"\|"),
            *(format_perplexity(variant.perplexity.get(length)) for length in perplexity_lengths),
            *(format_share(recall.get(length)) for length in needle_lengths),
            *(format_share(variant.answers.get(length)) for length in answer_lengths),
        ]
        for variant, recall in zip(variants, recalls, strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    lines = [
        join_cells(header, widths),
        "|:" + "|".join([rule[0] + "-", *(dashes + "-:" for dashes in rule[1:])]) + "|",
    ]
    return "\n".join([*lines, *(join_cells(row, widths) for row in rows)]) + "\n"


def join_cells(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, *numbers = cells
    padded = [name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))]
    return "| " + " | ".join(padded) + " |"


def format_share(value: float | None) -> str:
    """Two decimals, or the dash of what was not measured."""
    return NOT_MEASURED if value is None else f"{value:.2f}"


def format_perplexity(value: float | None) -> str:
    """Three or four digits, whatever the size: 8.213, 21.30, 1034, 2.1e+07."""
    if value is None:
        return NOT_MEASURED
    if value >= 1e6:
        return f"{value:.1e}"
    return f"{value:.{3 if value < 10 else 2 if value < 100 else 1 if value < 1000 else 0}f}"


def write_scores(
    variants: Sequence[VariantScores], *, json_path: str | os.PathLike[str], csv_path: str | os.PathLike[str]
) -> None:
    """Write the scores twice: JSON, which `read_scores` reads, and CSV with one measurement a line.

    The CSV's columns are variant, metric (`perplexity`, `answers`, `recall`, `answer_nll`), length, depth (empty for
    the first two) and value. Each file appears whole or not at all.
    """
    records = [
        {
            "name": variant.name,
            "perplexity": {str(length): value for length, value in variant.perplexity.items()},
            "needles": needles_to_json(variant.needles) if variant.needles else None,
            "answers": {str(length): value for length, value in variant.answers.items()},
        }
        for variant in variants
    ]
    write_whole(Path(json_path), json.dumps({"variants": records}, indent=2, ensure_ascii=False) + "\n")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["variant", "metric", "length", "depth", "value"])
    for variant in variants:
        writer.writerows([variant.name, "perplexity", n, "", value] for n, value in sorted(variant.perplexity.items()))
        writer.writerows([variant.name, "answers", n, "", value] for n, value in sorted(variant.answers.items()))
        if needles := variant.needles:
            for row, column in np.ndindex(needles.recall.shape):
                cell = (needles.lengths[row], needles.depths[column])
                writer.writerow([variant.name, "recall", *cell, float(needles.recall[row, column])])
                writer.writerow([variant.name, "answer_nll", *cell, float(needles.answer_nll[row, column])])
    write_whole(Path(csv_path), table.getvalue())


def read_scores(json_path: str | os.PathLike[str]) -> list[VariantScores]:
    """The scores that `write_scores` wrote, to the last bit."""
    records = json.loads(Path(json_path).read_text(encoding="utf-8"))["variants"]
    return [
        VariantScores(
            name=record["name"],
            perplexity={int(length): value for length, value in record["perplexity"].items()},
            needles=needles_from_json(record["needles"]) if record["needles"] else None,
            answers={int(length): value for length, value in record.get("answers", {}).items()},
        )
        for record in records
    ]


def needles_to_json(needles: NeedleResult) -> dict[str, list]:
    return {
        "lengths": list(needles.lengths),
        "depths": list(needles.depths),
        "recall": needles.recall.tolist(),
        "answer_nll": needles.answer_nll.tolist(),
    }


def needles_from_json(record: dict[str, list]) -> NeedleResult:
    return NeedleResult(
        tuple(record["lengths"]), tuple(record["depths"]), np.array(record["recall"]), np.array(record["answer_nll"])
    )


def write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)  # noqa: PTH105  (atomic where the temporary file lies beside it)
