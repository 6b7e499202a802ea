"""LoRA+: B learns faster than A.

With one learning rate for both, A and B cannot both learn efficiently as the model grows wider; the optimal ratio grows
with the width. Cost: none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lightning_modules.peft.lora import Lora


@dataclass(frozen=True)
class LoraPlus(Lora):
    """LoRA whose B has `lr_ratio` times the learning rate of A, of whatever optimizer the recipe has.

    Args:
        lr_ratio: Learning rate of B over that of A; `optimizer.lr` is A's. The paper's rule of thumb is 16.

    Reference:
        Hayou et al. 2024, arXiv:2402.12354, section 4.
    """

    lr_ratio: float = 16.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr_ratio <= 0:
            raise ValueError(f"peft.lr_ratio={self.lr_ratio} must be a number above 0")

    def regroup(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        """Split each group of the optimizer into B's and the others, in place."""
        matrices = {id(p) for name, p in model.named_parameters() if ".lora_B." in name}
        # An optimizer of several parts, such as Muon and AdamW, has the groups of its parts, one after the other.
        parts: Any = getattr(optimizer, "parts", (optimizer,))
        for part in parts:
            part.param_groups[:] = [new for group in part.param_groups for new in self._split(group, matrices)]
        optimizer.param_groups = [group for part in parts for group in part.param_groups]

    def _split(self, group: dict[str, Any], matrices: set[int]) -> Iterator[dict[str, Any]]:
        own = [p for p in group["params"] if id(p) in matrices]
        others = [p for p in group["params"] if id(p) not in matrices]
        if others or not own:
            yield {**group, "params": others}
        if own:
            yield {**group, "params": own, "lr": group["lr"] * self.lr_ratio}
