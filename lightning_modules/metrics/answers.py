"""Loss and accuracy of answers by the length of their conversation: what does the model make of a long one?"""

from __future__ import annotations

import torch
from torchmetrics import Metric

from datamodules.batch import PADDING_DOCUMENT

# B rows, T tokens


class AnswerScores(Metric):
    """Mean loss of the label tokens, and the share of them that are the most likely token, overall and by length.

    A conversation's length is the number of tokens of its document in the row, prompt and answers. Buckets end at
    powers of two: 1-256, 257-512, 513-1024, … An empty bucket is left out of the result, never NaN.

    Args:
        max_seqlen: Conversations have at most so many tokens.
        smallest: End of the first bucket.
    """

    full_state_update = False

    def __init__(self, *, max_seqlen: int, smallest: int = 256) -> None:
        super().__init__()
        self.edges = [smallest]
        while self.edges[-1] < max_seqlen:
            self.edges.append(self.edges[-1] * 2)
        zeros = torch.zeros(len(self.edges), dtype=torch.float64)
        for name in ("loss_sums", "num_correct", "counts"):
            self.add_state(name, default=zeros.clone(), dist_reduce_fx="sum")
        self.loss_sums: torch.Tensor
        self.num_correct: torch.Tensor
        self.counts: torch.Tensor

    def update(
        self,
        token_losses: torch.Tensor,
        token_correct: torch.Tensor,
        targets: torch.Tensor,
        document_ids: torch.Tensor,
    ) -> None:
        """Add the tokens of a batch.

        Args:
            token_losses: [B, T] fp32.
            token_correct: [B, T] bool, where the target is the most likely token.
            targets: [B, T] bool, which positions have a target.
            document_ids: [B, T] int64; need not be contiguous.
        """
        edges = torch.tensor(self.edges, device=document_ids.device)
        lengths = document_lengths(document_ids)[targets]
        bucket = torch.bucketize(lengths, edges).clamp(max=len(self.edges) - 1)
        for state, values in (
            (self.loss_sums, token_losses[targets]),
            (self.num_correct, token_correct[targets]),
            (self.counts, torch.ones_like(bucket)),
        ):
            state.index_add_(0, bucket, values.to(state.dtype))

    def compute(self) -> dict[str, float]:
        """`loss` and `accuracy` (0..1), and `loss_of_length/<from>-<to>` and `accuracy_of_length/…` by bucket."""
        sums, correct, counts = self.loss_sums.tolist(), self.num_correct.tolist(), self.counts.tolist()
        if not sum(counts):
            return {}
        result = {"loss": sum(sums) / sum(counts), "accuracy": sum(correct) / sum(counts)}
        starts = [1, *(edge + 1 for edge in self.edges)]
        for start, end, loss, right, count in zip(starts, self.edges, sums, correct, counts, strict=False):
            if count:
                result[f"loss_of_length/{start:05d}-{end:05d}"] = loss / count
                result[f"accuracy_of_length/{start:05d}-{end:05d}"] = right / count
        return result


def document_lengths(document_ids: torch.Tensor) -> torch.Tensor:
    """How many tokens the document of each token has in its row; 0 for padding. [B, T] int64

    document_ids [[5, 5, 9, 5], [5, 5, -1, -1]]     ->     [[3, 3, 1, 3], [2, 2, 0, 0]]
    """
    distinct, dense = torch.unique(document_ids, return_inverse=True)  # dense ids cannot overflow the product
    rows = torch.arange(len(document_ids), device=document_ids.device)[:, None]
    number = rows * len(distinct) + dense  # [B, T] (row, document) as one integer
    counts = torch.bincount(number.flatten(), minlength=len(document_ids) * len(distinct))
    return torch.where(document_ids == PADDING_DOCUMENT, 0, counts[number])
