from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from datamodules.step_batches import collate
from lightning_modules.base import CausalLMModule
from lightning_modules.callbacks.step_checkpoint import StepCheckpoint, Terminated
from tests.lightning_modules.tiny_training import make_module, make_row, make_trainer, step_loader

MAX_STEPS = 7


def fit(
    folder: Path, *callbacks: pl.Callback, every: int = 2, keep: int = 2, resume: Path | None = None
) -> CausalLMModule:
    folder.mkdir(exist_ok=True)
    steps = [[collate([make_row((32,), seed=step)])] for step in range(MAX_STEPS)]
    checkpoint = StepCheckpoint(folder, every_n_steps=every, keep=keep, max_steps=MAX_STEPS)
    module = make_module(max_steps=MAX_STEPS)
    trainer = make_trainer(callbacks=[*callbacks, checkpoint], enable_checkpointing=True)
    trainer.fit(module, step_loader(steps), ckpt_path=resume, weights_only=True)
    return module


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name[5:12]) for path in folder.iterdir())


def test_saves_every_n_steps_and_the_last_and_keeps_the_newest(tmp_path: Path) -> None:
    module = fit(tmp_path)
    assert steps_in(tmp_path) == [6, 7]
    saved = torch.load(tmp_path / "step-0000007.ckpt", weights_only=True)
    assert saved["global_step"] == 7
    for name, parameter in module.named_parameters():
        assert torch.equal(saved["state_dict"][name], parameter)


def test_minus_one_keeps_all(tmp_path: Path) -> None:
    fit(tmp_path, keep=-1)
    assert steps_in(tmp_path) == [2, 4, 6, 7]


def test_debris_of_a_killed_write_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "step-0000001.ckpt").write_bytes(b"PK half")
    (tmp_path / ".step-0000003.ckpt.partial").write_bytes(b"half")
    (tmp_path / "step-0000004.ckpt").mkdir()
    fit(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000006.ckpt", "step-0000007.ckpt"]


class SigtermAt(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_finishes_the_step_saves_it_and_restores_the_handler(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated, match="stopped by SIGTERM after step 5, which is saved"):
        fit(tmp_path, SigtermAt(5), every=100)
    assert steps_in(tmp_path) == [5]
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_in_the_last_step_lets_the_run_finish(tmp_path: Path) -> None:
    fit(tmp_path, SigtermAt(MAX_STEPS))
    assert steps_in(tmp_path) == [6, 7]


def test_run_resumed_at_another_interval_takes_the_missing_steps_and_clears_what_it_came_from(
    tmp_path: Path,
) -> None:
    whole = fit(tmp_path / "whole")
    with pytest.raises(Terminated):
        fit(tmp_path / "run", SigtermAt(3), every=100)
    resumed = fit(tmp_path / "run", every=2, resume=tmp_path / "run/step-0000003.ckpt")
    assert steps_in(tmp_path / "run") == [6, 7]
    # The loader here starts over at its first batch, unlike ours: only the number of steps is compared.
    assert resumed.global_step == whole.global_step == MAX_STEPS


def test_resuming_from_an_earlier_checkpoint_does_not_delete_what_it_saves(tmp_path: Path) -> None:
    fit(tmp_path, keep=-1)
    fit(tmp_path, every=3, keep=2, resume=tmp_path / "step-0000002.ckpt")
    assert steps_in(tmp_path) == [6, 7]


def test_finished_run_resumed_does_nothing_more(tmp_path: Path) -> None:
    done = fit(tmp_path)
    again = fit(tmp_path, resume=tmp_path / "step-0000007.ckpt")
    assert again.global_step == MAX_STEPS
    for ours, theirs in zip(again.parameters(), done.parameters(), strict=True):
        assert torch.equal(ours, theirs)


class ValidatedAt(pl.Callback):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.steps.append(trainer.global_step)


@pytest.mark.parametrize(("every", "expected"), [(1.0, [7]), (7, [7]), (3, [3, 6, 7]), (2, [2, 4, 6, 7]), (5, [5, 7])])
def test_validation_follows_the_last_step_once_whatever_its_interval(
    every: float, expected: list[int], tmp_path: Path
) -> None:
    validated = ValidatedAt()
    batch = collate([make_row((32,), seed=0)])
    checkpoint = StepCheckpoint(tmp_path, every_n_steps=100, keep=1, max_steps=MAX_STEPS)
    trainer = make_trainer(
        callbacks=[validated, checkpoint],
        enable_checkpointing=True,
        val_check_interval=every,
        num_sanity_val_steps=0,
    )
    trainer.fit(make_module(max_steps=MAX_STEPS), step_loader([[batch]] * MAX_STEPS), step_loader([batch]))  # type: ignore[list-item]
    assert validated.steps == expected
    assert trainer.callback_metrics["val_loss"] > 0
