"""One input held for every n layers; the inputs between are computed again when the backward reaches them.

    forward    x0   x1   x2   x3   x4   x5      n = 3: x0 and x3 are held
    backward             x3 -> x4 -> x5         then layers 5, 4, 3 are recomputed one by one
               x0 -> x1 -> x2                   then layers 2, 1, 0

Memory: inputs of num_layers / n + n - 1 layers; n near the root of num_layers is the least. Cost: another forward of
the first n - 1 of every n layers, attention included; the last one's input is all that is asked for.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn

from lightning_modules.memory.compute_state import ComputeState
from lightning_modules.memory.layer_calls import InputStore, LayerCall


class Segment:
    """The calls of up to n layers one after the other, and the input of the first."""

    def __init__(self, start: Any) -> None:
        self.start = start
        self.calls: list[tuple[LayerCall, ComputeState]] = []
        self.inputs: dict[int, torch.Tensor] = {}


class LayerSegments:
    """Holds the input of every n-th layer in another store, and computes the others from it.

    Args:
        layers_per_checkpoint: n.
        store: Where the inputs that are held lie.
        first_layer: The model's, which shows whether its layers are sharded.

    Raises:
        ValueError: In the first forward, if they are.
    """

    def __init__(self, *, layers_per_checkpoint: int, store: InputStore, first_layer: nn.Module) -> None:
        self.layers_per_checkpoint = layers_per_checkpoint
        self.store = store
        self._first_layer = weakref.ref(first_layer)
        self._open: weakref.ref[Segment] | None = None

    def save(self, hidden_states: torch.Tensor, call: LayerCall) -> tuple[Segment, int]:
        if call.layer == 0:
            from torch.distributed.fsdp import FSDPModule  # slow to import, and no business of a configuration's check

            refuse_sharded(isinstance(self._first_layer(), FSDPModule))
        place = call.layer % self.layers_per_checkpoint
        segment = Segment(self.store.save(hidden_states, call)) if place == 0 else self._segment()
        self._open = weakref.ref(segment)
        segment.calls.append((call, ComputeState.now(hidden_states.device)))
        return segment, place

    def load(self, saved: tuple[Segment, int]) -> torch.Tensor:
        segment, place = saved
        if place not in segment.inputs:
            self._compute_inputs(segment, place)
        return segment.inputs.pop(place)

    def _segment(self) -> Segment:
        segment = None if self._open is None else self._open()
        assert segment is not None, "layers are called in order"
        return segment

    def _compute_inputs(self, segment: Segment, last: int) -> None:
        hidden_states = self.store.load(segment.start)
        for place, (call, state) in enumerate(segment.calls[:last]):
            segment.inputs[place] = hidden_states
            with torch.no_grad(), state.restored():
                hidden_states = call.forward(hidden_states)
        segment.inputs[last] = hidden_states


def refuse_sharded(sharded: bool) -> None:
    """Says what to choose where layers are sharded.

    Raises:
        ValueError: They are.
    """
    if sharded:
        raise ValueError(
            "memory.activations.recompute=every_n_layers runs layers outside their turn, when strategy=fsdp has not"
            " gathered them; set recompute=full"
        )
