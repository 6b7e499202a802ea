"""Muon for the matrices of the layers, AdamW for everything else, as one optimizer.

Muon orthogonalises the momentum of a weight matrix before it is applied, so that all its directions move at one rate.
The demo's base model learned to look back within 0.8 M tokens under it; trials with AdamW had not after 2 M (the header
of `conf/recipe/demo/base.yaml` says which).
Cost: five small matrix products per matrix and step. Embeddings, head and vectors stay with AdamW, as its authors say.

Reference:
    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al. 2025, arXiv:2502.16982,
    section 2.2, for scaling an update to AdamW's root mean square, which makes one learning rate serve both parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn


def muon(
    model: nn.Module,
    *,
    lr: float,
    betas: Sequence[float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.95,
) -> MuonAndAdamW:
    """Muon over the matrices inside the layers, AdamW over embeddings, head and vectors.

    Args:
        model: Holds the parameters; those of embeddings and of the output head are told by their modules.
        lr: Peak learning rate of both parts.
        betas: AdamW's decay rates of the two moments.
        eps: AdamW's, added to the root of the second moment.
        weight_decay: Decoupled weight decay of matrices.
        momentum: Muon's.
    """
    outside = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    causal_lm: Any = getattr(model, "causal_lm", model)
    if hasattr(causal_lm, "get_output_embeddings") and (head := causal_lm.get_output_embeddings()) is not None:
        outside |= {id(p) for p in head.parameters()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trainable if p.ndim == 2 and id(p) not in outside]
    decayed = [p for p in trainable if p.ndim == 2 and id(p) in outside]
    vectors = [p for p in trainable if p.ndim != 2]
    beta1, beta2 = betas
    return MuonAndAdamW(
        torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [{"params": decayed, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=lr,
            betas=(beta1, beta2),
            eps=eps,
        ),
    )


class MuonAndAdamW(torch.optim.Optimizer):
    """Two optimizers over disjoint parameters that schedules, clipping and checkpoints see as one."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self.parts = (first, second)
        super().__init__([*first.param_groups, *second.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Both parts work on this optimizer's own groups and state."""
        split = len(self.parts[0].param_groups)
        for part, groups in zip(self.parts, (self.param_groups[:split], self.param_groups[split:]), strict=True):
            part.param_groups = groups
            part.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss
