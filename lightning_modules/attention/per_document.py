"""Document-masked causal attention without a [T, T] mask: one batched causal call for all documents of a length.

Cost is the sum of squared document lengths, in the memory of a fused kernel. Documents are gathered into blocks of
equal padded length and scattered back. Few distinct lengths matter by themselves: oneDNN on a CPU compiles a kernel for
every shape and keeps it (`python -m benchmarks.attention_shapes`: 200 lengths took 17 ms a call instead of 2.5, and
1.3 GiB that stays), and cuDNN plans for every shape. The alternative is SDPA with a [B, 1, T, T] mask, which costs T^2
whatever the documents, and on a CPU keeps a float copy of the mask for every layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lightning_modules.attention.layout import DocumentLayout

# B rows, T tokens, H heads, K kv heads, D head dim, n documents of padded length S


def per_document_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: DocumentLayout,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Each token attends to itself and to the earlier tokens of its document.

    Args:
        query: [B, H, T, D].
        key: [B, K, T, D], where K divides H.
        value: [B, K, T, D].
        layout: Layout of the batch's documents.
        scaling: Factor on the scores; D ** -0.5 if None.
        dropout: Probability of dropping an attention weight.

    Returns:
        [B, T, H, D]; zero at padding, except where whole rows are padding.
    """
    if layout.whole_rows:
        return _causal(query, key, value, scaling=scaling, dropout=dropout).transpose(1, 2)
    # transformers projects to [B, T, H, D] and transposes, so that this flattening is a view.
    tokens = [states.transpose(1, 2).flatten(0, 1) for states in (query, key, value)]  # [B*T, H or K, D]
    outputs = []
    for block in layout.blocks:
        q, k, v = (states.index_select(0, block.flatten()).unflatten(0, block.shape) for states in tokens)
        output = _causal(*(states.transpose(1, 2) for states in (q, k, v)), scaling=scaling, dropout=dropout)
        outputs.append(output.transpose(1, 2).flatten(0, 1))  # [n*S, H, D]
    outputs.append(tokens[0].new_zeros(1, *tokens[0].shape[1:]))  # nobody reads the attention of padding
    return torch.cat(outputs).index_select(0, layout.places).unflatten(0, (query.shape[0], query.shape[2]))


def _causal(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float | None, dropout: float
) -> torch.Tensor:
    """Fused causal attention of documents of one length: [n, H, S, D], [n, K, S, D] -> [n, H, S, D]."""
    # Measured on a CPU, one thread, forward + backward, H=4 K=2 D=64: enable_gqa 218 ms at S=4096 and 7.2 ms at S=512,
    # repeat_interleave 235 ms and 7.2 ms, and the copies of key and value besides.
    return F.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
