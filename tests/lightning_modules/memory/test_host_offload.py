from __future__ import annotations

import gc

import pytest
import torch

from lightning_modules.memory.activation_memory import ActivationMemory
from lightning_modules.memory.host_offload import HostBlocks, HostOffload
from lightning_modules.memory.layer_calls import LayerCall
from tests.lightning_modules.memory.training import NUM_LAYERS, gradients_of, layers, make_model

T, H = 16, 8


def inputs(num_layers: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, T, H, generator=generator).to(dtype) for _ in range(num_layers)]


def call(layer: int) -> LayerCall:
    return LayerCall(layer, lambda states: states)


def test_what_comes_back_is_what_went_away() -> None:
    """Odd lengths and several blocks for each, in every dtype that is trained in."""
    for dtype in (torch.float32, torch.bfloat16):
        store = HostOffload(num_layers=4, keep_on_device=1, largest_block=100)
        expected = [states[:, : 5 + k] for k, states in enumerate(inputs(4, dtype))]  # not contiguous in memory
        saved = [store.save(states, call(k)) for k, states in enumerate(expected)]
        for states, one in zip(reversed(expected), reversed(saved), strict=True):
            assert torch.equal(store.load(one), states)


def test_only_the_last_layers_stay_and_the_next_is_fetched_ahead() -> None:
    store = HostOffload(num_layers=5, keep_on_device=2)
    saved = [store.save(states, call(k)) for k, states in enumerate(inputs(5))]
    on_device = lambda: [one.on_device is not None for one in saved]  # noqa: E731
    assert on_device() == [False, False, False, True, True]
    store.load(saved[4])
    assert on_device() == [False, False, False, True, False]
    store.load(saved[3])
    assert on_device() == [False, False, True, False, False]
    store.load(saved[2])
    assert on_device() == [False, True, False, False, False]


def test_at_most_two_inputs_are_on_their_way_out() -> None:
    store = HostOffload(num_layers=9, keep_on_device=0)
    for k, states in enumerate(inputs(9)):
        saved = store.save(states, call(k))
        assert len(store._leaving) <= 2
    store.load(saved)
    assert len(store._leaving) == 0


def test_blocks_are_reused_last_in_first_out() -> None:
    blocks = HostBlocks(largest=64)
    first, second = blocks.take(64 * 8, pinned=False), blocks.take(64 * 8, pinned=False)
    assert blocks.block_bytes == 64
    assert blocks.num_bytes == 2 * 64 * 8
    blocks.give_back(first)
    blocks.give_back(second)
    again = blocks.take(64 * 8, pinned=False)
    assert [block.data_ptr() for block in again] == [block.data_ptr() for block in second]
    assert blocks.num_bytes == 2 * 64 * 8


@pytest.mark.parametrize("num_bytes", [1, 63, 4096, 5000, 70_000, 1 << 20])
def test_blocks_are_powers_of_two_and_waste_at_most_an_eighth(num_bytes: int) -> None:
    blocks = HostBlocks(largest=1 << 16)
    blocks.take(num_bytes, pinned=False)
    assert blocks.block_bytes.bit_count() == 1
    assert blocks.block_bytes <= 1 << 16
    assert num_bytes <= blocks.num_bytes <= num_bytes + max(1, num_bytes // 8)


def test_the_pool_holds_the_inputs_of_one_micro_batch_however_many_there_are() -> None:
    model = make_model(ActivationMemory(recompute="full", offload_to_host=True, keep_on_device=1))
    blocks = layers(model)[0]._gradient_checkpointing_func.store.blocks
    for _ in range(3):
        gradients_of(model)
        assert blocks.num_bytes == (NUM_LAYERS - 1) * 64 * 64 * 4  # tokens, hidden size, bytes
        assert len(blocks._free) == blocks.num_blocks


def test_a_forward_without_a_backward_gives_its_blocks_back() -> None:
    store = HostOffload(num_layers=3, keep_on_device=0)
    saved = [store.save(states, call(k)) for k, states in enumerate(inputs(3))]
    assert not store.blocks._free
    del saved
    gc.collect()
    assert len(store.blocks._free) == store.blocks.num_blocks > 0


def test_an_input_is_handed_over_once() -> None:
    store = HostOffload(num_layers=1, keep_on_device=0)
    saved = store.save(inputs(1)[0], call(0))
    store.load(saved)
    with pytest.raises(RuntimeError, match="a backward pass can run once"):
        store.load(saved)


@pytest.mark.gpu
def test_on_a_gpu_memory_is_pinned_and_values_survive_the_side_stream() -> None:
    store = HostOffload(num_layers=8, keep_on_device=2)
    expected = [states.cuda() for states in inputs(8)]
    saved = [store.save(states.clone(), call(k)) for k, states in enumerate(expected)]
    assert all(block.is_pinned() for one in saved for block in one.on_host)
    for states, one in zip(reversed(expected), reversed(saved), strict=True):
        assert torch.equal(store.load(one), states)
