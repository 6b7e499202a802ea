"""What our Trainer loop costs over a bare PyTorch loop: same tiny model, same batches, in turns, median step.

    python -m benchmarks.loop_overhead

CPU time of the process is the figure to trust on a shared machine. The goal is at most 1 ms a step.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from datamodules.batch import Batch, num_targets
from lightning_modules.callbacks.progress import TrainingProgress
from lightning_modules.callbacks.rope_patching import RotaryPatching
from lightning_modules.callbacks.start_gate import StartGate
from lightning_modules.callbacks.step_checkpoint import StepCheckpoint
from lightning_modules.continued_pretraining import ContinuedPretrainingModule
from lightning_modules.loading import ModelFromScratch
from lightning_modules.models.causal_lm_with_loss import CausalLMWithLoss
from lightning_modules.optim.adamw import adamw
from lightning_modules.optim.schedules import CosineWithWarmup
from lightning_modules.rope.methods import Unchanged

# B rows, T tokens
B, T, VOCAB_SIZE, MICRO_BATCHES = 2, 64, 256, 2
STEPS, ROUNDS, WARMUP = 60, 5, 10
SETTINGS = {
    "model_type": "llama",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": T,
}


class Clock:
    """Stamps of wall and CPU time, one at the same place of every step."""

    def __init__(self) -> None:
        self.stamps: list[tuple[float, float]] = []

    def stamp(self) -> None:
        self.stamps.append((time.perf_counter(), time.process_time()))

    def steps(self) -> list[tuple[float, float]]:
        """Wall and CPU milliseconds of each step after the warm-up."""
        pairs = list(zip(self.stamps, self.stamps[1:], strict=False))[WARMUP:]
        return [(1e3 * (b[0] - a[0]), 1e3 * (b[1] - a[1])) for a, b in pairs]


class StampSteps(pl.Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.clock.stamp()


class Row(NamedTuple):
    name: str
    wall: float
    cpu: float


def steps_of_batches() -> list[list[Batch]]:
    generator = torch.Generator().manual_seed(0)
    step: list[Batch] = []
    for _ in range(MICRO_BATCHES):
        tokens = torch.randint(0, VOCAB_SIZE, (B, T), generator=generator)
        positions = torch.arange(T).expand(B, T).clone()
        step.append(Batch(input_ids=tokens, labels=tokens, position_ids=positions, document_ids=positions // T))
    return [step] * STEPS


def make_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    return adamw(model, lr=1e-3, weight_decay=0.1)


def bare_loop() -> Clock:
    """Forward, backward, clip, step: nothing else."""
    model = CausalLMWithLoss(ModelFromScratch(SETTINGS, seed=0).load().train())
    optimizer, clock = make_optimizer(model), Clock()
    for micro_batches in steps_of_batches():
        clock.stamp()
        scale = 1 / sum(map(num_targets, micro_batches))
        for batch in micro_batches:
            (model(batch).loss_sum * scale).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert float(norm) < float("inf")
        optimizer.step()
        optimizer.zero_grad()
    return clock


def our_loop(folder: Path) -> Clock:
    """The Trainer as `recipes.train` builds it: RoPE, gate, progress, checkpoints, and logs every tenth step."""
    clock = Clock()
    module = ContinuedPretrainingModule(
        source=ModelFromScratch(SETTINGS, seed=0),
        optimizer=make_optimizer,
        lr_schedule=CosineWithWarmup(),
        max_steps=STEPS,
        max_seqlen=T,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=TensorBoardLogger(str(folder), name="", version="tensorboard"),
        callbacks=[
            StampSteps(clock),
            RotaryPatching(Unchanged(), T),
            StartGate(document_mask=True),
            TrainingProgress(),
            StepCheckpoint(folder, every_n_steps=10 * STEPS, keep=1, max_steps=STEPS),
        ],
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(steps_of_batches(), batch_size=None))  # type: ignore[arg-type]
    return clock


def measure() -> list[Row]:
    """Medians of both loops and their difference, in milliseconds a step."""
    bare: list[tuple[float, float]] = []
    ours: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            bare += bare_loop().steps()
            ours += our_loop(Path(folder)).steps()
    rows = [
        Row(name, median(wall for wall, _ in steps), median(cpu for _, cpu in steps))
        for name, steps in (("bare loop", bare), ("our loop", ours))
    ]
    return [*rows, Row("difference", rows[1].wall - rows[0].wall, rows[1].cpu - rows[0].cpu)]


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    print(f"{'ms per step':<12} {'wall':>8} {'cpu':>8}")
    for row in measure():
        print(f"{row.name:<12} {row.wall:8.3f} {row.cpu:8.3f}")


if __name__ == "__main__":
    main()
