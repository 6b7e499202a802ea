"""Our attention functions under our own names in transformers' AttentionInterface.

They are left out of AttentionMaskInterface on purpose: transformers then builds no mask and infers no document edges
from `position_ids`; the facts arrive as keyword arguments of the model call, `model(..., document_layout=layout)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface

from lightning_modules.attention.layout import DocumentLayout
from lightning_modules.attention.per_document import per_document_attention
from lightning_modules.attention.reference import reference_attention
from lightning_modules.attention.shifted_sparse import ShiftedGroups, shifted_sparse_attention

# B rows, T tokens, H heads, K kv heads, D head dim

REFERENCE_ATTENTION = "lcr_reference"
PER_DOCUMENT_ATTENTION = "lcr_per_document"
SHIFTED_SPARSE_ATTENTION = "lcr_shifted_sparse"

AttentionFunction = Callable[..., tuple[torch.Tensor, None]]


def register_attention_functions() -> None:
    """Makes the names known to `set_attn_implementation` and `from_pretrained(attn_implementation=…)`; idempotent."""
    AttentionInterface.register(REFERENCE_ATTENTION, reference_attention_forward)
    AttentionInterface.register(PER_DOCUMENT_ATTENTION, per_document_attention_forward)
    AttentionInterface.register(SHIFTED_SPARSE_ATTENTION, shifted_sparse_attention_forward)


def reference_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    document_layout: DocumentLayout | None = None,
    document_ids: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`reference_attention` in transformers' signature; see `per_document_attention_forward`."""
    if document_ids is None and document_layout is not None:
        document_ids = document_layout.document_ids
    document_ids = _require(REFERENCE_ATTENTION, document_ids)
    _refuse_unsupported(REFERENCE_ATTENTION, query, key, attention_mask, document_ids, kwargs)
    return reference_attention(query, key, value, document_ids, scaling=scaling, dropout=dropout), None


def per_document_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    document_layout: DocumentLayout | None = None,
    document_ids: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`per_document_attention` in transformers' signature.

    Args:
        module: The attention layer that asks.
        query: [B, H, T, D].
        key: [B, K, T, D].
        value: [B, K, T, D].
        attention_mask: Must be None.
        scaling: Factor on the scores.
        dropout: Probability of dropping an attention weight.
        document_layout: Layout of the batch; give it to have it computed once a batch and not once a layer.
        document_ids: [B, T] int64, used where there is no layout.
        **kwargs: Whatever else the model passes down.

    Returns:
        Attention output [B, T, H, D], and None for the weights.

    Raises:
        ValueError: If no documents are given, or the model asks for what this attention has not.
    """
    if document_layout is None:
        document_layout = DocumentLayout.from_document_ids(_require(PER_DOCUMENT_ATTENTION, document_ids))
    _refuse_unsupported(PER_DOCUMENT_ATTENTION, query, key, attention_mask, document_layout.document_ids, kwargs)
    return per_document_attention(query, key, value, document_layout, scaling=scaling, dropout=dropout), None


def shifted_sparse_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    shifted_groups: ShiftedGroups | None = None,
    document_layout: DocumentLayout | None = None,
    document_ids: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`shifted_sparse_attention` while a model trains, and full attention within documents while it does not.

    Args and returns as `per_document_attention_forward`, and `shifted_groups`, which training needs.

    Raises:
        ValueError: If a model in training is given no groups, or asks for what this attention has not.
    """
    if not module.training:
        return per_document_attention_forward(
            *(module, query, key, value, attention_mask, scaling, dropout),
            document_layout=document_layout,
            document_ids=document_ids,
            **kwargs,
        )
    if shifted_groups is None:
        raise ValueError(
            f"attention {SHIFTED_SPARSE_ATTENTION} was given no groups to train with; set attention=shifted_sparse with"
            " its group_size, or call model.eval() for full attention"
        )
    ids = shifted_groups.straight.document_ids
    _refuse_unsupported(SHIFTED_SPARSE_ATTENTION, query, key, attention_mask, ids, kwargs)
    return shifted_sparse_attention(query, key, value, shifted_groups, scaling=scaling, dropout=dropout), None


def _require(name: str, document_ids: torch.Tensor | None) -> torch.Tensor:
    if document_ids is None:
        raise ValueError(
            f"attention {name} was given no documents; call model(..., document_layout=… or document_ids=…)"
        )
    return document_ids


def _refuse_unsupported(
    name: str,
    query: torch.Tensor,
    key: torch.Tensor,
    attention_mask: torch.Tensor | None,
    document_ids: torch.Tensor,
    kwargs: dict[str, Any],
) -> None:
    """Raises rather than let something that shapes the attention be ignored."""
    B, _, T, _ = query.shape
    if document_ids.shape != (B, T):
        raise ValueError(f"document_ids is {list(document_ids.shape)} but attention {name} got B={B} rows of T={T}")
    if key.shape[2] != T:
        raise ValueError(
            f"attention {name} has no cache but got {key.shape[2]} keys for {T} queries; "
            "set use_cache=False, or attn_implementation='sdpa' to generate"
        )
    if attention_mask is not None:
        raise ValueError(f"attention {name} takes document_ids and no attention_mask; give padding PADDING_DOCUMENT")
    window = kwargs.get("sliding_window")
    if window is not None and window < T:
        raise ValueError(
            f"attention {name} has no sliding window but the model's is {window} for T={T}; "
            "set sliding_window=None in the model's config or choose another attention"
        )
    for feature in ("softcap", "s_aux"):
        if kwargs.get(feature) is not None:
            raise ValueError(f"attention {name} has no {feature}, which this model needs; choose another attention")
