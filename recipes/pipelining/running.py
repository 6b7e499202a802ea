"""Running a pipeline: every stage composed and validated, every corpus prepared, then one stage after the other.

    for each stage:  finished under these words and on this base?  skip it  :  start it, or go on with it
    then:            report, picture, export of the last stage

What a stage's weights depend on is known beforehand: its own settings, and those of all stages that it comes from. So
the same command finds its folder again, and one word of the last stage leaves the stages before it as they are.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from recipes.compose import compose
from recipes.pipelining.composing import Planned, compose_stages, final_words, partly_taken
from recipes.pipelining.folder import PipelineFolder, found_folder, is_held, make_folder, root, stage_folder
from recipes.pipelining.pipeline import Pipeline
from recipes.run_folder import RunFolder, finished_run
from recipes.training import TEMPORARY_FAILURE

PATIENCE_SECONDS = 60.0
"""For a stage that lost its pipeline to save what it was doing."""

INTERRUPTED, REFUSED = 130, 2

Starter = Callable[[Sequence[str]], int]


class Outcome(NamedTuple):
    """A pipeline that is finished."""

    folder: Path
    planned: Mapping[str, Planned]
    runs: Mapping[str, RunFolder]  # stage -> its finished run
    words: Mapping[str, Sequence[str]]  # stage -> what its process was given


def run_pipeline(pipeline: Pipeline, *, start: Starter | None = None) -> Outcome:
    """Run what is left of a pipeline.

    Args:
        pipeline: What the command line named.
        start: Runs a stage of these words and returns an exit status; by default in a process of its own.

    Raises:
        ConfigError: Faults of its stages, before anything is written.
        ValueError: A corpus cannot be prepared, or another process works in the same folder.
        SystemExit: A stage ended with another status than 0.
    """
    from recipes.pipelining.starter import run_stage

    with tempfile.TemporaryDirectory() as shells:
        planned = compose_stages(pipeline, Path(shells))
        for line in partly_taken(pipeline):
            _say(line)
        parent = root(next(iter(planned.values())).config.output_dir, pipeline.name)
        identities = {name: plan.identity for name, plan in planned.items()}
        folder = found_folder(parent, identities, resume=pipeline.resume)
        try:
            _prepare([plan for name, plan in planned.items() if not _was_trained(folder, name)])
        except BaseException:
            if folder is not None:
                folder.lock.close()
            raise
    if folder is None:
        stages = {name: _facts(plan) for name, plan in planned.items()}
        anew = pipeline.resume == "never"
        folder = make_folder(parent, name=pipeline.name, words=pipeline.words, stages=stages, anew=anew)
    try:
        return _run_stages(pipeline, planned, folder, start or run_stage)
    finally:
        folder.lock.close()


def _run_stages(pipeline: Pipeline, planned: Mapping[str, Planned], folder: PipelineFolder, start: Starter) -> Outcome:
    from recipes.pipelining.report import report_pipeline

    runs: dict[str, RunFolder] = {}
    words: dict[str, list[str]] = {}
    for number, (name, plan) in enumerate(planned.items(), 1):
        base = None if plan.stage.starts_from is None else runs[plan.stage.starts_from]
        export = None if base is None else base.export
        place = stage_folder(folder.path, number, name, base=export)
        words[name] = final_words(
            plan,
            base=None if base is None else planned[str(plan.stage.starts_from)],
            export=export,
            run_folder=place,
        )
        title = f"stage {number} of {len(planned)}, {name}"
        runs[name] = _completed(words[name], title, folder, name, start)
    outcome = Outcome(folder.path, planned, runs, words)
    report_pipeline(pipeline, outcome)
    folder.update(status="finished")
    return outcome


def _completed(words: Sequence[str], title: str, folder: PipelineFolder, name: str, start: Starter) -> RunFolder:
    """The finished run of a stage, after what was missing of it has been done."""
    config = compose(words).config
    if (run := completed_run(config)) is not None:
        _say(f"{title}: done before ({run.path})")
    else:
        _await_orphan(Path(config.run_folder), title)
        _say(f"{title}: recipe={config.recipe_name} in {config.run_folder}")
        folder.update(status="started")
        folder.note(name, status="started", folder=_below(folder.path, Path(config.run_folder)))
        status = start(words)
        if status:
            folder.note(name, status="stopped")
            _stop(status, title)
        run = completed_run(config)
        if run is None:
            raise RuntimeError(f"{title} ended well and is not finished; its words were {words}")
    folder.note(name, status="finished", folder=_below(folder.path, run.path))
    return run


def completed_run(config: DictConfig) -> RunFolder | None:
    """The run of a stage, if it is trained with these settings, exported, and measured as it should be."""
    from recipes.running import is_complete

    run = finished_run(config)
    return run if run is not None and is_complete(config, run) and (run.export / "config.json").is_file() else None


def _prepare(planned: Sequence[Planned]) -> None:
    """Make the token stores of stages, so that text that cannot be read is said before hours of training."""
    from recipes.build import quiet
    from recipes.prepare import prepare

    quiet()
    for plan in planned:
        _say(f"prepare {plan.stage.name}")
        prepare(plan.config)


def _was_trained(folder: PipelineFolder | None, name: str) -> bool:
    return folder is not None and folder.info()["stages"][name]["status"] == "finished"


def _facts(plan: Planned) -> dict[str, object]:
    return {
        "recipe": plan.stage.recipe,
        "starts_from": plan.stage.starts_from,
        "words": [*plan.words],
        "identity": plan.identity,
        "status": "waiting",
        "folder": None,
    }


def _below(folder: Path, path: Path) -> str:
    return os.path.relpath(path, folder)


def _await_orphan(run_folder: Path, title: str) -> None:
    """Wait for a stage whose pipeline was killed and which still saves.

    Raises:
        ValueError: It does not end.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while run_folder.is_dir() and is_held(run_folder):
        if time.monotonic() > deadline:
            raise ValueError(f"{title}: {run_folder} is being trained by another process; wait for it to end")
        time.sleep(0.2)


def _stop(status: int, title: str) -> None:
    """End as a stage ended, with a sentence where it could not say one itself."""
    again = "run the same command again to go on"
    if status == REFUSED:
        _say(f"{title}: stopped by the mistake above; mend it, and {again}")
    elif status not in (TEMPORARY_FAILURE, INTERRUPTED):
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        _say(f"error: {title} {how}; {again}")
    raise SystemExit(status if status > 0 else 1)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
