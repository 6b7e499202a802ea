"""Training one stage in a run folder of its own."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from omegaconf import DictConfig

from lightning_modules.callbacks.final_metrics import FinalMetrics
from lightning_modules.callbacks.start_gate import TrainingRefused
from lightning_modules.callbacks.step_checkpoint import Terminated
from lightning_modules.checkpointing import newest_checkpoint
from recipes.build import build_data, build_module, build_trainer, quiet
from recipes.reporting.tables import write_whole
from recipes.run_folder import RunFolder, named_run, open_run, released_on_error

TEMPORARY_FAILURE = 75
"""Exit status of a run that SIGTERM stopped and that can go on: EX_TEMPFAIL, at which schedulers try again."""


def train_run(config: DictConfig) -> tuple[RunFolder, bool]:
    """Train to the end, from the start or from where an earlier run of the same configuration stopped.

    Returns:
        The run's folder, still open, with its last checkpoint; and whether this process is the first rank.
    """
    quiet()
    named_run(config)
    if config.trainer.num_threads is not None:
        torch.set_num_threads(config.trainer.num_threads)
    data = build_data(config)
    data.prepare_data()  # text that cannot be read is said before there is a run
    module = build_module(config, data)
    run = open_run(config)
    started, starter = time.monotonic(), os.getppid()
    with released_on_error(), logged_to(run.path / "log.txt"):
        trainer = build_trainer(config, run.path, max_steps=data.num_steps)
        try:
            trainer.fit(module, data, ckpt_path=str(run.checkpoint) if run.checkpoint else None, weights_only=True)
        except Terminated as stop:
            if trainer.is_global_zero:
                print(f"{stop}; run the same command again to go on", file=sys.stderr)
            # Lightning kills the first rank if one that it started exits with anything but 0.
            raise SystemExit(TEMPORARY_FAILURE if trainer.is_global_zero else 0) from stop
        except TrainingRefused as refusal:
            if trainer.is_global_zero:
                raise
            raise SystemExit(0) from refusal  # the first rank says it, and must live to
        except SystemExit as error:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from error
        except Exception as error:
            # What all ranks fail of, the first one says and gives its status, which Lightning would kill it for.
            if not trainer.is_global_zero and is_gone(starter):
                raise SystemExit(0) from error
            raise
    if trainer.is_global_zero:
        (final,) = (found for found in vars(trainer)["callbacks"] if isinstance(found, FinalMetrics))
        write_whole(run.path / "metrics.json", json.dumps(final.metrics, indent=2) + "\n")
        seconds = run.info().get("seconds", 0) + round(time.monotonic() - started)
        run.update(steps=trainer.global_step, tokens=data.ledger().tokens, seconds=seconds, hardware=hardware())
    return RunFolder(run.path, newest_checkpoint(run.checkpoints)), trainer.is_global_zero


def is_gone(starter: int, *, within_seconds: float = 10.0) -> bool:
    """Whether the process that started this one, the first rank, ends within some seconds."""
    deadline = time.monotonic() + within_seconds
    while os.getppid() == starter and time.monotonic() < deadline:
        time.sleep(0.05)
    return os.getppid() != starter


def hardware() -> str:
    """What the run computed on, for its record."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{torch.get_num_threads()} CPU thread{'s' if torch.get_num_threads() > 1 else ''}"


@contextmanager
def logged_to(file: Path) -> Iterator[None]:
    """Copy log records meanwhile to a file: ours from INFO on, those of libraries from WARNING."""
    for package in ("recipes", "datamodules", "lightning_modules"):
        logging.getLogger(package).setLevel(logging.INFO)
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
