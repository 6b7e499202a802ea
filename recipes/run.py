"""Run a whole recipe: prepare, evaluate the base, train, export, evaluate the export, report."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from recipes.cli import main

NEXT = """next:
  {python} -m recipes.run recipe={recipe} rope=linear
      another RoPE change, everything else equal
  {python} -m recipes.run recipe=together_llama2_7b_32k/pretrain scale=toy
      another paper's mechanism on the bundled model
  {python} -m tensorboard.main --logdir {folder}/tensorboard
      loss, loss by position, learning rate"""


def run(config: DictConfig) -> None:
    """Everything from text to a report, in one run folder."""
    from recipes.running import run_recipe

    outcome = run_recipe(config)
    if outcome is None:  # a further rank of a distributed run
        return
    folder, table = outcome
    print(f"\n{table}")
    print(f"perplexity by length   {folder}/figures/perplexity.png")
    print(f"needle heat-map        {folder}/figures/needle.png")
    print(f"numbers                {folder}/scores.json, scores.csv")
    print(f"data that was read     {folder}/ledger.md: share, epochs and lengths of each source")
    for name, exported in (("model", "export"), ("adapter", "export-adapter")):
        if (folder / exported).is_dir():
            print(f"{f'exported {name}':<23}{folder}/{exported}")
    print(NEXT.format(recipe=config.recipe_name, folder=folder, python=interpreter()))


def interpreter() -> str:
    """This Python as one types it: `.venv/bin/python` where it lies below the working folder, else `python`."""
    running = Path(sys.executable)
    return str(running.relative_to(Path.cwd())) if running.is_relative_to(Path.cwd()) else "python"


if __name__ == "__main__":
    main("run", run, doc=__doc__ or "")
