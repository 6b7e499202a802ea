"""Run a whole recipe (prepare, train, export, evaluate the base and the export, report) or a paper's whole pipeline.

recipe= runs one stage. pipeline= runs all stages of a paper, each from the last one's export, in one folder with one
report; the same command goes on where it was stopped, and only what a changed word concerns is run again. A word goes
to every stage that has its key, and sft.optimizer.lr=1e-5 to the stage sft alone."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from recipes.cli import exit_status, help_printed
from recipes.cli import run as run_words
from recipes.pipelining.pipeline import is_pipeline

NEXT = """next:
  {python} -m recipes.run recipe={recipe} rope=linear
      another RoPE change, everything else equal
  {python} -m recipes.run recipe=together_llama2_7b_32k/pretrain scale=toy
      another paper's mechanism on the bundled model
  {python} -m tensorboard.main --logdir {folder}/tensorboard
      loss, loss by position, learning rate"""

NEXT_OF_PIPELINE = """next:
  {python} -m recipes.chat model={folder}/export file=<long text>
      ask the finished model about a text of yours
  {python} -m recipes.run {words} {last}.data.max_steps={longer}
      one word of the last stage changed: the stages before it are kept
  {python} -m tensorboard.main --logdir {folder}
      loss, loss by position, learning rate of every stage"""


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


def run_all_stages(words: Sequence[str]) -> None:
    """A whole pipeline, and what it came to."""
    from recipes.pipelining.pipeline import read_pipeline

    pipeline = read_pipeline(words)  # before an import of seconds
    from recipes.pipelining.running import run_pipeline

    outcome = run_pipeline(pipeline)
    folder, last = outcome.folder, [*outcome.planned][-1]
    print(f"\n{(folder / 'report.md').read_text(encoding='utf-8').split('![', 1)[0].rstrip()}\n")
    print(f"report                 {folder}/report.md")
    print(f"perplexity by length   {folder}/figures/perplexity.png")
    print(f"needle heat-map        {folder}/figures/needle.png")
    print(f"numbers                {folder}/scores.json, scores.csv")
    print(f"exported model         {folder}/export")
    steps = outcome.runs[last].info()["steps"]
    said = shlex.join(word for word in words if not word.startswith((f"{last}.data.max_steps=", "resume=")))
    print(NEXT_OF_PIPELINE.format(python=interpreter(), folder=folder, words=said, last=last, longer=2 * steps))


def start(words: Sequence[str]) -> int:
    """Exit status of a pipeline's words, or of a recipe's."""
    return exit_status(lambda: run_all_stages(words)) if is_pipeline(words) else run_words(words, run)


if __name__ == "__main__":
    if not help_printed("run", sys.argv[1:], doc=__doc__ or ""):
        sys.exit(start(sys.argv[1:]))
