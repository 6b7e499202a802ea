"""A recipe's run that is stopped and resumed on the same ranks, beside one that is not, inside one start of the ranks.

Everything is what `recipes.train` builds, but for the folder of the run: modules, data, trainer, callbacks.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_modules.base import CausalLMModule
from lightning_modules.callbacks.step_checkpoint import Terminated
from lightning_modules.checkpointing import newest_checkpoint, step_of
from recipes.build import build_data, build_module, build_trainer, quiet
from recipes.compose import compose
from tests.lightning_modules.tiny_training import whole


class SigtermToLastRank(pl.Callback):
    """What a scheduler does to one rank in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step - 1 and trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def stopped_and_resumed(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train the recipe of `job["words"]` to its end, and once more with a stop within step `job["stop_at"]`.

    Returns:
        The weights of both and the step of the checkpoint between; the logs lie in `straight` and `stopped`.
    """
    quiet()
    straight = fit(job["words"], folder / "straight")
    fit(job["words"], folder / "stopped", stop_at=job["stop_at"])
    checkpoint = newest_checkpoint(folder / "stopped" / "checkpoints")
    assert checkpoint is not None
    resumed = fit(job["words"], folder / "stopped", checkpoint=checkpoint)
    return {
        "straight": weights(straight),
        "resumed": weights(resumed),
        "stopped_at": step_of(checkpoint),
    }


def fit(
    words: list[str], folder: Path, *, stop_at: int | None = None, checkpoint: Path | None = None
) -> CausalLMModule:
    torch.seed()  # a resumed process knows nothing of the random state that the stopped one left
    config = compose(words).config
    data = build_data(config)
    module, trainer = build_module(config, data), build_trainer(config, folder, max_steps=config.data.max_steps)
    if stop_at is not None:
        trainer.callbacks.insert(0, SigtermToLastRank(stop_at))  # type: ignore[attr-defined]
    try:
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    except Terminated:
        assert stop_at is not None
    return module


def weights(module: CausalLMModule) -> dict[str, torch.Tensor]:
    return {name: whole(p.detach()).clone() for name, p in module.causal_lm.named_parameters()}
