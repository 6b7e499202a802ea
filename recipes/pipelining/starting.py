"""Scores of what a stage starts from, without measuring again what the stage before was measured to be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lightning_modules.loading import ModelFromScratch
from lightning_modules.rope.methods import Unchanged
from recipes.ablating.starting import SharedStartingScores
from recipes.build import build_rope, build_source
from recipes.evaluating import BASE, TRAINED, Evaluation, measured
from recipes.reporting.tables import VariantScores, read_scores
from recipes.run_folder import RunFolder


class HandedScores:
    """What `starting_scores` measures, read from the run whose export a stage starts from where that holds it.

    Where RoPE stays as it is, the model with the RoPE change is the model as it is and not measured either. All else is
    measured once and kept, so that a killed evaluation does not begin anew.

    Args:
        folder: Where scores are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._measure = SharedStartingScores(folder)

    def __call__(self, config: DictConfig, evaluation: Evaluation) -> list[VariantScores]:
        """Scores of the base as it is, and with the recipe's RoPE where that is another; none from scratch."""
        if isinstance(build_source(config), ModelFromScratch):
            return []
        base = handed_scores(config) or self._measure.base(config, evaluation)
        if isinstance(build_rope(config), Unchanged):
            return [base]
        return [base, self._measure.untrained(config, evaluation)]


def handed_scores(config: DictConfig) -> VariantScores | None:
    """The scores after training of the run whose export is the base model, if measured as this configuration says."""
    export = Path(str(config.model.source.name_or_path))
    folder = export.parent
    if not (folder / "run.json").is_file() or not (folder / "scores.json").is_file():
        return None
    if _changed_since(folder / "scores.json", export):
        return None
    theirs = RunFolder(folder).info().get("measured")
    if theirs is None or _of_text(theirs) != _of_text(json.loads(json.dumps(measured(config)))):
        return None
    found = next((scores for scores in read_scores(folder / "scores.json") if scores.name == TRAINED), None)
    return None if found is None else replace(found, name=BASE, answers={})


def _changed_since(scores: Path, export: Path) -> bool:
    """Whether somebody put another model in the place of the measured one; a copy only seems to, and is measured."""
    files = (*export.glob("*.json"), *export.glob("*.safetensors"))
    return any(file.stat().st_mtime_ns > scores.stat().st_mtime_ns for file in files)


def _of_text(measure: Mapping[str, Any]) -> dict[str, Any]:
    """What perplexity and needle recall depend on, and answers do not count."""
    evaluation = {key: value for key, value in measure["evaluation"].items() if key != "answers"}
    return {**measure, "evaluation": evaluation}
