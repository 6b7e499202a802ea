"""Train one stage. A killed run goes on where it was when the same command is given again."""

from __future__ import annotations

from omegaconf import DictConfig

from recipes.cli import main


def train(config: DictConfig) -> None:
    """Train, and say where the result is."""
    from recipes.answering import answer_report, questions_of
    from recipes.run_folder import close_run
    from recipes.training import train_run

    questions = questions_of(config)  # what they lack is said before hours of training
    run, first = train_run(config)
    if first:
        close_run(run, status="finished")
        if questions is not None:
            print(f"\n{answer_report(config, run, questions)}")
            print(f"answers: {run.path}/figures/answers.png, answers.json")
        print(f"trained: {run.path}")
        print(f"next:    python -m recipes.evaluate recipe={config.recipe_name} checkpoint={run.path}")
        print("         with the other words of this command, if there are any")


if __name__ == "__main__":
    main("train", train, doc=__doc__ or "")
