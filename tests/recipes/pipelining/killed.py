"""`python -m tests.recipes.pipelining.killed <moment> <conf> words…`: recipes.run, which kills itself at that moment.

The stages run in this process, so that nothing of them outlives it; `never` lets the pipeline end.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MOMENTS = ("training", "export", "between", "second_training", "last_step", "evaluation", "report")


def kill(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_if(
    condition: Callable[..., bool], function: Callable[..., Any], *, after: bool = False
) -> Callable[..., Any]:
    """The function, before or after which the process is killed."""

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if not condition(*arguments, **options):
            return function(*arguments, **options)
        if after:
            function(*arguments, **options)
        return kill()

    return wrapped


def arm(moment: str) -> None:
    """Let the process be killed at that moment."""
    from lightning_modules.callbacks.step_checkpoint import StepCheckpoint
    from recipes.evaluating import Evaluation
    from recipes.exporting import hugging_face
    from recipes.pipelining import report, starter

    def saves(folder: str, step: int) -> Callable[..., bool]:
        return lambda callback, trainer: folder in str(callback.folder) and trainer.global_step == step

    def has_trained(folder: str) -> Callable[..., bool]:
        return lambda *_: folder in os.environ["LONG_CONTEXT_RECIPES_RUN"]

    save, scores = StepCheckpoint._save, Evaluation.scores
    if moment == "training":
        StepCheckpoint._save = killed_if(saves("1-", 1), save, after=True)
    elif moment == "export":
        hugging_face.write_both_dialects = kill
    elif moment == "between":
        starter.run_stage = killed_if(lambda words: any("2-" in word for word in words[-1:]), starter.run_stage)
    elif moment == "second_training":
        StepCheckpoint._save = killed_if(saves("2-", 1), save, after=True)
    elif moment == "last_step":
        StepCheckpoint._save = killed_if(saves("2-", 2), save, after=True)
    elif moment == "evaluation":
        Evaluation.scores = killed_if(has_trained("2-"), scores)
    elif moment == "report":
        report.plot_needles = kill


def in_this_process(words: Sequence[str]) -> int:
    from recipes.cli import run
    from recipes.pipelining.stage import complete_stage

    return run(words, complete_stage)


def in_a_fork(command: Sequence[str], *, env: dict[str, str], **options: Any) -> SimpleNamespace:
    """In place of `subprocess.run` for opening an export again, without the seconds in which Python imports."""
    _, _, script, *arguments = command
    child = os.fork()
    if child == 0:
        sys.argv = [script, *arguments]
        os.environ |= env
        runpy.run_path(script, run_name="__main__")
        os._exit(0)
    return SimpleNamespace(returncode=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), stderr="")


def main(moment: str, conf: str, *words: str) -> int:
    from recipes import compose as composing

    composing.conf_folder = lambda: Path(conf)
    from recipes.pipelining import starter
    from recipes.reporting import figures
    from recipes.verifying import loaded

    starter.run_stage = in_this_process
    loaded.subprocess = SimpleNamespace(run=in_a_fork)  # type: ignore[assignment]
    figures.save = lambda _, path: Path(path)  # what nobody looks at here takes a second to draw
    arm(moment)
    from recipes.run import start

    return start(words)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
