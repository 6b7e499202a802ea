"""When a run is checkpointed: every so many steps, with the last step, and when the machine asks it to stop.

Lightning answers SIGTERM by exiting 0 with nothing saved. Here the step at hand is finished and saved, on all ranks
together even if only one got the signal, and `Terminated` leaves the fit, so that the caller can choose the status.
"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lightning_modules.checkpointing import checkpoints, is_complete, step_of


class Terminated(Exception):
    """Training stopped because of SIGTERM; `step` optimizer steps are in the newest checkpoint."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped by SIGTERM after step {step}, which is saved")
        self.step = step


class StepCheckpoint(Checkpoint):
    """Saves `step-0000120.ckpt` files, or folders of that name where the model is sharded.

    What is there is read from the disk and not carried in the checkpoints, as Lightning's own callback does; so a
    resumed run may save at another interval, and the checkpoint that it was resumed from is cleared away like any.

    Args:
        folder: Where they go.
        every_n_steps: Optimizer steps between two of them.
        keep: How many stay; -1 keeps all.
        max_steps: Optimizer steps of the run; the last one is always saved, before the validation that follows it.
    """

    def __init__(self, folder: Path, *, every_n_steps: int, keep: int, max_steps: int) -> None:
        self.folder = folder
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.max_steps = max_steps
        self.asked_to_stop = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Replaces Lightning's handler, which broadcasts from inside the signal; Lightning restores what stood before.
        signal.signal(signal.SIGTERM, self._ask_to_stop)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        stop = trainer.strategy.reduce_boolean_decision(self.asked_to_stop, all=False)
        if stop or step % self.every_n_steps == 0 or step >= self.max_steps:
            self._save(trainer)
        if step >= self.max_steps:
            trainer.should_stop = True  # so Lightning validates now, even where its interval does not divide the steps
        elif stop:
            raise Terminated(step)

    def _ask_to_stop(self, *_: Any) -> None:
        self.asked_to_stop = True

    def _save(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if trainer.is_global_zero:
            for path in self.folder.glob("*.ckpt*"):
                if path.suffix == ".partial" or not is_complete(path):  # what a killed process left
                    _remove(path)
        trainer.strategy.barrier()
        trainer.save_checkpoint(self.folder / f"step-{step:07d}.ckpt", weights_only=False)
        if trainer.is_global_zero and self.keep > 0:
            # Later ones are there if the run was resumed from an earlier one on purpose.
            for path in [path for path in checkpoints(self.folder) if step_of(path) <= step][: -self.keep]:
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
