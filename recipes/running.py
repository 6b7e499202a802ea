"""The whole of a recipe in one process: from text to an exported and evaluated model."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from lightning_modules.loading import PretrainedModel
from recipes.build import build_tokenizer, quiet
from recipes.evaluating import TRAINED, Evaluation, StartingScores, report, starting_scores
from recipes.exporting.run import export_run, write_card
from recipes.run_folder import close_run, named_run, released_on_error
from recipes.training import train_run


def run_recipe(config: DictConfig, *, starting: StartingScores = starting_scores) -> tuple[Path, str] | None:
    """Evaluate the base, train, export, evaluate the export and report.

    The scores of the trained model are those of the exported folder, loaded as a user would load it.

    Args:
        config: The recipe.
        starting: Gives the scores of what training started from; runs that share them need not measure them again.

    Returns:
        The run's folder and the table of scores; None on all ranks but the first.
    """
    quiet()
    named_run(config)
    evaluation = Evaluation(config, build_tokenizer(config))  # what it lacks is said before hours of training
    run, first = train_run(config)
    if not first:
        return None
    with released_on_error():
        variants = starting(config, evaluation)
        exported = PretrainedModel(str(export_run(config, run)), attention=config.attention.name)
        variants.append(evaluation.scores(exported.load(), TRAINED))
        table = report(config, variants, run.path)
        write_card(config, run)
        close_run(run, status="finished")
    return run.path, table
