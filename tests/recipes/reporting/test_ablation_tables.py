import csv
import json
from dataclasses import replace

import numpy as np

from lightning_modules.evaluation.scoring import NeedleResult
from recipes.reporting.ablation_tables import CellScores, ablation_table, equality_sentence, thinned, write_ablation
from recipes.reporting.tables import VariantScores

BASE = VariantScores("base as it is", {512: 40.0, 1024: 90.0})


def cell(theta: float, trained: float, **changes) -> CellScores:
    needles = NeedleResult((512,), (0.0, 1.0), np.array([[1.0, 0.5]]), np.zeros((1, 2)))
    variants = (
        BASE,
        VariantScores("before training", {512: trained + 1, 1024: trained + 2}),
        VariantScores("after training", {512: trained, 1024: trained}, needles),
    )
    facts = {"steps": 30, "tokens": 30 * 8192, "seconds": 90.0, **changes}
    return CellScores(f"theta={theta:g}", {"theta": float(theta)}, (f"rope.rope_theta={theta:g}",), variants, **facts)


FAILED = CellScores("theta=3", {"theta": 3.0}, failure="loss of step 4 is not finite")


def rows(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    return [[entry.strip() for entry in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


def test_table_has_the_base_once_then_untrained_then_trained_cells():
    table = ablation_table([cell(1, 30.0), cell(2, 20.0), FAILED], title="mine", words=["seed=3"])
    assert rows(table) == [
        ["cell", "model", "steps", "tokens", "minutes", "ppl 512", "ppl 1024", "needle 512", "needle 1024"],
        ["-", "base as it is", "0", "0", "-", "40.00", "90.00", "-", "-"],
        ["theta=1", "before training", "0", "0", "-", "31.00", "32.00", "-", "-"],
        ["theta=2", "before training", "0", "0", "-", "21.00", "22.00", "-", "-"],
        ["theta=1", "after training", "30", "245,760", "1.5", "30.00", "30.00", "0.75", "-"],
        ["theta=2", "after training", "30", "245,760", "1.5", "20.00", "20.00", "0.75", "-"],
        ["theta=3", "failed", "-", "-", "-", "-", "-", "-", "-"],
    ]
    assert table.startswith("# mine\n\nEvery cell with `seed=3`.\n\nEvery cell trained 30 steps and 245,760 tokens.\n")
    assert table.endswith("- theta=3 failed: loss of step 4 is not finite\n")


def test_bases_that_differ_stand_each_for_itself():
    other = CellScores("a", {}, variants=(VariantScores("base as it is", {512: 41.0}), *cell(1, 30.0).variants[1:]))
    assert [row[5] for row in rows(ablation_table([cell(1, 30.0), other], title="mine"))[1:3]] == ["40.00", "41.00"]


def test_unequal_training_is_said():
    cells = [cell(1, 30.0), cell(2, 20.0), cell(3, 1.0, failure="no")]
    assert equality_sentence(cells) == "Every cell trained 30 steps and 245,760 tokens."
    assert "differ in steps (30, 60) and in tokens (245,760, 491,520)" in equality_sentence(
        [*cells, cell(4, 1.0, steps=60, tokens=60 * 8192)]
    )
    more_tokens = equality_sentence([*cells, cell(4, 1.0, tokens=60 * 8192)])
    assert more_tokens.startswith("The cells differ in tokens (245,760, 491,520): ")
    assert equality_sentence([FAILED]) == "No cell is finished."


def test_many_lengths_are_thinned_to_those_that_double():
    assert thinned([512, 1024, 1536]) == [512, 1024, 1536]
    assert thinned([512, 1024, 1536, 2048, 3072, 4096, 6144, 8192]) == [512, 1024, 2048, 4096, 8192]


def test_csv_has_one_measurement_a_line_and_json_everything(tmp_path):
    write_ablation([cell(1, 30.0), cell(2, 20.0), FAILED], tmp_path / "a", facts={"words": ["seed=3"]})
    with (tmp_path / "a" / "scores.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 + 2 * (2 + 2 + 1)
    values = {(r["theta"], r["model"], r["metric"], r["length"]): (float(r["value"]), r["tokens"]) for r in lines}
    assert values["2.0", "after training", "perplexity", "512"] == (20.0, "245760")
    assert values["2.0", "after training", "needle", "512"] == (0.75, "245760")
    assert values["1.0", "before training", "perplexity", "1024"] == (32.0, "0")
    assert values["", "base as it is", "perplexity", "1024"] == (90.0, "0")
    record = json.loads((tmp_path / "a" / "ablation.json").read_text(encoding="utf-8"))
    assert record["words"] == ["seed=3"]
    assert [(c["name"], c["places"], c["failure"]) for c in record["cells"]] == [
        ("theta=1", {"theta": 1}, None),
        ("theta=2", {"theta": 2}, None),
        ("theta=3", {"theta": 3.0}, "loss of step 4 is not finite"),
    ]
    assert record["cells"][1]["models"][2]["needles"]["recall"] == [[1.0, 0.5]]


def test_loss_and_answers_stand_where_they_were_measured() -> None:
    before, after = VariantScores("base as it is", {512: 40.0}), VariantScores("after training", {512: 30.0})
    one = CellScores("a", {}, variants=(before, replace(after, answers={512: 1.0, 1024: 0.25})), val_loss=1.23456)
    other = CellScores("b", {}, variants=(before, after), failure=None)
    table = rows(ablation_table([one, other], title="mine"))
    assert table[0][5:] == ["val loss", "ppl 512", "needle 512", "answers 512", "answers 1024"]
    assert [row[5:] for row in table[1:]] == [
        ["-", "40.00", "-", "-", "-"],
        ["1.2346", "30.00", "-", "1.00", "0.25"],
        ["-", "30.00", "-", "-", "-"],
    ]
