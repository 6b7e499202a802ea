"""What is kept of a call of a decoder layer: its forward, and its input in a store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch


class LayerCall(NamedTuple):
    """One call of a decoder layer in a forward pass."""

    layer: int  # counted from 0
    forward: Callable[[torch.Tensor], torch.Tensor]  # all other arguments are bound


class InputStore(Protocol):
    """Holds the inputs of layers from the forward to the backward."""

    def save(self, hidden_states: torch.Tensor, call: LayerCall) -> Any:
        """What the graph of the forward pass holds in place of the input."""
        ...

    def load(self, saved: Any) -> torch.Tensor:
        """The input, once, when the layer is about to be recomputed."""
        ...


class OnDevice:
    """Holds every input as it is."""

    def save(self, hidden_states: torch.Tensor, call: LayerCall) -> torch.Tensor:
        return hidden_states.detach()

    def load(self, saved: torch.Tensor) -> torch.Tensor:
        return saved
