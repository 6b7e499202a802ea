"""The data of continued pre-training: documents of prepared corpora, every token a label."""

from __future__ import annotations

from datamodules.base import PackedDataModule


class ContinuedPretrainingDataModule(PackedDataModule):
    """Packed documents; see `PackedDataModule`."""
