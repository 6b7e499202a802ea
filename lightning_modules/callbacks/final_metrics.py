"""Validations that a stop came before, and what a run ends with, whenever it was killed.

A checkpoint is saved before the validation of its step, so a run that is stopped at one has none, and Lightning goes on
with the step after it: it is made up for here. A run that was killed behind its last checkpoint, also while it was
exported and evaluated, has no step left to train when it goes on, and Lightning would know neither its validation nor
the last step's loss: these numbers travel in the checkpoint.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class FinalMetrics(Callback):
    """Has the metrics of the last step and of the validation after it, also where the last step is in the checkpoint.

    Lightning calls what saves checkpoints after every other callback, so they hold the numbers of their own step.

    Args:
        max_steps: Optimizer steps of the run.

    Attributes:
        metrics: Name -> value.
    """

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps
        self.metrics: dict[str, float] = {}
        self._nothing_left = False

    def state_dict(self) -> dict[str, Any]:
        return {"metrics": dict(self.metrics)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.metrics = dict(state_dict["metrics"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._nothing_left = trainer.global_step >= self.max_steps
        every = trainer.val_check_batch if trainer.enable_validation else None
        if every and 0 < trainer.global_step < self.max_steps and trainer.global_step % every == 0:
            _validate(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step >= self.max_steps:
            self._note(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._nothing_left:
            _validate(trainer)
        self._note(trainer)

    def _note(self, trainer: Trainer) -> None:
        self.metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}


def _validate(trainer: Trainer) -> None:
    """As the loop of an epoch does between two steps."""
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True
