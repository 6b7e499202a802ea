"""The metrics of a run's end, also where all that was left of it is a checkpoint of its last step."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl

from datamodules.step_batches import collate
from lightning_modules.callbacks.final_metrics import FinalMetrics
from lightning_modules.callbacks.step_checkpoint import StepCheckpoint
from tests.lightning_modules.tiny_training import make_module, make_row, make_trainer, step_loader

MAX_STEPS = 5


class Validations(pl.Callback):
    def __init__(self) -> None:
        self.count = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.count += 1


def fit(folder: Path, *, resume: int | None = None, every: float = 1.0) -> tuple[FinalMetrics, Validations, int]:
    """The callback, with how often was validated, and the steps that this process trained."""
    steps = [[collate([make_row((32,), seed=step)])] for step in range(MAX_STEPS)]
    final, validations = FinalMetrics(MAX_STEPS), Validations()
    checkpoint = StepCheckpoint(folder, every_n_steps=2, keep=-1, max_steps=MAX_STEPS)
    trainer = make_trainer(
        callbacks=[final, checkpoint, validations],
        enable_checkpointing=True,
        num_sanity_val_steps=0,
        val_check_interval=every,
    )
    path = None if resume is None else folder / f"step-{resume:07d}.ckpt"
    held_out = step_loader([collate([make_row((32,), seed=99)])])  # type: ignore[list-item]
    trainer.fit(make_module(max_steps=MAX_STEPS), step_loader(steps), held_out, ckpt_path=path, weights_only=True)
    return final, validations, trainer.global_step - (resume or 0)


def test_a_run_of_which_the_last_step_is_there_has_its_metrics_and_validates(tmp_path: Path) -> None:
    tmp_path.mkdir(exist_ok=True)
    whole, validations, _ = fit(tmp_path)
    assert {"loss", "lr", "val_loss"} <= set(whole.metrics)
    assert validations.count == 1
    resumed, validations, trained = fit(tmp_path, resume=MAX_STEPS)
    assert trained == 0
    assert validations.count == 1
    assert resumed.metrics == whole.metrics


def test_a_validation_on_the_way_is_not_taken_for_the_last(tmp_path: Path) -> None:
    whole, validations, _ = fit(tmp_path, every=2)
    assert validations.count == 3
    resumed, validations, _ = fit(tmp_path, resume=MAX_STEPS, every=2)
    assert validations.count == 1
    assert resumed.metrics["val_loss"] == whole.metrics["val_loss"]


def test_a_validation_that_a_stop_came_before_is_made_up_for(tmp_path: Path) -> None:
    fit(tmp_path, every=2)
    _, validations, trained = fit(tmp_path, resume=2, every=2)
    assert trained == 3
    assert validations.count == 3  # of the steps 2, 4 and 5


def test_a_run_that_has_steps_left_validates_once_as_ever(tmp_path: Path) -> None:
    fit(tmp_path)
    _, validations, trained = fit(tmp_path, resume=4)
    assert validations.count == 1
    assert trained == 1
