"""The contract between data and model: what one batch carries.

Facts are carried, never inferred. Whoever makes documents writes `document_ids`; nothing downstream guesses document
edges from end-of-sequence tokens or from jumps in `position_ids`.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

import torch

IGNORE_INDEX = -100
"""Label of a position that contributes no loss."""

PADDING_DOCUMENT = -1
"""`document_ids` of padding: a document of its own, which nobody else sees."""


class Batch(TypedDict):
    """One micro-batch of B rows and T tokens.

    `labels` are not shifted: the loss shifts them, and never across a document edge. Where documents are not masked
    from one another, a row is one document, whatever it was packed from.
    """

    input_ids: torch.Tensor  # [B, T] int64
    labels: torch.Tensor  # [B, T] int64, IGNORE_INDEX where no loss
    position_ids: torch.Tensor  # [B, T] int64, what RoPE sees; may jump or restart
    document_ids: torch.Tensor  # [B, T] int64, who may see whom; need not be contiguous; padding is PADDING_DOCUMENT
    source_ids: NotRequired[torch.Tensor]  # [B, T] int64, the source that a token is of, for the log
    loss_weights: NotRequired[torch.Tensor]  # [B, T] float32, what the loss of a label counts for; all 1 if absent


def shifted_targets(batch: Batch) -> torch.Tensor:
    """Targets of next-token prediction: the label one to the right, within the same document.

    Returns:
        [B, T] int64; IGNORE_INDEX at the last position of each row, where the next token belongs to another document,
        and wherever `labels` says so.
    """
    labels, document_ids = batch["labels"], batch["document_ids"]
    targets = torch.full_like(labels, IGNORE_INDEX)
    same_document = document_ids[:, 1:] == document_ids[:, :-1]
    targets[:, :-1] = torch.where(same_document, labels[:, 1:], IGNORE_INDEX)
    return targets


def shifted_weights(batch: Batch) -> torch.Tensor | None:
    """What the loss at each position counts for: the weight of the label one to the right.

    Returns:
        [B, T] float32, 0 at the last position of each row; None where every label counts the same.
    """
    weights = batch.get("loss_weights")
    return None if weights is None else torch.nn.functional.pad(weights[:, 1:], (0, 1))


def num_targets(batch: Batch) -> int:
    """How many positions of the batch contribute a loss."""
    return int((shifted_targets(batch) != IGNORE_INDEX).sum())


def target_weight(batch: Batch) -> float:
    """The sum of the weights of the positions that contribute a loss; their number where none has a weight."""
    weights = shifted_weights(batch)
    if weights is None:
        return float(num_targets(batch))
    return float(weights[shifted_targets(batch) != IGNORE_INDEX].double().sum())


def to_device(batch: Batch, device: torch.device | str, **options: Any) -> Batch:
    return Batch(**{name: tensor.to(device, **options) for name, tensor in batch.items()})  # type: ignore[typeddict-item]
