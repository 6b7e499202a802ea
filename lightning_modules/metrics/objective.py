"""What a step minimises, beside the plain loss: the weighted mean, and how many labels there are."""

from __future__ import annotations

import torch
from torchmetrics import Metric

from datamodules.batch import IGNORE_INDEX, Batch, shifted_targets, target_weight


class Objective(Metric):
    """The weighted mean of the losses of a step's labels, and their number, over micro-batches and ranks."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("loss_sum", "weight", "num_labels", "num_weighted"):
            self.add_state(name, default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.loss_sum: torch.Tensor
        self.weight: torch.Tensor
        self.num_labels: torch.Tensor
        self.num_weighted: torch.Tensor

    def update(self, batch: Batch, loss_sum: torch.Tensor) -> None:
        """Add a micro-batch.

        Args:
            batch: With or without `loss_weights`.
            loss_sum: Scalar; weighted where the batch has weights.
        """
        num_labels = (shifted_targets(batch) != IGNORE_INDEX).sum()
        self.loss_sum += loss_sum.detach().double()
        self.weight += target_weight(batch)
        self.num_labels += num_labels
        self.num_weighted += num_labels if "loss_weights" in batch else 0

    def compute(self) -> dict[str, float]:
        """`label_tokens`, and `objective` where labels have weights."""
        result = {"label_tokens": float(self.num_labels)}
        if self.num_weighted and self.weight:
            result["objective"] = float(self.loss_sum / self.weight)
        return result
