"""The ledger of a run: what it reads of each source, as a file, a table and curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback

from datamodules.base import PackedDataModule
from datamodules.ledger import ledger, ledger_table

POINTS = 20
"""Steps at which the shares and epochs so far are logged."""


class LedgerReport(Callback):
    """Writes `ledger.json` and `ledger.md` when a run starts, and shares, epochs and lengths into TensorBoard.

    The rows of a run are known before its first step, so the curves of the whole run are there at once.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        if not trainer.is_global_zero or not isinstance(data, PackedDataModule):
            return
        found = data.ledger()
        table = ledger_table(found)
        (self.folder / "ledger.json").write_text(json.dumps(found.as_dict(), indent=2) + "\n", encoding="utf-8")
        (self.folder / "ledger.md").write_text(table + "\n", encoding="utf-8")
        if trainer.logger is not None:
            self._log(trainer, data, table)

    def _log(self, trainer: pl.Trainer, data: PackedDataModule, table: str) -> None:
        assert data.rows is not None
        assert data.request is not None
        assert trainer.logger is not None
        plan, per_step = data.rows.plan, data.sequences_per_step
        for step in np.unique(np.linspace(1, data.num_steps, min(POINTS, data.num_steps)).astype(int)).tolist():
            so_far = ledger(plan.take(np.arange(step * per_step)), data.request)
            numbers = {f"data/share/{entry.source}": entry.share for entry in so_far.sources}
            numbers |= {f"data/epochs/{entry.source}": entry.epochs for entry in so_far.sources}
            trainer.logger.log_metrics({**numbers, "data/padding": so_far.padding}, step=step)
        writer: Any = getattr(trainer.logger, "experiment", None)
        if hasattr(writer, "add_text"):
            writer.add_text("data/ledger", table)
        if hasattr(writer, "add_histogram"):
            lengths = plan.lengths
            for number, name in enumerate(plan.names):
                if len(own := lengths[plan.sources == number]):
                    writer.add_histogram(f"data/log2_length/{name}", np.log2(own), bins=[float(k) for k in range(32)])
