"""What is held for the backward, against closed forms in the sizes of the model."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from benchmarks.activation_memory import OPTIONS, Shape, held_a_layer, lines, measure, seconds
from lightning_modules.memory.activation_memory import ActivationMemory
from recipes.compose import compose, options

SHAPE = Shape(num_layers=2, hidden_size=64, intermediate_size=224, num_heads=4, num_kv_heads=2)
H, I, HEADS, KV = 64, 224, 4, 2 * 16  # noqa: E741
LENGTHS = (64, 192)
FP32 = 4

EVERYTHING = 8 * H + 2 * KV + 4 * I + 2 + HEADS
"""Of a layer in fp32. Twice: the states, and normed with and without weight, and the norm's factor. Query, key, value,
the attention's output and log-sum-exp. Gate, up, activated gate, and the product."""


@pytest.fixture(autouse=True, scope="module")
def nothing_old_is_visited() -> Iterator[None]:
    """`measure` collects garbage, which takes long where a test process holds millions of objects."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize(
    ("option", "numbers"),
    [
        (ActivationMemory(), EVERYTHING),
        (ActivationMemory(recompute="full"), H),
        (ActivationMemory(recompute="keep_attention"), H + H + HEADS),
        (ActivationMemory(recompute="every_n_layers", layers_per_checkpoint=2), H / 2),
        (ActivationMemory(recompute="full", offload_to_host=True, keep_on_device=1), 0),
        (ActivationMemory(recompute="keep_attention", offload_to_host=True), H + HEADS),
        (ActivationMemory(mlp_tile_size=16), EVERYTHING - 4 * I),
        (ActivationMemory(recompute="full", mlp_tile_size=16), H),
    ],
)
def test_bytes_held_a_token_and_layer(option: ActivationMemory, numbers: float) -> None:
    assert held_a_layer(option, SHAPE, LENGTHS) == pytest.approx(FP32 * numbers, rel=0.01)


@pytest.mark.parametrize("keep_on_device", [0, 1, 2])
def test_the_host_holds_what_the_device_does_not(keep_on_device: int) -> None:
    option = ActivationMemory(recompute="full", offload_to_host=True, keep_on_device=keep_on_device)
    found, _ = lines(option, SHAPE, (64, 128))
    on_device, _ = lines(ActivationMemory(recompute="full"), SHAPE, (64, 128))
    assert found.host_a_token == (2 - keep_on_device) * FP32 * H
    in_flight = 0 if keep_on_device else 2 * FP32 * H  # the sources of the last two copies, until the backward begins
    assert found.held_a_token == on_device.held_a_token - found.host_a_token + in_flight


def test_a_tiled_mlp_needs_no_more_for_a_longer_row() -> None:
    """Its peak grows by less than the plain one's by at least gate, up, activated gate and product."""
    peaks = {
        tile: lines(ActivationMemory(recompute="full", mlp_tile_size=tile), SHAPE, LENGTHS)[0].peak_a_token
        for tile in (None, 16)
    }
    assert peaks[16] <= peaks[None] - 4 * I * FP32


@pytest.mark.parametrize(
    ("name", "layer", "attention", "mlp"),
    [
        ("default", 1, 1, 1),
        ("gradient_checkpointing", 2, 2, 2),
        ("every_n_layers", 2.75, 2.75, 2.75),
        ("keep_attention", 2, 1, 2),
        ("offload", 2, 2, 2),
        ("tiled_mlp", 2, 2, 2),
        ("long_sft", 2, 1, 2),
    ],
)
@pytest.mark.parametrize("lora", [False, True])
def test_forwards_of_each_option(name: str, layer: float, attention: float, mlp: float, lora: bool) -> None:
    shape = Shape(num_layers=4, hidden_size=64, intermediate_size=224, num_heads=4, lora=lora)
    passes = measure(OPTIONS[name], shape, 64)
    assert (passes.layer_forwards, passes.attention_forwards, passes.mlp_forwards) == (layer, attention, mlp)


def test_every_option_of_the_configuration_is_measured_as_it_is_but_for_sizes() -> None:
    assert options("memory") == sorted(OPTIONS)
    for name, option in OPTIONS.items():
        node = compose(["recipe=demo/extend", f"memory={name}"]).config.memory.activations
        assert (node.recompute, node.offload_to_host) == (option.recompute, option.offload_to_host)
        assert (node.mlp_tile_size is None) == (option.mlp_tile_size is None)


def test_each_option_is_timed() -> None:
    assert all(0 < second < 60 for second in seconds(OPTIONS.values(), Shape(num_layers=2), 64, rounds=1))
