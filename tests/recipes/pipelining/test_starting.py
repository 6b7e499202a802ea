"""Whose scores a stage begins with: those of the export that it starts from, as long as that is what was measured."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from omegaconf import DictConfig

from recipes.compose import compose
from recipes.evaluating import BASE, TRAINED, measured
from recipes.pipelining.starting import handed_scores
from recipes.reporting.tables import VariantScores, write_scores


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run that was exported, then measured."""
    for name, second in (("config.json", 1), ("model.safetensors", 1)):
        file = tmp_path / "export" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("{}", encoding="utf-8")
        os.utime(file, (second, second))
    scores = [VariantScores(BASE, {512: 9.0}), VariantScores(TRAINED, {512: 4.0}, answers={512: 0.5})]
    write_scores(scores, json_path=tmp_path / "scores.json", csv_path=tmp_path / "scores.csv")
    os.utime(tmp_path / "scores.json", (2, 2))
    facts = {"measured": json.loads(json.dumps(measured(started_from(tmp_path))))}
    (tmp_path / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    return tmp_path


def started_from(run: Path, *more: str) -> DictConfig:
    return compose(["recipe=demo/extend", f"model.source.name_or_path={run}/export", *more]).config


def test_scores_of_the_export_are_handed_over(run: Path) -> None:
    assert handed_scores(started_from(run)) == VariantScores(BASE, {512: 4.0})


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_an_export_that_was_changed_since_is_measured_anew(run: Path, name: str) -> None:
    os.utime(run / "export" / name, (3, 3))
    assert handed_scores(started_from(run)) is None


def test_another_evaluation_or_an_unfinished_run_hands_over_nothing(run: Path) -> None:
    assert handed_scores(started_from(run, "evaluation.seed=99")) is None
    (run / "scores.json").unlink()
    assert handed_scores(started_from(run)) is None
