"""Loss by position: does a token far into a document profit from what stands before it?"""

from __future__ import annotations

import torch
from torchmetrics import Metric


class PositionLoss(Metric):
    """Mean loss of tokens in buckets of their position, and over all tokens.

    Buckets end at powers of two: 0-255, 256-511, 512-1023, … An empty bucket is left out of the result, never NaN.

    Args:
        max_seqlen: Positions reach from 0 to here.
        smallest: End of the first bucket.
    """

    full_state_update = False

    def __init__(self, *, max_seqlen: int, smallest: int = 256) -> None:
        super().__init__()
        self.edges = [smallest]
        while self.edges[-1] < max_seqlen:
            self.edges.append(self.edges[-1] * 2)
        zeros = torch.zeros(len(self.edges), dtype=torch.float64)
        self.add_state("loss_sums", default=zeros.clone(), dist_reduce_fx="sum")
        self.add_state("counts", default=zeros.clone(), dist_reduce_fx="sum")
        self.loss_sums: torch.Tensor
        self.counts: torch.Tensor

    def update(self, token_losses: torch.Tensor, targets: torch.Tensor, position_ids: torch.Tensor) -> None:
        """Add the tokens of a batch.

        Args:
            token_losses: [B, T] fp32.
            targets: [B, T] bool, which positions have a target.
            position_ids: [B, T] int64.
        """
        edges = torch.tensor(self.edges, device=position_ids.device)
        bucket = torch.bucketize(position_ids[targets], edges, right=True).clamp(max=len(self.edges) - 1)
        self.loss_sums.index_add_(0, bucket, token_losses[targets].to(self.loss_sums.dtype))
        self.counts.index_add_(0, bucket, torch.ones_like(bucket, dtype=self.counts.dtype))

    def compute(self) -> dict[str, float]:
        """`loss` over all tokens, and `loss_at/<start>-<end>` for each bucket that has tokens."""
        sums, counts = self.loss_sums.tolist(), self.counts.tolist()
        result = {"loss": sum(sums) / sum(counts)} if sum(counts) else {}
        starts = [0, *self.edges[:-1]]
        for start, end, total, count in zip(starts, self.edges, sums, counts, strict=True):
            if count:
                result[f"loss_at/{start:05d}-{end - 1:05d}"] = total / count
        return result
