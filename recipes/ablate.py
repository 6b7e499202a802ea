"""Run a named grid of variants of one recipe, cell by cell, and compare them in one table and in pictures.

Words beside the name go to every cell; ablation.axes.<axis>.values=[…] changes the grid itself."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from recipes.cli import exit_status, help_printed

NEXT = """next:
  {python} -m recipes.ablate {words}
      again: finished cells are kept; cells that failed, or whose settings changed, are run
  {python} -m recipes.ablate {longer}
      all cells trained longer, each in a folder beside its first
  {python} -m recipes.evaluate {cell}
      one cell by itself, with any evaluation.… words; its model is in {folder}/export"""


def ablate(words: Sequence[str]) -> int:
    """Judge every cell, run those that are not done, and report; returns how many failed."""
    from recipes.ablating.grid import read_ablation
    from recipes.ablating.running import compose_cells, run_cells

    ablation = read_ablation(words)
    composed = compose_cells(ablation)
    outcomes = run_cells(ablation, composed)

    from recipes.ablating.reporting import report_ablation

    table, files = report_ablation(ablation, composed, outcomes)
    print(f"\n{table}")
    print("\n".join(map(str, files)))
    for cell in ablation.cells:
        if (folder := outcomes[cell.name].folder) is not None:
            print(_next(words, [*cell.words, f"checkpoint={folder}"], composed[cell.name].config.data.max_steps))
            break
    return sum(outcome.failure is not None for outcome in outcomes.values())


def _next(words: Sequence[str], cell_words: Sequence[str], max_steps: int) -> str:
    from recipes.run import interpreter

    longer = [*(word for word in words if not word.startswith("data.max_steps=")), f"data.max_steps={4 * max_steps}"]
    return NEXT.format(
        python=interpreter(),
        words=shlex.join(words),
        longer=shlex.join(longer),
        cell=shlex.join(cell_words),
        folder=cell_words[-1].removeprefix("checkpoint="),
    )


def main(words: Sequence[str]) -> int:
    """Exit status: 0 every cell is there, 1 some failed, 2 a mistake in the words, 130 interrupted."""
    failed: list[int] = []
    status = exit_status(lambda: failed.append(ablate(words)))
    return status or int(any(failed))


if __name__ == "__main__":
    if not help_printed("ablate", sys.argv[1:], doc=__doc__ or ""):
        sys.exit(main(sys.argv[1:]))
