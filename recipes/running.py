"""The whole of a recipe in one process: from text to an exported and evaluated model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig
from transformers import PreTrainedModel

from lightning_modules.loading import PretrainedModel
from recipes.answering import answer_report, questions_of
from recipes.build import build_tokenizer, quiet
from recipes.evaluating import TRAINED, Evaluation, StartingScores, report, starting_scores, trained_model
from recipes.exporting.run import export_run, write_card
from recipes.reporting.answers import read_accuracy
from recipes.run_folder import RunFolder, close_run, named_run, released_on_error
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
        variants = starting(config, evaluation)
        variants.append(evaluation.scores(_exported(config, run), TRAINED))
        answers = None if questions is None else answer_report(config, run, questions)
        if answers is not None:
            file = run.path / "answers.json"
            variants = [replace(variant, answers=read_accuracy(file, name=variant.name)) for variant in variants]
        table = "\n".join(filter(None, (report(config, variants, run.path), answers)))
        write_card(config, run)
        close_run(run, status="finished")
    return run.path, table


def _exported(config: DictConfig, run: RunFolder) -> PreTrainedModel:
    folder = export_run(config, run)
    if folder != run.export:
        assert run.checkpoint is not None
        return trained_model(config, run.checkpoint)
    return PretrainedModel(str(folder), attention=config.attention.name).load()
