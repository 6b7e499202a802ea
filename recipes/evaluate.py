"""Measure a finished run: perplexity by length on the same tail tokens, and needle recall over length and depth."""

from __future__ import annotations

from omegaconf import DictConfig

from recipes.cli import main


def evaluate(config: DictConfig) -> None:
    """Evaluate the run that `checkpoint` names (default: the recipe's newest finished one) beside its base model."""
    from recipes.build import quiet
    from recipes.evaluating import evaluate_run, starting_scores
    from recipes.run_folder import find_run

    quiet()
    run = find_run(config)
    print(evaluate_run(config, run, starting=starting_scores))
    needle = ", needle.png" if config.evaluation.needle.num_samples else ""
    print(f"numbers:  {run.path}/scores.json, scores.csv\npictures: {run.figures}/perplexity.png{needle}")


if __name__ == "__main__":
    main("evaluate", evaluate, doc=__doc__ or "")
