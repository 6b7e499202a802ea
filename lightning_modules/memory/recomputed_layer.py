"""A decoder layer whose activations are computed again in the backward, from its input.

transformers' layers hand their forward to `_gradient_checkpointing_func` where `gradient_checkpointing` is set; this is
such a function. torch's non-reentrant checkpoint does the recomputation: it stops as soon as everything that the
backward asks for is there, and its hooks for saved tensors see the input alone. FSDP2's hooks stay outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from lightning_modules.memory.kept_attention import KeptAttention
from lightning_modules.memory.layer_calls import InputStore, LayerCall


class Recomputation:
    """Whether a layer is being recomputed at this moment; shared with the parts that compute less then."""

    def __init__(self) -> None:
        self.running = False

    @contextmanager
    def marked(self) -> Iterator[None]:
        self.running = True
        try:
            yield
        finally:  # torch leaves by an exception when it has what it needs
            self.running = False


class RecomputedLayer:
    """Runs one layer so that nothing but its input, and its attention's output if asked for, is held.

    Args:
        layer: The number of the layer, from 0.
        store: Where the layers' inputs lie; one for all layers.
        keep_attention: Hold the outputs of fused attention as well.
        recomputation: Told when the layer is recomputed.
    """

    def __init__(self, *, layer: int, store: InputStore, keep_attention: bool, recomputation: Recomputation) -> None:
        self.layer = layer
        self.store = store
        self.keep_attention = keep_attention
        self.recomputation = recomputation

    def __call__(self, forward: Callable[..., torch.Tensor], hidden_states: torch.Tensor, *others: Any) -> torch.Tensor:
        """The layer's output.

        Args:
            forward: The layer's own, with its keyword arguments bound.
            hidden_states: [B, T, H].
            *others: Whatever else the model passes by position; held as it is, shared by the layers.
        """

        def run(states: torch.Tensor) -> torch.Tensor:
            return forward(states, *others)

        if not torch.is_grad_enabled():
            return run(hidden_states)
        call = LayerCall(self.layer, run)
        with torch.autograd.graph.saved_tensors_hooks(lambda states: self.store.save(states, call), self.store.load):
            return checkpoint(run, hidden_states, use_reentrant=False, context_fn=self._contexts)

    def _contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        if not self.keep_attention:
            return nullcontext(), self.recomputation.marked()
        kept = KeptAttention()
        return kept.keeping, _both(self.recomputation.marked(), kept.replaying)


@contextmanager
def _both(first: AbstractContextManager[Any], second: AbstractContextManager[Any]) -> Iterator[None]:
    with first, second:
        yield
