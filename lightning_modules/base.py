"""What continued pre-training and supervised fine-tuning share: a decoder trained one whole optimizer step at a time.

The gradient of a step is the mean over its target tokens, weighted where the recipe weights samples, across
micro-batches and ranks, whatever the layout. So what the targets of the whole step weigh together (without weights:
their number) is known before its first micro-batch and scales every micro-batch's summed loss.
Lightning's own accumulation averages micro-batch means, which with uneven batches is another gradient (a factor of two
was measured); optimization is therefore manual, and one batch of the loader is one optimizer step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy, SingleDeviceStrategy
from torch import nn
from torchmetrics import Metric
from transformers import PretrainedConfig, PreTrainedModel

from datamodules.batch import IGNORE_INDEX, Batch, shifted_targets, target_weight, to_device
from lightning_modules.length_schedule import LengthSchedule
from lightning_modules.metrics.position_loss import PositionLoss
from lightning_modules.metrics.source_loss import SourceLoss
from lightning_modules.models.causal_lm_with_loss import CausalLMWithLoss, SummedLoss
from lightning_modules.optim.schedules import LrSchedule
from lightning_modules.peft.record import record_of, refuse_other
from lightning_modules.strategies.gradient_sync import synchronise_gradients
from lightning_modules.strategies.sharding import shard

MOST_EMPTY_STEPS = 3
"""Optimizer steps in a row without one label, after which training stops."""


class ModelSource(Protocol):
    """Anything that can say what a model is and then load it."""

    def config(self) -> PretrainedConfig: ...

    def load(self) -> PreTrainedModel: ...


class ModelChange(Protocol):
    """What is done to a loaded model before it trains: adapters, or how its activations are held."""

    def apply(self, causal_lm: PreTrainedModel) -> None: ...


class Adapter(ModelChange, Protocol):
    """A change that leaves most of the model frozen."""

    def regroup(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None: ...

    def on_train_start(self, causal_lm: PreTrainedModel, *, is_global_zero: bool) -> None: ...


class CausalLMModule(pl.LightningModule):
    """A causal language model in training.

    Args:
        source: Where the model comes from.
        optimizer: Makes the optimizer from the model.
        lr_schedule: Multiplier of the learning rate by step.
        max_steps: Optimizer steps of the run.
        max_seqlen: Tokens of a row, for the loss by position.
        gradient_clip_norm: Largest norm of a step's gradient; None does not clip.
        adapter: Puts adapters into the model and freezes the rest; None trains every parameter.
        activation_memory: How activations are held between forward and backward; None holds them all.
        loss_chunk_size: Positions whose logits exist at a time.
        log_every_n_steps: How often numbers are gathered and logged; other steps only train.
        compute_dtype: Working precision of a sharded model; elsewhere the trainer's precision decides.
        length_schedule: Length of the sequences and of the attention, and tokens, by step; None has whole rows at every
            step.
        source_names: The sources that `source_ids` of a batch count; two or more have their losses logged apart.
        seed: Seeds dropout, per step and rank, so that a resumed run draws the same.
        shifted_group_size: Tokens of a group of shifted sparse attention; None where attention has no groups.
    """

    def __init__(
        self,
        *,
        source: ModelSource,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        lr_schedule: LrSchedule,
        max_steps: int,
        max_seqlen: int,
        gradient_clip_norm: float | None = 1.0,
        adapter: Adapter | None = None,
        activation_memory: ModelChange | None = None,
        loss_chunk_size: int = 1024,
        log_every_n_steps: int = 10,
        compute_dtype: torch.dtype = torch.float32,
        length_schedule: LengthSchedule | None = None,
        source_names: Sequence[str] = (),
        seed: int = 0,
        shifted_group_size: int | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.source = source
        self.make_optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.max_steps = max_steps
        self.max_seqlen = max_seqlen
        self.gradient_clip_norm = gradient_clip_norm
        self.adapter = adapter
        self.activation_memory = activation_memory
        self.loss_chunk_size = loss_chunk_size
        self.log_every_n_steps = log_every_n_steps
        self.compute_dtype = compute_dtype
        self.length_schedule = length_schedule
        self.seed = seed
        self.shifted_group_size = shifted_group_size
        self.model: CausalLMWithLoss | None = None
        self.source_loss = SourceLoss(source_names) if len(source_names) > 1 else None
        self._make_metrics()
        self._last_log = (0, time.perf_counter())
        self._last_context_length = max_seqlen
        self._empty_steps = 0

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model inside."""
        assert self.model is not None, "the model is built in configure_model"
        return self.model.causal_lm

    def configure_model(self) -> None:
        if self.model is not None:
            return
        causal_lm = self.source.load()
        for change in (self.adapter, self.activation_memory):
            if change is not None:
                change.apply(causal_lm)
        refuse_rounded_training(causal_lm)
        causal_lm.train()
        self.model = CausalLMWithLoss(
            causal_lm, loss_chunk_size=self.loss_chunk_size, shifted_group_size=self.shifted_group_size
        )
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            assert self.device_mesh is not None
            shard(self.model, mesh=self.device_mesh["data_parallel"], compute_dtype=self.compute_dtype)

    def configure_optimizers(self) -> dict[str, Any]:
        assert self.model is not None
        optimizer = self.make_optimizer(self.model)
        if self.adapter is not None:
            self.adapter.regroup(optimizer, self.model)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.lr_schedule.multiplier(step, max_steps=self.max_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def forward(self, batch: Batch) -> SummedLoss:
        assert self.model is not None
        return self.model(batch)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leaves a training step's micro-batches where they are: each moves when its turn comes."""
        return batch if self.trainer.training else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if (record := record_of(self.causal_lm)) is not None:
            checkpoint["adapter"] = record

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        refuse_other(checkpoint.get("adapter"), self.causal_lm, what="the checkpoint")

    def on_train_start(self) -> None:
        if self.adapter is not None:
            self.adapter.on_train_start(self.causal_lm, is_global_zero=self.trainer.is_global_zero)
        self._last_log = (self.global_step, time.perf_counter())

    def training_step(self, micro_batches: list[Batch], batch_idx: int) -> None:
        """One optimizer step over this rank's micro-batches."""
        assert self.model is not None
        step = self.global_step
        self._seed_dropout(step)
        optimizer: Any = self.optimizers()
        weight = self._weight_of_step(micro_batches)
        if weight == 0:
            self._leave_out(step, optimizer)
            return
        self._empty_steps = 0
        scale = self.trainer.world_size / weight  # strategies average over ranks
        logs = self._logs_at(step)
        window = self._window_at(step)
        for k, micro_batch in enumerate(micro_batches):
            batch = to_device(micro_batch, self.device, non_blocking=True)
            last = k == len(micro_batches) - 1
            with synchronise_gradients(self.trainer.strategy, self.model, last=last):
                loss: SummedLoss = self.model(batch, window=window)
                self._backward(loss.loss_sum * scale)
            if logs:
                self._observe(batch, loss)
        gradient_norm = self._clip()
        optimizer.step()
        optimizer.zero_grad()
        schedule: Any = self.lr_schedulers()
        lr = schedule.get_last_lr()[0]
        schedule.step()
        if logs:
            self._log_step(step, micro_batches, lr=lr, gradient_norm=gradient_norm)

    def _make_metrics(self) -> None:
        """Those that a stage may have others of; whatever they are, `loss` is among their numbers."""
        self.train_loss: Metric = PositionLoss(max_seqlen=self.max_seqlen)
        self.val_loss: Metric = PositionLoss(max_seqlen=self.max_seqlen)

    def _observe(self, batch: Batch, loss: SummedLoss) -> None:
        """Take a micro-batch of a step that is logged into the metrics of training."""
        targets = shifted_targets(batch) != IGNORE_INDEX
        self.train_loss.update(loss.token_losses, targets, batch["position_ids"])
        if self.source_loss is not None and (source_ids := batch.get("source_ids")) is not None:
            self.source_loss.update(loss.token_losses, targets, source_ids)

    def _observed(self) -> dict[str, float]:
        """What the metrics of training say, `loss` among it, and forget; on every rank alike, as they meet here."""
        numbers = self.train_loss.compute()
        self.train_loss.reset()
        if self.source_loss is not None and self.source_loss.update_called:
            numbers |= self.source_loss.compute()
            self.source_loss.reset()
        return numbers

    def _observe_validation(self, batch: Batch, loss: SummedLoss) -> None:
        """Take a batch into the metric of validation."""
        self.val_loss.update(loss.token_losses, shifted_targets(batch) != IGNORE_INDEX, batch["position_ids"])

    def _backward(self, loss: torch.Tensor) -> None:
        # Lightning's hooks around a backward pass prepare DDP's reducer; on one device nothing needs them, and they
        # cost about 0.2 ms a step of the at most 1 ms that our loop may take (benchmarks/loop_overhead.py).
        if isinstance(self.trainer.strategy, SingleDeviceStrategy):
            loss.backward()
        else:
            self.manual_backward(loss)

    def _context_length(self, step: int) -> int:
        return self.max_seqlen if self.length_schedule is None else self.length_schedule.context_length(step)

    def _window_at(self, step: int) -> int | None:
        """The fragments that attention stays within at a step; a change of the context length is said in the log."""
        length = self._context_length(step)
        if length != self._last_context_length and self.trainer.is_global_zero:
            logging.getLogger(__name__).info(
                "step %d: context length %d of %d from here", step + 1, length, self.max_seqlen
            )
        self._last_context_length = length
        return None if self.length_schedule is None else self.length_schedule.attention_window(step)

    def _seed_dropout(self, step: int) -> None:
        # torch.manual_seed would format the call stack for every kind of device that is not there, and keep it: 0.5 ms
        # and a few kilobytes a step.
        seed = hash((self.seed, step, self.global_rank))
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _weight_of_step(self, micro_batches: list[Batch]) -> float:
        """What the target tokens of the whole optimizer step weigh, over all micro-batches and ranks."""
        own = torch.tensor(sum(map(target_weight, micro_batches)), device=self.device, dtype=torch.float64)
        return float(self.trainer.strategy.reduce(own, reduce_op="sum"))

    def _leave_out(self, step: int, optimizer: Any) -> None:
        """A step without one label, on any rank: it is counted and said, and changes no weight.

        Raises:
            ValueError: It is one of several in a row, so that something is wrong with the labels.
        """
        self._empty_steps += 1
        if self._empty_steps == MOST_EMPTY_STEPS:
            raise ValueError(
                f"optimizer step {step + 1} has no target token, as the {MOST_EMPTY_STEPS - 1} before it; every label"
                " is masked: look at the data with python -m recipes.show data"
            )
        if self.trainer.is_global_zero:
            logging.getLogger(__name__).warning(
                "step %d has no target token, as every label is masked; nothing is trained in it", step + 1
            )
        optimizer.step()  # without gradients it touches no weight and no state, and the step counts
        schedule: Any = self.lr_schedulers()
        schedule.step()

    def _clip(self) -> float:
        """Clip the gradient of the step and return its norm before clipping.

        Raises:
            FloatingPointError: The gradient is not finite; the weights have not been touched.
        """
        assert self.model is not None
        limit = self.gradient_clip_norm if self.gradient_clip_norm is not None else float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        value = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # type: ignore[operator]
        if not value < float("inf"):
            raise FloatingPointError(
                f"the gradient of optimizer step {self.global_step} is not finite ({value}); nothing was updated."
                " Lower optimizer.lr, or look at the step's sequences"
            )
        return value

    def _logs_at(self, step: int) -> bool:
        every = self.log_every_n_steps
        return step % every == every - 1 or step in (0, self.max_steps - 1)

    def _log_step(self, step: int, micro_batches: list[Batch], *, lr: float, gradient_norm: float) -> None:
        losses = self._observed()
        tokens = self._tokens_read(step, micro_batches)
        last_step, last_time = self._last_log
        since = tokens - (self._tokens_read(last_step - 1, micro_batches) if last_step else 0)
        now = time.perf_counter()
        self._last_log = (step + 1, now)
        numbers = {
            **{f"train/{name}": value for name, value in losses.items()},
            "train/lr": lr,
            "train/gradient_norm": gradient_norm,
            "train/tokens_per_second": since / max(now - last_time, 1e-9),
            "train/tokens": float(tokens),
            "train/context_length": float(self._context_length(step)),
        }
        if self.logger is not None:
            self.logger.log_metrics(numbers, step=step + 1)
        if self.trainer.is_global_zero:
            logging.getLogger(__name__).info(
                "step %d/%d: loss %.4f, lr %.3g, gradient norm %.3g, %.0f tokens/s",
                *(step + 1, self.max_steps, losses["loss"], lr, gradient_norm, numbers["train/tokens_per_second"]),
            )
        progress = {"loss": losses["loss"], "lr": lr, "tok/s": numbers["train/tokens_per_second"]}
        self.log_dict(progress, prog_bar=True, logger=False)

    def _tokens_read(self, step: int, micro_batches: list[Batch]) -> int:
        """Tokens up to the end of a step; without a plan of the run, as if every step were like these micro-batches."""
        if self.length_schedule is not None:
            return self.length_schedule.tokens_read(step)
        return sum(batch["input_ids"].numel() for batch in micro_batches) * self.trainer.world_size * (step + 1)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert self.model is not None
        self._observe_validation(batch, self.model(batch))

    def on_validation_epoch_end(self) -> None:
        losses = self.val_loss.compute()
        self.val_loss.reset()
        if losses and self.logger is not None and not self.trainer.sanity_checking:
            self.logger.log_metrics({f"val/{name}": value for name, value in losses.items()}, step=self.global_step)
        if losses:
            self.log("val_loss", losses["loss"], prog_bar=True, logger=False)


def refuse_rounded_training(causal_lm: PreTrainedModel) -> None:
    """Refuse to train parameters that are held in less than fp32, where most of a step's change is rounded away.

    Raises:
        ValueError: There are some.
    """
    held = {str(p.dtype).removeprefix("torch.") for p in causal_lm.parameters() if p.requires_grad} - {"float32"}
    if held:
        raise ValueError(
            f"parameters that train are held in {held.pop()}, which rounds small changes away; set"
            " model.source.dtype=float32, or peft=lora to freeze the model"
        )
