"""AdamW with the papers' rule for what decays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def adamw(
    model: nn.Module,
    *,
    lr: float,
    betas: Sequence[float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decay_norms: bool = False,
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters.

    Args:
        model: Holds the parameters.
        lr: Peak learning rate.
        betas: Decay rates of the two moments.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay of matrices.
        decay_norms: Decay vectors (norm weights, biases) as well, as OpenChatKit's script does with RMSNorm weights.
    """
    beta1, beta2 = betas
    groups = decay_groups(model, weight_decay=weight_decay, decay_norms=decay_norms)
    return torch.optim.AdamW(groups, lr=lr, betas=(beta1, beta2), eps=eps)


def decay_groups(model: nn.Module, *, weight_decay: float, decay_norms: bool) -> list[dict[str, Any]]:
    """The trainable parameters in the groups of an optimizer: those that decay, and those that do not."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trainable if parameter.ndim >= 2 or decay_norms]
    others = [parameter for parameter in trainable if parameter.ndim < 2 and not decay_norms]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
