"""Steps of conversations that do not divide over two ranks, through the data module and the Trainer.

    samples_per_step=5, one conversation a row, one epoch of 11
    rows of the steps      5 | 5 | 1 and four that the step does not need
    computed by rank 0     3 | 3 | 1
                rank 1     2 and an empty one | 2 and an empty one | nothing but an empty one

Validation has one row, so that one of two ranks has none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from datamodules.packing.padded import Padded
from lightning_modules.optim.schedules import CosineWithWarmup
from lightning_modules.supervised_finetuning import SupervisedFinetuningModule
from recipes.build import quiet
from tests.datamodules.test_supervised_finetuning import LENGTHS, Data
from tests.lightning_modules.tiny_training import MAX_SEQLEN, RecordedGradients, TinySource, make_trainer

LENGTHS_WITH_VALIDATION = {**LENGTHS, "validation": [26]}


def conversations(folder: Path) -> Data:
    """The data module over the stores in `folder`."""
    validation: Any = "of the store"
    data = Data(
        sources=dict.fromkeys(LENGTHS),  # type: ignore[arg-type]
        packing=Padded(MAX_SEQLEN),
        tokens_per_step=None,
        samples_per_step=5,
        micro_batch_size=2,
        max_steps=None,
        epochs=1,
        loss_weighting="sqrt",
        validation=validation,
        validation_sequences=1,
        seed=3,
        cache_dir=str(folder / "cache"),
    )
    data.folder, data.lengths = folder, LENGTHS_WITH_VALIDATION
    return data


def sampled_steps(folder: Path, *, strategy: str = "single") -> dict[str, Any]:
    """Train without changing a weight; what a rank computed, the gradients of the steps and the loss of validation."""
    strategies: dict[str, Any] = {
        "single": "auto",
        "ddp": DDPStrategy(process_group_backend="gloo"),
        "fsdp": ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo"),
    }
    quiet()
    recorded, data = RecordedGradients(), conversations(folder)
    data.prepare_data()
    ranks = 1 if strategy == "single" else 2
    trainer = make_trainer(devices=ranks, strategy=strategies[strategy], callbacks=[recorded], num_sanity_val_steps=0)
    module = SupervisedFinetuningModule(
        source=TinySource(),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.0),
        lr_schedule=CosineWithWarmup(),
        max_steps=data.num_steps,
        max_seqlen=MAX_SEQLEN,
        gradient_clip_norm=None,
        log_every_n_steps=1,
    )
    trainer.fit(module, datamodule=data)
    return {
        "gradients": recorded.steps,
        "rows": [sum(len(batch["input_ids"]) for batch in step) for step in data.train_dataloader()],
        "tokens": [sum(_num_tokens(batch) for batch in step) for step in data.train_dataloader()],
        "val_loss": float(trainer.callback_metrics["val_loss"]),
    }


def _num_tokens(batch: Any) -> int:
    return int((batch["document_ids"] >= 0).sum())
