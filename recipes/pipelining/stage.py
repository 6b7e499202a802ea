"""One stage of a pipeline in a process of its own: what is left of training, export and evaluation.

    python -m recipes.pipelining.stage recipe=… run_folder=<pipeline>/<number>-<stage> key=value …

`recipes.run` starts it. A process for each stage, because its end gives back every byte of a GPU; because Lightning
starts the further ranks of a stage by running the process's own command again, which must name one stage; and because
one that is killed for memory leaves somebody to say so. Cost: some five seconds of imports a stage.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

from omegaconf import DictConfig

from recipes.cli import run

STARTER_VARIABLE = "LONG_CONTEXT_RECIPES_PIPELINE"
"""Process id of the pipeline that started the stage."""
PR_SET_PDEATHSIG = 1


def complete_stage(config: DictConfig) -> None:
    """Train, export and measure the stage, as far as that has not been done."""
    from recipes.pipelining.starting import HandedScores
    from recipes.running import complete_recipe

    starting = HandedScores(Path(config.run_folder).parent / ".starting")
    if (outcome := complete_recipe(config, starting=starting)) is not None:
        print(f"\n{outcome[1]}")


def end_with_starter() -> None:
    """Let this process be asked to stop, as by a scheduler, when the one that started it is gone.

    A pipeline that is killed alone would leave its stage behind, in the way of the next one. Where the system is not
    Linux it does; it holds its run folder, and the next pipeline says so.
    """
    starter = os.environ.pop(STARTER_VARIABLE, None)  # further ranks have a starter of their own
    if starter is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(starter):
        sys.exit(f"error: the pipeline that started this stage is gone (process {starter})")


if __name__ == "__main__":
    end_with_starter()
    sys.exit(run(sys.argv[1:], complete_stage))
