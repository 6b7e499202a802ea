"""Shifted sparse attention (S2-Attn): groups of tokens attend within themselves, in half of the heads half a group on.

A document of n tokens costs n * group_size in place of n^2, and the two halves of the heads carry information across
each other's edges. It is for training alone: the model is evaluated, exported and read with full attention, which it
was and stays able to do. Built of two `DocumentLayout`s, and so as exact as `per_document.py`.

    a document of 10 tokens, group_size 4       0 1 2 3 4 5 6 7 8 9
    first half of the heads                    |0 1 2 3|4 5 6 7|8 9|
    second half                                |0 1|2 3 4 5|6 7 8 9|

Groups are counted from the first token of each document, wherever it lies in its row and whatever its positions are.
Without flash attention the paper's code rolls the tokens of the second half by half a group, so that the first tokens
of a row attend within the group of its last ones and see their future; here they are a group of their own.

Reference:
    Chen et al. 2023, arXiv:2309.12307, section 3.2 and appendix B; 8192 tokens in groups of 2048 there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from datamodules.batch import PADDING_DOCUMENT
from lightning_modules.attention.layout import DocumentLayout
from lightning_modules.attention.per_document import per_document_attention

# B rows, T tokens, H heads, K kv heads, D head dim


class ShiftedGroups(NamedTuple):
    """Where the groups of a batch lie, computed once a batch and shared by every layer."""

    straight: DocumentLayout  # of the first half of the heads
    shifted: DocumentLayout  # of the second half

    @classmethod
    def from_document_ids(cls, document_ids: torch.Tensor, *, group_size: int) -> ShiftedGroups:
        """Reads the ids on the host, as `DocumentLayout` does.

        Args:
            document_ids: [B, T] int64; need not be contiguous; padding is PADDING_DOCUMENT.
            group_size: Tokens of a group.

        Raises:
            ValueError: If `group_size` is not an even number of at least 2.
        """
        ids = document_ids.detach().cpu()
        layouts = (
            DocumentLayout.from_document_ids(within_groups(ids, group_size, shifted=shifted))
            for shifted in (False, True)
        )
        return cls(*(layout.to(document_ids.device) for layout in layouts))


def shifted_sparse_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    groups: ShiftedGroups,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Each token attends to itself and to the earlier tokens of its group.

    Args:
        query: [B, H, T, D]; the first H // 2 heads have straight groups, the others shifted ones.
        key: [B, K, T, D], where K divides H.
        value: [B, K, T, D].
        groups: Groups of the batch.
        scaling: Factor on the scores; D ** -0.5 if None.
        dropout: Probability of dropping an attention weight.

    Returns:
        [B, T, H, D].
    """
    H, K = query.shape[1], key.shape[1]
    if K % 2:  # a kv head that serves heads of both halves
        key, value = (states.repeat_interleave(H // K, dim=1) for states in (key, value))
        K = H
    halves = zip(
        groups,
        query.split([H // 2, H - H // 2], dim=1),
        key.split([K // 2, K - K // 2], dim=1),
        value.split([K // 2, K - K // 2], dim=1),
        strict=True,
    )
    outputs = [
        per_document_attention(q, k, v, layout, scaling=scaling, dropout=dropout)
        for layout, q, k, v in halves
        if q.shape[1]
    ]
    return torch.cat(outputs, dim=2)


def within_groups(document_ids: torch.Tensor, group_size: int, *, shifted: bool) -> torch.Tensor:
    """Ids of each document's groups; padding stays padding. [B, T] int64

        document_ids [[5, 5, 9, 5, 5, 9, -1]], group_size = 2     straight [[5, 5, 10, 6, 6, 10, -1]]
                                                                  shifted  [[5, 6, 10, 6, 7, 11, -1]]

    Raises:
        ValueError: If `group_size` is not an even number of at least 2.
    """
    if group_size < 2 or group_size % 2:
        raise ValueError(f"attention.group_size={group_size} must be an even number of at least 2")
    T = document_ids.shape[1]
    _, dense = torch.unique(document_ids, return_inverse=True)  # small numbers, so that the product cannot overflow
    group = (_places_in_documents(dense) + (group_size // 2 if shifted else 0)) // group_size  # [B, T]
    per_document = T // group_size + 2
    return torch.where(document_ids == PADDING_DOCUMENT, PADDING_DOCUMENT, dense * per_document + group)


def _places_in_documents(document_ids: torch.Tensor) -> torch.Tensor:
    """How many tokens of its document come before each token, in its row. [B, T] int64"""
    T = document_ids.shape[1]
    order = torch.argsort(document_ids, dim=1, stable=True)  # [B, T]
    together = document_ids.gather(1, order)
    steps = torch.arange(T, device=document_ids.device).expand_as(together)
    is_first = torch.ones_like(together, dtype=torch.bool)
    is_first[:, 1:] = together[:, 1:] != together[:, :-1]
    begins = torch.where(is_first, steps, 0).cummax(1).values
    return torch.empty_like(document_ids).scatter_(1, order, steps - begins)
