"""The whole of a recipe in one process: from text to an exported and evaluated model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig
from transformers import PreTrainedModel

from lightning_modules.loading import PretrainedModel
from recipes.answering import Questions, answer_report, questions_of
from recipes.build import build_tokenizer, quiet
from recipes.evaluating import TRAINED, Evaluation, StartingScores, measured, report, starting_scores, trained_model
from recipes.exporting.run import ADAPTER_FOLDER, export_run, write_card
from recipes.reporting.answers import read_accuracy
from recipes.reporting.tables import comparison_table, read_scores
from recipes.run_folder import RunFolder, close_run, finished_run, named_run, released_on_error
from recipes.training import train_run


def run_recipe(config: DictConfig, *, starting: StartingScores = starting_scores) -> tuple[Path, str] | None:
    """Evaluate the base, train, export, evaluate the export and report.

    The scores of the trained model are those of the exported folder, loaded as a user would load it; of an adapter that
    is exported alone, those of the checkpoint with the adapter added in.

    Args:
        config: The recipe.
        starting: Gives the scores of what training started from; runs that share them need not measure them again.

    Returns:
        The run's folder, and the table of scores, with the answers before and after where questions are asked; None on
        all ranks but the first.
    """
    quiet()
    named_run(config)
    evaluation = Evaluation(config, build_tokenizer(config))  # what it lacks is said before hours of training
    questions = questions_of(config)
    run, first = train_run(config)
    if not first:
        return None
    with released_on_error():
        table = _measured(config, run, evaluation, questions, starting)
        close_run(run, status="finished")
    return run.path, table


def complete_recipe(config: DictConfig, *, starting: StartingScores = starting_scores) -> tuple[Path, str] | None:
    """`run_recipe`, or what is left of it where a run of these settings is finished: another evaluation, or an export.

    Returns:
        The run's folder and the table of scores; None on all ranks but the first.
    """
    run = finished_run(config) if config.resume == "auto" else None
    if run is None:
        return run_recipe(config, starting=starting)
    quiet()
    if not is_complete(config, run):
        evaluation = Evaluation(config, build_tokenizer(config))
        return run.path, _measured(config, run, evaluation, questions_of(config), starting)
    return run.path, comparison_table(read_scores(run.path / "scores.json"))


def is_complete(config: DictConfig, run: RunFolder) -> bool:
    """Whether a finished run is exported, and measured as this configuration says."""
    exported = any((run.path / folder / "config.json").is_file() for folder in (run.export.name, ADAPTER_FOLDER))
    same = run.info().get("measured") == json.loads(json.dumps(measured(config)))
    return exported and same and (run.path / "scores.json").is_file()


def _measured(
    config: DictConfig, run: RunFolder, evaluation: Evaluation, questions: Questions | None, starting: StartingScores
) -> str:
    """Export a trained run, measure what was exported beside what the run started from, and report; the table."""
    variants = starting(config, evaluation)
    variants.append(evaluation.scores(_exported(config, run), TRAINED))
    answers = None if questions is None else answer_report(config, run, questions)
    if answers is not None:
        file = run.path / "answers.json"
        variants = [replace(variant, answers=read_accuracy(file, name=variant.name)) for variant in variants]
    table = "\n".join(filter(None, (report(config, variants, run.path), answers)))
    write_card(config, run)
    return table


def _exported(config: DictConfig, run: RunFolder) -> PreTrainedModel:
    folder = export_run(config, run)
    if folder != run.export:
        assert run.checkpoint is not None
        return trained_model(config, run.checkpoint)
    return PretrainedModel(str(folder), attention=config.attention.name).load()
