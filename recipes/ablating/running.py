"""Running a grid: every cell judged before the first one starts, then one after the other, each a run of its own.

    <output_dir>/ablation/<name>/<cell>/     an ordinary run folder
    <output_dir>/ablation/<name>/report/     the table, the pictures, and scores that cells share

A cell that is finished under the same settings is skipped, one that was killed goes on from its last checkpoint, and
one that fails is noted and left behind. Cost: what the cells cost; the base model is measured once for all of them.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from recipes.ablating.grid import Ablation
from recipes.compose import Composed, ConfigError, compose, one_sentence
from recipes.reporting.tables import write_whole
from recipes.validate import validate

REPORT = "report"


class Outcome(NamedTuple):
    """What became of one cell."""

    folder: Path | None  # of its finished run
    failure: str | None = None  # why there is none, in one sentence


def compose_cells(ablation: Ablation) -> dict[str, Composed]:
    """The configuration of every cell, validated.

    Raises:
        ConfigError: With every fault of every cell, one a line, naming the cells that have it.
    """
    composed: dict[str, Composed] = {}
    faults: dict[str, list[str]] = {}
    for cell in ablation.cells:
        try:
            found = compose(cell.words)
            found.config.run_folder = str(root(found.config, ablation) / cell.name)
            validate(found)
            composed[cell.name] = found
            if found.config.trainer.devices * found.config.trainer.num_nodes > 1:
                raise ConfigError("trainer.devices must be 1, as the cells of a grid run in one process")
        except ConfigError as error:
            for fault in str(error).splitlines():
                faults.setdefault(fault, []).append(cell.name)
    if faults:
        raise ConfigError("\n".join(f"{_cells_said(names, ablation)}: {fault}" for fault, names in faults.items()))
    return composed


def root(config: DictConfig, ablation: Ablation) -> Path:
    """Where a grid's cells and its report lie."""
    return Path(config.output_dir) / "ablation" / ablation.name


def run_cells(ablation: Ablation, composed: Mapping[str, Composed]) -> dict[str, Outcome]:
    """Run what is not done yet, with a line on standard error as each cell begins."""
    outcomes, seconds, began = {}, [], time.monotonic()
    done = {name: folder for name, (config, *_) in composed.items() if (folder := _done(config)) is not None}
    for number, (name, (config, *_)) in enumerate(composed.items(), 1):
        if name in done:
            _say(f"cell {number}/{len(composed)}  {name}  done")
            outcomes[name] = Outcome(done[name])
            continue
        cell_began = time.monotonic()
        ahead = sum(other not in done and other not in outcomes for other in composed)
        _say(f"cell {number}/{len(composed)}  {name}  {_times(cell_began - began, seconds, ahead)}")
        trace = root(config, ablation) / REPORT / f"{name}.failed.txt"
        trace.unlink(missing_ok=True)
        try:
            outcomes[name] = Outcome(_run_cell(config, root(config, ablation) / REPORT / "starting"))
            seconds.append(time.monotonic() - cell_began)
        except Exception as error:  # the other cells do not depend on this one
            write_whole(trace, traceback.format_exc())
            reason = one_sentence(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            outcomes[name] = Outcome(None, " ".join(reason.split())[:300])
            _say(f"cell {number}/{len(composed)}  {name}  failed: {outcomes[name].failure} ({trace})")
    return outcomes


def _done(config: DictConfig) -> Path | None:
    """The folder of a cell that is trained with these settings and measured as it should be."""
    from recipes.run_folder import finished_run
    from recipes.running import is_complete

    run = finished_run(config) if config.resume == "auto" else None
    return run.path if run is not None and is_complete(config, run) else None


def _run_cell(config: DictConfig, starting_folder: Path) -> Path:
    """Train and measure a cell, or only measure it where it is trained and the evaluation is another."""
    from recipes.ablating.starting import SharedStartingScores
    from recipes.running import complete_recipe

    finished = complete_recipe(config, starting=SharedStartingScores(starting_folder))
    assert finished is not None  # one device, so this is the first rank
    return finished[0]


def _times(so_far: float, seconds: list[float], ahead: int) -> str:
    if not seconds:
        return "begins; how long all will take is known after it"
    left = sum(seconds) / len(seconds) * ahead
    return f"begins; {said_time(so_far)} so far, about {said_time(left)} left"


def said_time(seconds: float) -> str:
    """45 s, 3 min 20 s, 1 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _cells_said(names: list[str], ablation: Ablation) -> str:
    if len(names) == len(ablation.cells):
        return "every cell"
    return f"cell{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
