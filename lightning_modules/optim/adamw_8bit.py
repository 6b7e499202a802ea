"""AdamW whose moments are held in 8 bits, by bitsandbytes: 2 bytes a parameter and not 8.

Blocks of 256 numbers share a scale, and tensors of less than 4096 numbers stay in 32 bits. Parameters are fp32.

Reference:
    Dettmers et al. 2022, arXiv:2110.02861.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from torch import nn

from lightning_modules.optim.adamw import decay_groups


def adamw_8bit(
    model: nn.Module,
    *,
    lr: float,
    betas: Sequence[float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decay_norms: bool = False,
) -> torch.optim.Optimizer:
    """AdamW with 8-bit moments over the trainable parameters; arguments are those of `adamw`.

    Raises:
        ValueError: bitsandbytes is not installed, or the parameters are sharded, which it does not know.
    """
    refuse_without_bitsandbytes()
    groups = decay_groups(model, weight_decay=weight_decay, decay_norms=decay_norms)
    refuse_sharded(any(hasattr(parameter, "to_local") for group in groups for parameter in group["params"]))
    from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]

    beta1, beta2 = betas
    return AdamW8bit(groups, lr=lr, betas=(beta1, beta2), eps=eps)


def refuse_sharded(sharded: bool) -> None:
    """Says what to choose where parameters are sharded.

    Raises:
        ValueError: They are.
    """
    if sharded:
        raise ValueError("optimizer=adamw_8bit does not work with strategy=fsdp; set optimizer=adamw_bf16")


def refuse_without_bitsandbytes() -> None:
    """Says what to install.

    Raises:
        ValueError: bitsandbytes is not there.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            "optimizer=adamw_8bit needs bitsandbytes, which is not installed; run pip install -e '.[gpu]', or set"
            " optimizer=adamw_bf16"
        )
