"""What has to hold before the first optimizer step: RoPE is what the config says, and no document sees another.

A wrong RoPE or a leaking mask trains without an error, and the loss falls. So the real module, on the real strategy and
with tokens of the run's own first batch, is probed once at every start. Cost: three forwards of at most 256 tokens.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from datamodules.batch import IGNORE_INDEX, PADDING_DOCUMENT, Batch, shifted_targets, to_device
from lightning_modules.attention.leak_probe import LeakReport, around_edges, probe_leaks
from lightning_modules.attention.registry import PER_DOCUMENT_ATTENTION
from lightning_modules.rope.at_length import same_rotary_tables
from lightning_modules.rope.certificate import rope_faults

# B rows, T tokens

MAX_ROWS, MAX_TOKENS = 4, 256
"""Rows of the first batch that are looked at, and tokens of all of them together."""


class TrainingRefused(ValueError):
    """Training would silently go wrong; all ranks raise it together, with the same words."""


class StartGate(Callback):
    """Refuses to train where RoPE and config disagree, or where a packed document sees another or its own future.

    It looks at the first batch of every fit, resumed or not, and leaves weights, random state and RoPE tables alone.

    Args:
        document_mask: Whether documents of a row are masked from one another. If so, and no row of the first batch has
            two, the beginnings of two rows are joined. If not, a row is one document, and causality is all there is.

    Raises:
        TrainingRefused: Before the first optimizer step, with one sentence for each violation.
    """

    def __init__(self, *, document_mask: bool) -> None:
        self.document_mask = document_mask
        self._passed = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._passed = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._passed:
            return
        started = time.perf_counter()
        causal_lm: Any = pl_module.causal_lm
        faults = rope_faults(causal_lm)
        report = None
        if not _any_rank(bool(faults)):  # a model that cannot say where tokens are is not worth a forward
            report = probe_training(trainer, pl_module, batch, document_mask=self.document_mask)
            faults = leak_faults(report, attention=causal_lm.config._attn_implementation)
        refuse_together(faults)
        self._passed = True
        if trainer.is_global_zero:
            assert report is not None
            logging.getLogger(__name__).info("start gate: %s; %.2f s", said(report), time.perf_counter() - started)


def probe_training(
    trainer: Trainer, pl_module: LightningModule, micro_batches: list[Batch], *, document_mask: bool
) -> LeakReport:
    """Perturbs tokens of the micro-batch with most documents, and compares the losses of its tokens.

    Every token but padding is given a target, so that a prompt, which has no loss in training, is looked at too.
    Dropout is on as in training, and draws the same in every forward.
    """
    model: Any = pl_module.model
    causal_lm: Any = pl_module.causal_lm
    schedule: Any = getattr(pl_module, "length_schedule", None)
    window = None if schedule is None else schedule.attention_window(trainer.global_step)
    packed = max(micro_batches, key=num_documents)
    batch = probe_batch(packed, join=document_mask and num_documents(packed) == len(packed["document_ids"]))
    batch = to_device(batch, pl_module.device)

    def token_losses(input_ids: torch.Tensor) -> torch.Tensor:
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed devices that nothing puts back
        if batch["input_ids"].is_cuda:
            torch.cuda.manual_seed(0)
        with torch.no_grad(), trainer.precision_plugin.train_step_context():
            return model(Batch(**{**batch, "input_ids": input_ids}), window=window).token_losses

    devices = [pl_module.device] if pl_module.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), same_rotary_tables(causal_lm):
        return probe_leaks(
            token_losses,
            batch["input_ids"],
            batch["document_ids"],
            vocab_size=causal_lm.get_input_embeddings().num_embeddings,
            counted=shifted_targets(batch) != IGNORE_INDEX,
            any_rank=_any_rank,
        )


def probe_batch(batch: Batch, *, join: bool = False) -> Batch:
    """A few tokens of a few rows, taken around document edges with their positions and documents as they are.

    Args:
        batch: B rows of T tokens.
        join: Make one row of the beginnings of the first and the last row, as two documents.
    """
    tensors: dict[str, Any] = {**batch}
    if join:
        half = MAX_TOKENS // 2
        short = {name: torch.cat([tensor[:1, :half], tensor[-1:, :half]], 1) for name, tensor in tensors.items()}
        second = short["document_ids"][:, short["document_ids"].shape[1] // 2 :]
        second[second != PADDING_DOCUMENT] = int(batch["document_ids"].max()) + 1
    else:
        document_ids = batch["document_ids"][:MAX_ROWS]
        columns = around_edges(document_ids, num_tokens=MAX_TOKENS // len(document_ids))
        short = {name: tensor[:MAX_ROWS].gather(1, columns) for name, tensor in tensors.items()}
    is_padding = short["document_ids"] == PADDING_DOCUMENT
    short["labels"] = short["input_ids"].masked_fill(is_padding, IGNORE_INDEX)
    return Batch(**short)


def num_documents(batch: Batch) -> int:
    return sum(len(row.unique()) for row in batch["document_ids"])


def leak_faults(report: LeakReport, *, attention: str) -> list[str]:
    """The violations of a report, a sentence each."""
    faults, hint = [], "set attention=per_document"
    if attention == PER_DOCUMENT_ATTENTION:
        hint = "compare with attention=reference, and report it"
    if report.leaks:
        num_moved, num_positions, largest = report.others
        faults.append(
            f"documents of a row see one another: changing tokens of some moved the loss of {num_moved} of "
            f"{num_positions} tokens of others (by up to {largest:.2g}) with attention={attention}; {hint}"
        )
    if report.sees_the_future:
        num_moved, num_positions, largest = report.before
        faults.append(
            f"tokens see their future: changing later ones moved the loss of {num_moved} of {num_positions} before "
            f"them (by up to {largest:.2g}) with attention={attention}; set attention=per_document"
        )
    return faults


def refuse_together(faults: list[str]) -> None:
    """Raises on every rank if there is a fault on any, so that none waits for another in a collective for ever."""
    gathered: list[list[str]] = [faults]
    if dist.is_available() and dist.is_initialized():
        gathered = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, faults)
    found = next((of_rank for of_rank in gathered if of_rank), [])  # other ranks say the same with other numbers
    if found:
        raise TrainingRefused("\n".join(f"training is refused before its first step: {fault}" for fault in found))


def said(report: LeakReport) -> str:
    """The outcome of a passed gate in words."""
    if report.blind:
        return "RoPE is what the config says; changed tokens move nothing, so leaks cannot be seen yet"
    if report.others.num_positions == 0:
        return "RoPE is what the config says; no token sees its future; documents of a row are not masked"
    return "RoPE is what the config says; no document sees another, no token its future"


def _any_rank(value: bool) -> bool:
    if not (dist.is_available() and dist.is_initialized()):
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(float(value), device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return bool(tensor)
