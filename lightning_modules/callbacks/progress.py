"""Progress in one line: `train  37/80  loss 3.41  lr 9e-4  8.1K tok/s  00:12 left`.

On a terminal the line is redrawn; elsewhere (a file, a scheduler's log) whole lines come, the first and the last of
them and one every few seconds.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any, TextIO

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

REDRAW_SECONDS = 0.2
PLAIN_SECONDS = 10.0
BAR_FORMAT = "{desc}  {remaining} left"
ASSUMED_COLUMNS, ASSUMED_ROWS = 80, 24
"""Of a terminal that says it has none, as the pseudo-terminals of containers and schedulers do."""


class TrainingProgress(ProgressBar):
    """The line above, on standard error; it reads what the module logs with `prog_bar=True`."""

    def __init__(self) -> None:
        super().__init__()
        self.is_enabled = True
        self._bar: tqdm[Any] | None = None
        self._next = 0.0

    def disable(self) -> None:
        self.is_enabled = False

    def enable(self) -> None:
        self.is_enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._next = 0.0
        if self.is_enabled and sys.stderr.isatty():
            total, done = int(trainer.num_training_batches), trainer.global_step
            columns, rows = terminal_size(sys.stderr)
            self._bar = tqdm(
                total=total, initial=done, file=sys.stderr, bar_format=BAR_FORMAT, ncols=columns, nrows=rows
            )
            self._bar.dynamic_ncols = terminal_size  # asked at every drawing; tqdm's own takes 0 columns at their word

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now, step, total = time.monotonic(), trainer.global_step, int(trainer.num_training_batches)
        if not self.is_enabled or (now < self._next and step < total):
            return
        self._next = now + (PLAIN_SECONDS if self._bar is None else REDRAW_SECONDS)
        self._show("train", step, total, trainer.progress_bar_metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.is_enabled and self._bar is not None and not trainer.sanity_checking:
            step, total = trainer.global_step, int(trainer.num_training_batches)
            self._show("train", step, total, trainer.progress_bar_metrics)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _show(self, name: str, step: int, total: int, numbers: dict[str, Any]) -> None:
        line = progress_line(name, step, total, numbers)
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.n = step
            self._bar.set_description_str(line, refresh=True)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def terminal_size(stream: TextIO) -> tuple[int, int]:
    """Columns and rows that a line may fill."""
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except OSError:  # no terminal after all, or none any more
        columns, rows = 0, 0
    return columns or ASSUMED_COLUMNS, rows or ASSUMED_ROWS


def progress_line(name: str, step: int, total: int, numbers: dict[str, Any]) -> str:
    """`train  37/80  loss 3.41  lr 9e-4  8.1K tok/s`, with what is there of the numbers."""
    parts = [name, f"{step}/{total}"]
    if "loss" in numbers:
        parts.append(f"loss {float(numbers['loss']):.2f}")
    if "val_loss" in numbers:
        parts.append(f"val loss {float(numbers['val_loss']):.2f}")
    if "lr" in numbers:
        mantissa, exponent = f"{float(numbers['lr']):.1e}".split("e")
        parts.append(f"lr {mantissa.removesuffix('.0')}e{int(exponent)}")
    if "tok/s" in numbers:
        speed = tqdm.format_sizeof(float(numbers["tok/s"])).upper()
        parts.append(f"{speed} tok/s")
    return "  ".join(parts)
