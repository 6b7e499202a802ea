"""RoPE by step under FSDP2 on two ranks, and a table that one rank alone has wrong."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import ModelParallelStrategy

from datamodules.step_batches import collate
from lightning_modules.callbacks.rope_patching import RotaryPatching
from lightning_modules.models.causal_lm_with_loss import SummedLoss
from lightning_modules.rope.methods import ProgressiveBase
from tests.lightning_modules.tiny_training import make_module, make_row, make_trainer, step_loader

NUM_STEPS = 4


class Observer(pl.Callback):
    """Notes what each step computed with, and may break the table of one rank in the last step."""

    def __init__(self, *, breaks_on: int | None = None) -> None:
        self.breaks_on = breaks_on
        self.thetas: list[float] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        inv_freq = pl_module.causal_lm.model.rotary_emb.inv_freq
        self.thetas.append(float(inv_freq[1]) ** -8)
        if trainer.global_rank == self.breaks_on and trainer.global_step == NUM_STEPS:
            inv_freq *= 2

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        def note(_: object, __: object, output: SummedLoss) -> None:
            self.losses.append(float(trainer.strategy.reduce(output.loss_sum.detach().clone(), reduce_op="sum")))

        pl_module.model.register_forward_hook(note)


def fit(*, ranks: int, breaks_on: int | None = None) -> tuple[Any, Observer]:
    strategy: Any = "auto"
    if ranks > 1:
        strategy = ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1, process_group_backend="gloo")
    observer = Observer(breaks_on=breaks_on)
    patching = RotaryPatching(
        ProgressiveBase([[128, 4e4], [256, 9e5]]), 256, length_at=lambda step: 128 if step < 2 else 256
    )
    trainer = make_trainer(devices=ranks, strategy=strategy, callbacks=[patching, observer])
    module: Any = make_module(max_steps=NUM_STEPS)
    rows = [make_row((20, 12), seed=k) for k in range(2)][trainer.global_rank :: ranks]
    trainer.fit(module, step_loader([[collate(rows)]] * NUM_STEPS))
    return module, observer


def rope_by_step() -> dict[str, Any]:
    """What each rank computed with, what it says of the wrong table, and the losses of one process alone."""
    module, observer = fit(ranks=2)
    found = {
        "thetas": observer.thetas,
        "losses": observer.losses,
        "inv_freq": module.causal_lm.model.rotary_emb.inv_freq,
    }
    try:
        fit(ranks=2, breaks_on=1)
    except RuntimeError as error:
        found["fault"] = str(error)
    found["alone"] = fit(ranks=1)[1].losses
    return found
