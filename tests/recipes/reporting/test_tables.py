import csv
import json
import os

import numpy as np
import pytest

from lightning_modules.evaluation.scoring import NeedleResult
from recipes.reporting.tables import VariantScores, comparison_table, format_perplexity, read_scores, write_scores

NEEDLES = NeedleResult(
    (512, 4096), (0.0, 1.0), np.array([[1.0, 0.5], [0.1, 1 / 3]]), np.array([[0.1, 0.2], [3.0, 4.0]])
)
VARIANTS = [
    VariantScores("base", {512: 40.125, 4096: 1234.5}, NEEDLES),
    VariantScores("base, RoPE changed | untrained", {4096: 9.5}),
]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.replace(r"\|", "/").strip("|").split("|")]


def test_table_has_a_row_a_variant_and_a_column_a_length():
    header, rule, *rows = comparison_table(VARIANTS).splitlines()
    assert cells(header) == ["model", "ppl 512", "ppl 4096", "needle 512", "needle 4096"]
    assert all(set(cell) <= set(":-") for cell in cells(rule))
    assert [cells(row) for row in rows] == [
        ["base", "40.12", "1234", "0.75", "0.22"],
        ["base, RoPE changed / untrained", "-", "9.500", "-", "-"],
    ]


def test_table_lines_are_equally_wide_for_plain_text():
    lines = comparison_table(VARIANTS).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_perplexity_keeps_its_digits_at_every_size():
    assert [format_perplexity(x) for x in (8.2134, 21.3, 431.27, 1034.4, 2.1e7, None)] == [
        "8.213",
        "21.30",
        "431.3",
        "1034",
        "2.1e+07",
        "-",
    ]


def test_scores_come_back_to_the_last_bit(tmp_path):
    write_scores(VARIANTS, json_path=tmp_path / "a" / "scores.json", csv_path=tmp_path / "scores.csv")
    first, second = read_scores(tmp_path / "a" / "scores.json")
    assert (first.name, first.perplexity) == (VARIANTS[0].name, VARIANTS[0].perplexity)
    assert first.needles is not None
    assert first.needles[:2] == NEEDLES[:2]
    np.testing.assert_array_equal(first.needles.recall, NEEDLES.recall)
    np.testing.assert_array_equal(first.needles.answer_nll, NEEDLES.answer_nll)
    assert second == VARIANTS[1]
    assert comparison_table([first, second]) == comparison_table(VARIANTS)


def test_csv_has_one_measurement_a_line(tmp_path):
    write_scores(VARIANTS, json_path=tmp_path / "scores.json", csv_path=tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 + 4 + 4 + 1
    values = {(r["variant"], r["metric"], r["length"], r["depth"]): float(r["value"]) for r in rows}
    assert values["base", "perplexity", "4096", ""] == 1234.5
    assert values["base", "recall", "4096", "1.0"] == 1 / 3
    assert values["base", "answer_nll", "512", "1.0"] == 0.2


def test_old_scores_stay_when_writing_fails(tmp_path, monkeypatch):
    paths = {"json_path": tmp_path / "scores.json", "csv_path": tmp_path / "scores.csv"}
    write_scores(VARIANTS[:1], **paths)

    def fail(*_):
        raise OSError("disk")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk"):
        write_scores(VARIANTS, **paths)
    assert len(json.loads(paths["json_path"].read_text())["variants"]) == 1
