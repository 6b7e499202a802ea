"""RoPE as a contract of a training run: written before the first step, read back, and the same after the last.

Where the context length grows with the steps, RoPE can grow with it (a progressive base, or a factor by length): then
the contract is of every step, and holds for resuming too.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.rope.closed_form import CLOSED_FORMS, closed_form_inv_freq
from lightning_modules.rope.config import base_rope, head_dim_of, long_range_parameters
from lightning_modules.rope.contract import assert_rope
from lightning_modules.rope.methods import ExtendedRope, RopeMethod
from lightning_modules.rope.patch import apply_rope_method, config_before_patching, extend_rope, rope_for

__all__ = ["RotaryPatching", "apply_rope_method"]


class RotaryPatching(Callback):
    """Applies a RoPE method to `pl_module.causal_lm` when a fit starts, after precision and strategy have converted it.

    With `length_at`, the method is applied anew for the length of each step before the step's forward, wherever that
    length differs from the one before; lengths that the base model read before any scaling count as that length. The
    live tables are compared with their closed form on every rank at the start, at every change and at the end, and all
    ranks stop if one is wrong. A finished run ends with the RoPE of `context_length`.

    A checkpoint carries the `rope_parameters` and the step that they were of; one trained under others is refused.

    Args:
        method: What the recipe changes about RoPE.
        context_length: Tokens that the recipe wants read in the end.
        length_at: Optimizer step, from 0, -> context length of that step; None is `context_length` at every step.

    Raises:
        ValueError: At fit start, if the method cannot take the model to a length, or the checkpoint had another RoPE.
        RuntimeError: If a rotary module does not hold what was written.
    """

    def __init__(
        self, method: RopeMethod, context_length: int, *, length_at: Callable[[int], int] | None = None
    ) -> None:
        self.method = method
        self.context_length = context_length
        self.length_at = length_at
        self.rope: ExtendedRope | None = None
        self._model: Any = None
        self._length = context_length  # that RoPE is set for
        self._step = 0
        self._of_checkpoint: dict[str, Any] | None = None

    @property
    def rope_parameters(self) -> dict[str, Any] | None:
        """Those in force; None before the fit."""
        return None if self.rope is None else self.rope.rope_parameters

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._model = None  # of an earlier fit

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._model = _causal_lm(pl_module)
        rope_for(self._model, self.method, self.context_length)  # refused now, not when its turn comes
        # Lightning restores the number of steps after this hook, but most strategies the callbacks before it.
        self._step = trainer.global_step if self._of_checkpoint is None else self._of_checkpoint.get("step", 0)
        self._apply(trainer, self._length_of(self._step))
        self._refuse_other_checkpoint()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._step = trainer.global_step
        length = self._length_of(self._step)
        if length != self._length:
            self._assert_on_every_rank(trainer)  # what the steps before trained with, while it can still be seen
            self._apply(trainer, length)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._assert_on_every_rank(trainer)  # what the last step trained with
        if self._length != self._at_least_unscaled(self.context_length):
            if trainer.is_global_zero:
                logging.getLogger(__name__).warning(
                    "no step trained with the RoPE of context_length=%d, which the model has from now on; the last was"
                    " of %d tokens",
                    self.context_length,
                    self._length,
                )
            self._apply(trainer, self._at_least_unscaled(self.context_length))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._assert_on_every_rank(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.rope is None else {"rope_parameters": self.rope.rope_parameters, "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._of_checkpoint = state_dict
        if self._model is not None:
            self._refuse_other_checkpoint()

    def _length_of(self, step: int) -> int:
        return self._at_least_unscaled(self.context_length if self.length_at is None else self.length_at(step))

    def _at_least_unscaled(self, length: int) -> int:
        if self.length_at is None:  # one length, and the method's own error if that is too short
            return length
        return max(length, base_rope(config_before_patching(self._model)).unscaled_length)

    def _apply(self, trainer: Trainer, length: int) -> None:
        self.rope = rope_for(self._model, self.method, length)
        self._length = length
        self._assert_on_every_rank(trainer, lambda: extend_rope(self._model, self.method, length))
        self._log(trainer)

    def _assert_on_every_rank(self, trainer: Trainer, check: Callable[[], object] | None = None) -> None:
        """Fails on all ranks where one fails, so that none waits for it in a collective for ever."""
        rope, fault = self.rope, None
        assert rope is not None
        try:
            if check is None:
                assert_rope(self._model, rope.rope_parameters, rope.max_position_embeddings)
            else:
                check()
        except RuntimeError as error:
            fault = error
        if not trainer.strategy.reduce_boolean_decision(fault is None, all=True):
            raise fault or RuntimeError("another rank's RoPE is not what was written; see its message")

    def _refuse_other_checkpoint(self) -> None:
        state, self._of_checkpoint = self._of_checkpoint, None
        if not state:
            return
        length = self._length_of(state.get("step", 0))
        ours, theirs = rope_for(self._model, self.method, length).rope_parameters, state["rope_parameters"]
        if ours != theirs:
            raise ValueError(
                f"the checkpoint was trained with rope_parameters={theirs} but this run has {ours}; "
                "set rope to the checkpoint's or start without it"
            )

    def _log(self, trainer: Trainer) -> None:
        rope = self.rope
        assert rope is not None
        config = self._model.config
        if trainer.is_global_zero:
            logging.getLogger(__name__).info(
                "RoPE: %s for context_length=%d at step %d gives rope_parameters=%s, max_position_embeddings=%d;"
                " %g times the %d tokens that the base model read before any scaling",
                *(self.method, self._length, self._step, rope.rope_parameters, rope.max_position_embeddings),
                *(rope.total_factor, base_rope(config_before_patching(self._model)).unscaled_length),
            )
        if trainer.logger is not None:
            parameters = long_range_parameters(config, rope.rope_parameters)
            numbers = {
                "rope/context_length": float(self._length),
                "rope/rope_theta": float(parameters["rope_theta"]),
                "rope/total_factor": rope.total_factor,
            }
            if parameters["rope_type"] in CLOSED_FORMS:
                slowest = closed_form_inv_freq(parameters, head_dim_of(config)).min()
                numbers["rope/longest_wavelength"] = 2 * math.pi / float(slowest)
            trainer.logger.log_metrics(numbers, step=self._step)


def _causal_lm(pl_module: LightningModule) -> Any:
    model = pl_module.causal_lm
    assert isinstance(model, torch.nn.Module)
    return model
