"""Fits behind the start gate on two ranks: `python -m tests.distributed.gate_worker <job as JSON>`.

With several devices Lightning starts this module again for each further rank.
"""

import json
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from transformers import AttentionInterface

from datamodules.step_batches import collate
from lightning_modules.callbacks.start_gate import StartGate, TrainingRefused
from tests.lightning_modules.callbacks.test_start_gate import plain_causal_attention
from tests.lightning_modules.tiny_training import (
    RecordedGradients,
    TinySource,
    make_module,
    make_trainer,
    step_loader,
    uneven_rows,
    whole,
)


class FaultOfRankOne(pl.Callback):
    """One rank attends across documents, and the other does not know."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.global_rank == 1:
            pl_module.causal_lm.set_attn_implementation("leaky")


def fit(strategy_name: str, *callbacks: pl.Callback) -> dict[str, torch.Tensor]:
    """Two steps; the first row of rank 0 is one document, those of rank 1 are several."""
    strategy: Any = DDPStrategy(process_group_backend="gloo")
    if strategy_name == "fsdp":
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
    recorded = RecordedGradients()
    trainer = make_trainer(devices=2, strategy=strategy, callbacks=[*callbacks, recorded])
    module = make_module(source=TinySource(settings={"attention_dropout": 0.2}), max_steps=2)
    step = [collate([row]) for row in uneven_rows()[trainer.global_rank :: 2]]
    trainer.fit(module, step_loader([step] * 2))
    return {name: whole(parameter.detach()).clone() for name, parameter in module.causal_lm.named_parameters()}


def main() -> None:
    torch.set_num_threads(1)
    job = json.loads(sys.argv[1])
    AttentionInterface.register("leaky", plain_causal_attention)
    result: dict[str, Any] = {}
    for strategy in ("ddp", "fsdp"):
        result[f"{strategy} without"] = fit(strategy)
        result[f"{strategy} with"] = fit(strategy, StartGate(document_mask=True))
        try:
            fit(strategy, FaultOfRankOne(), StartGate(document_mask=True))
        except TrainingRefused as refusal:
            result[f"{strategy} refusal"] = str(refusal)
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else job.get("rank", 0)
    torch.save(result, Path(job["folder"]) / f"{rank}.pt")


if __name__ == "__main__":
    main()
