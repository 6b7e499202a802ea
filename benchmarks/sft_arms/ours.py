"""This project: the module in its Trainer, and the same model and loss in a bare loop."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader
from transformers import PretrainedConfig, PreTrainedModel

from benchmarks.sft_arms.job import Clock, Job, Result, config_of, random_model, row
from datamodules.batch import Batch, target_weight, to_device
from lightning_modules.attention.registry import PER_DOCUMENT_ATTENTION, register_attention_functions
from lightning_modules.memory.activation_memory import ActivationMemory
from lightning_modules.models.causal_lm_with_loss import CausalLMWithLoss
from lightning_modules.optim.adamw import adamw
from lightning_modules.optim.schedules import CosineWithWarmup
from lightning_modules.peft.lora import Lora
from lightning_modules.supervised_finetuning import SupervisedFinetuningModule

LOSS_CHUNK = 2048


@dataclass(frozen=True)
class RandomModel:
    """The benchmark's model, as a `ModelSource`."""

    job: Job

    def config(self) -> PretrainedConfig:
        return config_of(self.job.shape, length=self.job.length)

    def load(self) -> PreTrainedModel:
        register_attention_functions()
        return random_model(self.job, attention=PER_DOCUMENT_ATTENTION)


def _lora(job: Job) -> Lora:
    return Lora(r=job.shape.lora_rank, alpha=2.0 * job.shape.lora_rank)


class _Steps(pl.Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.first_loss = float("nan")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: list[Batch], batch_idx: int) -> None:
        self.clock.begin()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: list[Batch], batch_idx: int
    ) -> None:
        self.clock.end()
        if batch_idx == 0:
            self.first_loss = float(trainer.callback_metrics["loss"])


def through_the_trainer(job: Job) -> Result:
    """`SupervisedFinetuningModule` as `recipes.train` runs it."""
    for message in (".*does not have many workers.*", ".*no `val_dataloader`.*", ".*not resumable.*"):
        warnings.filterwarnings("ignore", message=message)
    clock = Clock(job)
    steps = _Steps(clock)
    module = SupervisedFinetuningModule(
        source=RandomModel(job),
        optimizer=partial(adamw, lr=1e-4),
        lr_schedule=CosineWithWarmup(),
        max_steps=job.num_steps,
        max_seqlen=job.length,
        adapter=_lora(job),
        activation_memory=ActivationMemory(**job.setting),
        loss_chunk_size=LOSS_CHUNK,
    )
    trainer = pl.Trainer(
        accelerator=job.device.type,
        devices=1,
        max_epochs=1,
        precision="bf16-mixed" if job.dtype == torch.bfloat16 else "32-true",
        logger=False,
        callbacks=[steps],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data: Any = [[row(job, step)] for step in range(job.num_steps)]
    trainer.fit(module, DataLoader(data, batch_size=None))
    return clock.result(first_loss=steps.first_loss)


def bare_loop(job: Job) -> Result:
    """The same, without Lightning."""
    causal_lm = RandomModel(job).load()
    _lora(job).apply(causal_lm)
    ActivationMemory(**job.setting).apply(causal_lm)
    causal_lm.train()
    model = CausalLMWithLoss(causal_lm, loss_chunk_size=LOSS_CHUNK)
    optimizer = adamw(model, lr=1e-4)
    clock, first_loss = Clock(job), float("nan")
    for step in range(job.num_steps):
        batch = to_device(row(job, step), job.device)
        clock.begin()
        with torch.autocast(job.device.type, torch.bfloat16, enabled=job.dtype == torch.bfloat16):
            loss = model(batch).loss_sum / target_weight(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.end()
        if step == 0:
            first_loss = float(loss)
    return clock.result(first_loss=first_loss)
