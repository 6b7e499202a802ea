"""The backbone and its loss in one module.

Both stand together so that a sharded output head is gathered inside the forward that uses it (FSDP2), and so that
nothing outside ever holds [T, V] logits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from datamodules.batch import Batch, shifted_targets, shifted_weights
from lightning_modules.attention.layout import DocumentLayout
from lightning_modules.attention.shifted_sparse import ShiftedGroups
from lightning_modules.losses.chunked_cross_entropy import chunked_linear_cross_entropy


class SummedLoss(NamedTuple):
    """The loss of one micro-batch, summed and not averaged: the caller knows what the targets of the step weigh."""

    loss_sum: torch.Tensor  # scalar fp32, weighted where the batch has weights
    token_losses: torch.Tensor  # [B, T] fp32, detached, not weighted, 0 where there is no target
    token_correct: torch.Tensor  # [B, T] bool, where the target is the most likely token


class CausalLMWithLoss(nn.Module):
    """A transformers decoder that turns a `Batch` into its summed next-token loss.

    Args:
        causal_lm: The model, with one of our attention functions selected.
        loss_chunk_size: Positions whose logits exist at a time.
        shifted_group_size: Tokens of a group of shifted sparse attention, in training; None has no groups.
    """

    def __init__(
        self, causal_lm: PreTrainedModel, *, loss_chunk_size: int = 1024, shifted_group_size: int | None = None
    ) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.loss_chunk_size = loss_chunk_size
        self.shifted_group_size = shifted_group_size

    def forward(self, batch: Batch, *, window: int | None = None) -> SummedLoss:
        """The loss of one micro-batch.

        Args:
            batch: B rows of T tokens.
            window: Tokens of the fragments of a row that attention does not leave; None for whole rows. Targets are
                those of the whole row either way.
        """
        targets = shifted_targets(batch)  # [B, T]
        layout = DocumentLayout.from_document_ids(batch["document_ids"], window=window)
        hidden_states = self.causal_lm.get_decoder()(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            use_cache=False,
            document_ids=layout.document_ids,
            document_layout=layout,
            **self._groups(batch, window),
        ).last_hidden_state  # [B, T, H]
        head = self.causal_lm.get_output_embeddings()
        assert head is not None
        weights = shifted_weights(batch)
        loss = chunked_linear_cross_entropy(
            hidden_states.flatten(0, 1),
            output_matrix(head),
            targets.flatten(),
            chunk_size=self.loss_chunk_size,
            weights=None if weights is None else weights.flatten(),
        )
        return SummedLoss(loss.loss_sum, loss.token_losses.view_as(targets), loss.token_correct.view_as(targets))

    def _groups(self, batch: Batch, window: int | None) -> dict[str, Any]:
        if self.shifted_group_size is None or not self.training:
            return {}
        if window is not None:
            raise ValueError(
                "attention=shifted_sparse has groups of its own, and length_schedule.mechanism=window fragments; set"
                " attention=per_document or another length_schedule"
            )
        groups = ShiftedGroups.from_document_ids(batch["document_ids"], group_size=self.shifted_group_size)
        return {"shifted_groups": groups}


def output_matrix(head: nn.Module) -> torch.Tensor:
    """[V, H] that hidden states are multiplied with: the head's weight, or what a head of ours makes of it.

    Index's head normalises its rows; the gradient then flows through the normalisation to the weight.

    Args:
        head: The output embeddings of a causal language model. Under FSDP2, call this in the forward that gathers them.

    Raises:
        ValueError: If an adapter is wrapped around the head, which this loss would not see.
    """
    if hasattr(head, "base_layer"):
        raise ValueError("an adapter on the output head is not seen by the loss; take lm_head out of its targets")
    matrix = getattr(head, "output_matrix", None)
    weight = head.weight if matrix is None else matrix()
    assert isinstance(weight, torch.Tensor)
    return weight
