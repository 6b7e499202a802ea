"""Fits behind the start gate on two ranks, and one that the gate refuses."""

from __future__ import annotations

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


def gated(job: dict[str, Any]) -> dict[str, Any]:
    """The weights without and with the gate, and what each rank says where one of them forgets documents."""
    AttentionInterface.register("leaky", plain_causal_attention)
    strategy = job["strategy"]
    found: dict[str, Any] = {"without": fit(strategy), "with": fit(strategy, StartGate(document_mask=True))}
    try:
        fit(strategy, FaultOfRankOne(), StartGate(document_mask=True))
    except TrainingRefused as refusal:
        found["refusal"] = str(refusal)
    return found
