"""What our Trainer loop costs over a bare PyTorch loop: same tiny model, same batches, step by step in turns.

    python -m benchmarks.loop_overhead [--briefly]

CPU time of the process is the figure to trust on a shared machine, and there it is the median of the differences of
neighbouring steps: what else runs takes caches and clock rate from both. The goal is at most 1 ms a step.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
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
GOAL_MS = 1.0
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


class Times(NamedTuple):
    """Milliseconds."""

    wall: float
    cpu: float


class InTurns(pl.Callback):
    """Takes a bare step before each step of the Trainer, and the time between bare steps as the Trainer's."""

    def __init__(self) -> None:
        self._bare = bare_loop()
        self._stamps: list[Times] = []  # before and after each bare step, by turns

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._stamps.append(now())
        next(self._bare)
        self._stamps.append(now())

    def steps(self) -> list[tuple[Times, Times]]:
        """A bare step and the Trainer's step that follows it, without the first ones."""
        passed = [Times(b.wall - a.wall, b.cpu - a.cpu) for a, b in pairwise(self._stamps)]
        return [*zip(passed[::2], passed[1::2], strict=False)][WARMUP:]


def now() -> Times:
    return Times(1e3 * time.perf_counter(), 1e3 * time.process_time())


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


def bare_loop() -> Iterator[None]:
    """Forward, backward, clip, step: nothing else."""
    model = CausalLMWithLoss(ModelFromScratch(SETTINGS, seed=0).load().train())
    optimizer = make_optimizer(model)
    for micro_batches in steps_of_batches():
        scale = 1 / sum(map(num_targets, micro_batches))
        for batch in micro_batches:
            (model(batch).loss_sum * scale).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert float(norm) < float("inf")
        optimizer.step()
        optimizer.zero_grad()
        yield


def in_turns(folder: Path) -> list[tuple[Times, Times]]:
    """The bare loop within the Trainer as `recipes.train` builds it.

    With RoPE, gate, progress, checkpoints, and logs every tenth step.
    """
    turns = InTurns()
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
            turns,
            RotaryPatching(Unchanged(), T),
            StartGate(document_mask=True),
            TrainingProgress(),
            StepCheckpoint(folder, every_n_steps=10 * STEPS, keep=1, max_steps=STEPS),
        ],
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(steps_of_batches(), batch_size=None))  # type: ignore[arg-type]
    return turns.steps()


def measure(*, briefly: bool) -> dict[str, Times]:
    """The median step of both loops, and the median of the differences between neighbours.

    Args:
        briefly: No further round once the goal is reached.
    """
    steps: list[tuple[Times, Times]] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            steps += in_turns(Path(folder))
            bare, ours = zip(*steps, strict=True)
            rows = {"bare loop": medians(bare), "our loop": medians(ours)}
            rows["difference"] = medians([Times(b.wall - a.wall, b.cpu - a.cpu) for a, b in steps])
            if briefly and is_reached(rows):
                break
    return rows


def is_reached(rows: dict[str, Times]) -> bool:
    """Whether the Trainer's loop costs as little as it should."""
    return rows["difference"].cpu <= GOAL_MS


def medians(steps: Sequence[Times]) -> Times:
    return Times(median(step.wall for step in steps), median(step.cpu for step in steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--briefly", action="store_true", help="no further round once the goal is reached")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    print(f"{'ms per step':<12} {'wall':>8} {'cpu':>8}")
    for name, times in measure(briefly=arguments.briefly).items():
        print(f"{name:<12} {times.wall:8.3f} {times.cpu:8.3f}")


if __name__ == "__main__":
    main()
