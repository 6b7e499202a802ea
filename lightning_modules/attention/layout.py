"""Where each document of a batch lies, computed once a batch and shared by every layer.

`document_ids` says who may see whom; fused kernels want whole documents of one length. The layout gathers documents of
about the same length into one block each, so that a block is one batched causal call, whatever the number of documents.
Documents that interleave, as when chunks of several are shuffled together, come out exactly as under the document
mask: gathering keeps the order of tokens within a document, and causality asks for nothing else.
Cost: O(B*T log(B*T)) on the host, once a batch. The alternative, a mask, is O(T^2) a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from datamodules.batch import PADDING_DOCUMENT

# B rows, T tokens, N documents (one document in two rows counts twice: rows never see one another), S padded length

GRANULE = 64
"""Shortest block. Lengths are rounded up to it, and long ones to an eighth of the power of two below them."""


@dataclass(frozen=True, eq=False)
class DocumentLayout:
    """The flattened tokens of a batch, gathered into blocks of documents of about the same length.

        document_ids [[5, 9, 5, 5], [5, 5, -1, -1]]     (as if blocks were 3 and 2 long)
        blocks       [[0, 2, 3]]  [[1, 1], [4, 5]]      a short document repeats its last token: causality hides it
        places       [0, 3, 1, 2, 5, 6, 7, 7]           where each token's result lies; 7 is the zero of padding

    Attributes:
        document_ids: [B, T] int64, as given.
        blocks: Each [n, S] int64, flat positions of the tokens of n documents, in order.
        places: [B*T] int64, the place of each token in the blocks laid end to end; one past the end for padding.
        whole_rows: Each row is exactly one document, so that one batched causal call does without gathering.
    """

    document_ids: torch.Tensor
    blocks: tuple[torch.Tensor, ...]
    places: torch.Tensor
    whole_rows: bool

    @classmethod
    def from_document_ids(cls, document_ids: torch.Tensor, *, window: int | None = None) -> DocumentLayout:
        """Reads the ids on the host: one synchronisation a batch on a GPU, none where they are still on the CPU.

        Args:
            document_ids: [B, T] int64; need not be contiguous; padding is PADDING_DOCUMENT.
            window: Cuts every row into fragments of so many tokens, which attention does not leave; the layout's
                `document_ids` then are those of a document within a fragment. None leaves documents whole.

        Raises:
            ValueError: If `document_ids` is not a matrix of at least one token, or `window` is not positive.
        """
        if document_ids.ndim != 2 or document_ids.numel() == 0:
            raise ValueError(f"document_ids has shape {list(document_ids.shape)}; give [B, T] with at least one token")
        device, ids = document_ids.device, document_ids.detach().cpu()
        if window is not None:
            document_ids = ids = within_fragments(ids, window)
        # Dense ids make (row, document) one integer that cannot overflow, whatever the ids are.
        distinct, dense = torch.unique(ids, return_inverse=True)
        documents = (torch.arange(len(ids))[:, None] * len(distinct) + dense).flatten()  # [B*T]
        _, number, lengths = torch.unique(documents, return_inverse=True, return_counts=True)  # [B*T], [N]
        order = torch.argsort(number, stable=True)  # [B*T] tokens by document, in order within each
        starts = lengths.cumsum(0) - lengths  # [N]
        is_padding = ids.flatten()[order[starts]] == PADDING_DOCUMENT  # [N]

        blocks: list[torch.Tensor] = []
        places = torch.empty_like(order)
        base = 0
        padded = torch.where(is_padding, 0, padded_lengths(lengths))  # [N], 0: in no block
        for length in torch.unique(padded[padded > 0]).flip(0).tolist():
            members = (padded == length).nonzero().flatten()  # [n]
            steps = torch.arange(length)
            real = steps < lengths[members, None]  # [n, S]
            block = order[starts[members, None] + steps.minimum(lengths[members, None] - 1)]  # [n, S]
            places[block[real]] = torch.arange(base, base + block.numel()).view_as(block)[real]
            blocks.append(block)
            base += block.numel()
        places[ids.flatten() == PADDING_DOCUMENT] = base
        layout = cls(document_ids, tuple(blocks), places, whole_rows=len(lengths) == len(ids))
        return layout.to(device)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> DocumentLayout:
        """The same layout with its tensors on `device`."""
        return DocumentLayout(
            document_ids=self.document_ids.to(device, non_blocking=non_blocking),
            blocks=tuple(block.to(device, non_blocking=non_blocking) for block in self.blocks),
            places=self.places.to(device, non_blocking=non_blocking),
            whole_rows=self.whole_rows,
        )


def within_fragments(document_ids: torch.Tensor, window: int) -> torch.Tensor:
    """Ids of each document's part in each fragment of a row; padding stays padding. [B, T] int64

        document_ids [[5, 5, 5, 9, 9, -1]], window = 2     ->     [[0, 0, 3, 4, 7, -1]]: 3 fragments a document

    Reference:
        Zhu et al. 2025, arXiv:2503.15450 (SkyLadder): a row of small causal masks of w tokens each.
    """
    if window < 1:
        raise ValueError(f"window={window} must be a whole number of at least 1")
    T = document_ids.shape[1]
    fragment = torch.arange(T, device=document_ids.device) // window  # [T]
    _, dense = torch.unique(document_ids, return_inverse=True)  # small numbers, so that the product cannot overflow
    return torch.where(document_ids == PADDING_DOCUMENT, PADDING_DOCUMENT, dense * -(-T // window) + fragment)


def padded_lengths(lengths: torch.Tensor) -> torch.Tensor:
    """Document lengths rounded up to few distinct ones: at most 1/8 more from 512 on, multiples of 64 below. [N]"""
    power = 2 ** torch.log2(lengths.double()).floor().long()
    granule = (power // 8).clamp(min=GRANULE)
    return (lengths + granule - 1) // granule * granule
