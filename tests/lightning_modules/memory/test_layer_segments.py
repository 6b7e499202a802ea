from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_modules.memory.activation_memory import ActivationMemory
from lightning_modules.memory.layer_calls import LayerCall, OnDevice
from lightning_modules.memory.layer_segments import LayerSegments, refuse_sharded
from tests.lightning_modules.memory.training import NUM_LAYERS, gradients_of, layers, make_model


def forwards_by_layer(setting: dict[str, Any]) -> list[int]:
    """How often each layer runs in the two micro-batches of a step."""
    model = make_model(ActivationMemory(**setting))
    counts = [0] * NUM_LAYERS

    def counted(k: int) -> Callable[..., None]:
        def count(*_: Any) -> None:
            counts[k] += 1

        return count

    for k, layer in enumerate(layers(model)):
        layer.input_layernorm.register_forward_hook(counted(k))
    gradients_of(model)
    return [count // 2 for count in counts]


@pytest.mark.parametrize(("n", "forwards"), [(2, [3, 2, 3, 2, 2]), (3, [3, 3, 2, 3, 2]), (5, [3, 3, 3, 3, 2])])
def test_all_but_the_last_layer_of_a_segment_run_once_more(n: int, forwards: list[int]) -> None:
    assert forwards_by_layer({"recompute": "full"}) == [2] * NUM_LAYERS
    assert forwards_by_layer({"recompute": "every_n_layers", "layers_per_checkpoint": n}) == forwards


def test_inputs_between_are_computed_from_the_first_of_their_segment_and_not_held() -> None:
    first = torch.nn.Identity()
    store = LayerSegments(layers_per_checkpoint=3, store=OnDevice(), first_layer=first)
    states = torch.ones(1, 4, 2)
    saved, expected, held = [], [], []
    for k in range(6):
        forward: Callable[[torch.Tensor], torch.Tensor] = lambda x, k=k: torch.nn.functional.dropout(x + k, 0.5)  # noqa: E731
        expected.append(states.clone())
        held.append(weakref.ref(states))
        saved.append(store.save(states, LayerCall(k, forward)))
        states = forward(states)
    random_state = torch.get_rng_state()
    assert [reference() is not None for reference in held[:5]] == [False] * 5  # tensors of their own are held detached
    assert [segment.inputs for segment, _ in saved] == [{}] * 6
    for k in reversed(range(6)):
        assert torch.equal(store.load(saved[k]), expected[k]), k
    assert torch.equal(torch.get_rng_state(), random_state)


def test_sharded_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="strategy=fsdp has not gathered them; set recompute=full"):
        refuse_sharded(True)
