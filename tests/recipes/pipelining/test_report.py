"""From the files of finished stages to one table of models and one report."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from lightning_modules.evaluation.scoring import NeedleResult
from recipes.evaluating import BASE, TRAINED
from recipes.pipelining.composing import Planned
from recipes.pipelining.pipeline import Pipeline, Stage
from recipes.pipelining.report import model_scores, pipeline_table, report_pipeline
from recipes.pipelining.running import Outcome
from recipes.reporting.answers import Shown, VariantAnswers, write_answers
from recipes.reporting.tables import VariantScores, write_scores
from recipes.run_folder import RunFolder

STAGES = (
    Stage("pretrain", "a/pretrain", None, ()),
    Stage("sft", "a/sft", "pretrain", ()),
    Stage("other", "a/other", "pretrain", ()),
)


def make_run(folder: Path, *, before: float, after: float, answers: float | None = None, text: str = "held out") -> Any:
    """A finished run whose perplexities at 512 and 1024 are a number and its double."""
    needles = NeedleResult((512, 1024), (0.0, 1.0), np.array([[1.0, 1.0], [0.0, 1.0]]), np.zeros((2, 2)))
    (folder / "export").mkdir(parents=True)
    found = [
        VariantScores(BASE, {512: before, 1024: 2 * before}),
        VariantScores(TRAINED, {512: after, 1024: 2 * after}, needles, {} if answers is None else {512: answers}),
    ]
    write_scores(found, json_path=folder / "scores.json", csv_path=folder / "scores.csv")
    if answers is not None:
        asked = [
            VariantAnswers(BASE, {"key_values": {512: 0.25}}),
            VariantAnswers(TRAINED, {"key_values": {512: answers}}),
        ]
        write_answers([Shown("key_values", 512, None, "?", "!")], asked, folder / "answers.json")
    evaluation = {"corpus": text, "perplexity": {"tail_tokens": 48}, "seed": 7, "lengths": [512, 1024]}
    facts = {"steps": 20, "tokens": 163840, "seconds": 90, "hardware": "a GPU", "measured": {"evaluation": evaluation}}
    (folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps({"val_loss": after / 2}), encoding="utf-8")
    return RunFolder(folder)


@pytest.fixture
def outcome(tmp_path: Path) -> Outcome:
    config = OmegaConf.create(
        {
            "model": {"original_context_length": 512},
            "context_length": 1024,
            "about": {"paper": "A paper", "extends": "a base model", "reported": "RULER 75.0 (Table 1)"},
        }
    )
    runs = {
        "pretrain": make_run(tmp_path / "1-pretrain", before=8.0, after=4.0),
        "sft": make_run(tmp_path / "2-sft", before=4.0, after=5.0, answers=0.75),
        "other": make_run(tmp_path / "3-other", before=4.0, after=6.0, text="another text"),
    }
    planned = {stage.name: Planned(stage, (), config, "") for stage in STAGES}
    words = {name: [f"recipe=a/{name}", "seed=1", f"run_folder={run.path}"] for name, run in runs.items()}
    return Outcome(tmp_path, planned, runs, words)


def test_every_model_stands_once_with_what_made_it_and_what_it_scored(outcome: Outcome) -> None:
    table = pipeline_table([*model_scores(outcome)])
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert header == [
        *("model", "steps", "tokens", "minutes", "val loss", "ppl 512", "ppl 1024"),
        *("needle 512", "needle 1024", "answers 512"),
    ]
    assert rows == [
        ["before pretrain", "-", "-", "-", "-", "8.000", "16.00", "-", "-", "-"],
        # What it answered is what the stage after it was told before training.
        ["after pretrain", "20", "163,840", "1.5", "2.000", "4.000", "8.000", "1.00", "0.50", "0.25"],
        ["after sft", "20", "163,840", "1.5", "2.500", "5.000", "10.00", "1.00", "0.50", "0.75"],
        ["after other", "20", "163,840", "1.5", "3.000", "6.000", "12.00", "1.00", "0.50", "-"],
    ]


def test_the_report_names_stages_files_and_what_does_not_compare(outcome: Outcome) -> None:
    pipeline = Pipeline("mine", "A paper", STAGES, (), ("seed=1", "sft.seed=2"), "auto")
    report_pipeline(pipeline, outcome)
    text = (outcome.folder / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# pipeline=mine\n\nA paper.\n\nWith `seed=1`, `sft.seed=2`.\n")
    for words in (
        "## 1. pretrain",
        "- recipe: `a/pretrain` (A paper), from a base model",
        "- recipe: `a/sft` (A paper), from the export of pretrain",
        "- context: 512 -> 1,024 tokens",
        "- reported by the paper: RULER 75.0 (Table 1)",
        "    python -m recipes.run recipe=a/sft seed=1\n",  # a run of its own, not one beside the pipeline's
        "held-out text or windows (pretrain, sft | other): their perplexities do not compare",
    ):
        assert words in text
    assert (outcome.folder / "export").resolve() == outcome.folder / "3-other" / "export"
    for picture in ("perplexity.png", "needle.png"):
        assert (outcome.folder / "figures" / picture).read_bytes().startswith(b"\x89PNG")
    with (outcome.folder / "scores.csv").open(newline="") as file:
        found = {
            (row["variant"], row["length"]): row["value"] for row in csv.DictReader(file) if row["metric"] == "answers"
        }
    assert found == {("after pretrain", "512"): "0.25", ("after sft", "512"): "0.75"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (None, "from a base model"),
        ("maker/a base model", "from a base model"),
        ("/bundled/A base", "from a base model"),
        ("/bundled/demo", "from `demo` (the paper: a base model)"),
    ],
)
def test_the_report_names_the_model_that_was_read_and_not_only_the_papers(
    outcome: Outcome, name: str | None, said: str
) -> None:
    config = outcome.planned["pretrain"].config
    config.model.source = {} if name is None else {"name_or_path": name}
    report_pipeline(Pipeline("mine", "A paper", STAGES, (), (), "auto"), outcome)
    text = (outcome.folder / "report.md").read_text(encoding="utf-8")
    assert f"- recipe: `a/pretrain` (A paper), {said}\n" in text


def test_a_stage_that_keeps_the_length_says_it_once(outcome: Outcome) -> None:
    outcome.planned["sft"].config.model.original_context_length = 1024
    report_pipeline(Pipeline("mine", "A paper", STAGES, (), (), "auto"), outcome)
    assert "- context: 1,024 tokens\n" in (outcome.folder / "report.md").read_text(encoding="utf-8")
