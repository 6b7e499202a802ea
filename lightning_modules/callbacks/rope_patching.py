"""RoPE as a contract of a training run: written before the first step, read back, and the same after the last."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.rope.methods import RopeMethod
from lightning_modules.rope.patch import apply_rope_method, assert_rope

__all__ = ["RotaryPatching", "apply_rope_method"]


class RotaryPatching(Callback):
    """Applies a RoPE method to `pl_module.causal_lm` when a fit starts, after precision and strategy have converted it.

    A checkpoint carries the `rope_parameters`, and one trained under others is refused.

    Args:
        method: What the recipe changes about RoPE.
        context_length: Tokens that the recipe wants read.
    """

    def __init__(self, method: RopeMethod, context_length: int) -> None:
        self.method = method
        self.context_length = context_length
        self.rope_parameters: dict[str, Any] | None = None
        self._of_checkpoint: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model = _causal_lm(pl_module)
        self.rope_parameters = apply_rope_method(model, self.method, self.context_length)
        # Some strategies restore a checkpoint before this hook and some after it.
        self._refuse_other_checkpoint()
        if trainer.is_global_zero:
            logging.getLogger(__name__).info(
                "RoPE: %s for context_length=%d gives rope_parameters=%s, max_position_embeddings=%d",
                self.method,
                self.context_length,
                self.rope_parameters,
                model.config.max_position_embeddings,
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model = _causal_lm(pl_module)
        assert self.rope_parameters is not None
        before = model.rope_before_patching
        assert_rope(
            model, self.rope_parameters, self.method.covered_length(before.original_length, self.context_length)
        )

    def state_dict(self) -> dict[str, Any]:
        return {} if self.rope_parameters is None else {"rope_parameters": self.rope_parameters}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._of_checkpoint = state_dict["rope_parameters"]
        self._refuse_other_checkpoint()

    def _refuse_other_checkpoint(self) -> None:
        ours, theirs = self.rope_parameters, self._of_checkpoint
        if ours is not None and theirs is not None and ours != theirs:
            raise ValueError(
                f"the checkpoint was trained with rope_parameters={theirs} but this run has {ours}; "
                "set rope to the checkpoint's or start without it"
            )


def _causal_lm(pl_module: LightningModule) -> Any:
    model = pl_module.causal_lm
    assert isinstance(model, torch.nn.Module)
    return model
