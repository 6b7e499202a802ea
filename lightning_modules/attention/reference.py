"""Document-masked causal attention written out with its mask: the definition that the fast paths are held to.

It holds [B, H, T, T] scores in fp32. For tests and tiny inputs; `per_document.py` is the one to train with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

# B rows, T tokens, H heads, K kv heads, D head dim


def reference_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    document_ids: torch.Tensor,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Each token attends to itself and to the earlier tokens of its document.

    Args:
        query: [B, H, T, D].
        key: [B, K, T, D], where K divides H.
        value: [B, K, T, D].
        document_ids: [B, T] int64.
        scaling: Factor on the scores; D ** -0.5 if None.
        dropout: Probability of dropping an attention weight.

    Returns:
        [B, T, H, D] in the dtype of `query`.
    """
    T, D = query.shape[-2:]
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1).float() for states in (key, value))  # [B, H, T, D]
    same_document = document_ids[:, :, None] == document_ids[:, None, :]
    causal = torch.ones(T, T, dtype=torch.bool, device=query.device).tril()
    mask = (same_document & causal)[:, None]  # [B, 1, T, T]
    scores = query.float() @ key.transpose(-1, -2) * (D**-0.5 if scaling is None else scaling)
    weights = F.dropout(scores.masked_fill(~mask, float("-inf")).softmax(-1), dropout)
    return (weights @ value).transpose(1, 2).to(query.dtype)
