from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import LlamaConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import LlamaMLP

from datamodules.step_batches import collate
from lightning_modules.memory.activation_memory import ActivationMemory
from lightning_modules.memory.recomputed_layer import Recomputation
from lightning_modules.memory.tiled_mlp import TiledMlp
from tests.lightning_modules.largest_tensor import LargestTensor
from tests.lightning_modules.memory.training import NUM_LAYERS, gradients_of, layers, make_model
from tests.lightning_modules.tiny_training import uneven_rows

H, I = 8, 512  # noqa: E741


def make_mlp(*, seed: int = 0) -> LlamaMLP:
    torch.manual_seed(seed)
    return LlamaMLP(LlamaConfig(hidden_size=H, intermediate_size=I, num_attention_heads=2))


def tiled(mlp: Any, tile_size: int) -> Any:
    mlp.forward = TiledMlp(mlp, tile_size=tile_size, recomputation=Recomputation())
    return mlp


def mlp_tokens(**setting: Any) -> float:
    """Forwards of a token through an MLP in forward and backward."""
    model = make_model(ActivationMemory(**setting), lora=setting.pop("lora", False))
    tokens = 0

    def count(module: Any, inputs: Any, output: torch.Tensor) -> None:
        nonlocal tokens
        tokens += output.shape[:-1].numel()

    for layer in layers(model):
        layer.mlp.gate_proj.register_forward_hook(count)
    gradients_of(model)
    return tokens / (NUM_LAYERS * 128)


@pytest.mark.parametrize("recompute", ["none", "full", "keep_attention"])
def test_an_mlp_runs_twice_and_not_three_times(recompute: str) -> None:
    assert mlp_tokens(recompute=recompute, mlp_tile_size=10) == 2.0


def test_one_tile_is_as_good_as_many() -> None:
    assert mlp_tokens(recompute="full", mlp_tile_size=4096) == 2.0


@pytest.mark.parametrize("lora", [False, True])
def test_only_one_tile_is_as_wide_as_the_mlp(lora: bool) -> None:
    """At 200 tokens of 512 intermediate numbers no tensor is larger than a tile of 16, or than a weight."""
    mlp: Any = make_mlp()
    if lora:
        mlp.requires_grad_(False)
        inject_adapter_in_model(LoraConfig(r=2, target_modules="all-linear"), nn.ModuleDict({"mlp": mlp}))
    tokens = torch.randn(1, 200, H, requires_grad=True)
    with LargestTensor() as largest:
        tiled(mlp, 16)(tokens).sum().backward()
    assert largest.numel == 16 * I
    with LargestTensor() as largest:
        make_mlp()(tokens).sum().backward()
    assert largest.numel == 200 * I


@pytest.mark.parametrize("num_tokens", [1, 15, 16, 17, 48])
@pytest.mark.parametrize("shape", ["rows", "flat"])
def test_gradients_are_those_of_the_plain_mlp(num_tokens: int, shape: str) -> None:
    tokens = torch.randn(*(2,) * (shape == "rows"), num_tokens, H, requires_grad=True)
    weights = torch.randn_like(tokens)
    found = []
    for mlp in (make_mlp(), tiled(make_mlp(), 16)):
        output = mlp(tokens)
        gradients = torch.autograd.grad((output * weights).sum(), [tokens, *mlp.parameters()])
        found.append((output, *gradients))
    for ours, expected in zip(found[1], found[0], strict=True):
        assert ours.shape == expected.shape
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * float(expected.detach().abs().max()))


def test_weights_of_bf16_add_up_in_fp32() -> None:
    """512 tiles of equal gradients: added up in bf16 the sum would stop growing at 256 of them."""
    mlp = tiled(make_mlp().to(torch.bfloat16), 1)
    tokens = torch.ones(512, H, dtype=torch.bfloat16)
    mlp(tokens).sum().backward()
    one: Any = make_mlp().to(torch.bfloat16)
    one(tokens[:1]).sum().backward()
    torch.testing.assert_close(mlp.down_proj.weight.grad, one.down_proj.weight.grad * 512, rtol=1e-2, atol=1e-3)


def test_weights_get_gradients_where_autocast_has_met_them_without() -> None:
    """A forward without gradients in the same autocast leaves no cast behind that has no history."""
    mlp = tiled(make_mlp(), 16)
    tokens = torch.randn(40, H, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            mlp(tokens)
        output = mlp(tokens)
        assert output.dtype == torch.bfloat16
        output.float().square().sum().backward()
    plain: Any = make_mlp()
    with torch.autocast("cpu", torch.bfloat16):
        plain(tokens).float().square().sum().backward()
    for ours, expected in zip(mlp.parameters(), plain.parameters(), strict=True):
        assert ours.grad.dtype == torch.float32
        assert (ours.grad - expected.grad).norm() < 1e-2 * expected.grad.norm()


def test_a_frozen_weight_is_cast_once_a_pass_and_not_once_a_tile() -> None:
    mlp = make_mlp().requires_grad_(False)
    tiled_mlp = TiledMlp(mlp, tile_size=4, recomputation=Recomputation())
    parameters = tiled_mlp.working_parameters(torch.bfloat16)
    assert len(parameters) == 3
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in parameters.values())
    assert tiled_mlp.working_parameters(None) == {}


def test_dropout_of_an_adapter_draws_the_same_in_both_forwards_of_a_tile() -> None:
    """The gradient is that of the function which the forward computed: of its own tiles, drawn in their order."""
    mlp: Any = make_mlp().requires_grad_(False)
    config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5, init_lora_weights=False)
    inject_adapter_in_model(config, nn.ModuleDict({"mlp": mlp}))
    tokens = torch.randn(40, H, requires_grad=True)
    trained = [tokens, *(p for p in mlp.parameters() if p.requires_grad)]
    torch.manual_seed(5)
    expected_output = torch.cat([mlp(tile) for tile in tokens.split(16)])
    expected = torch.autograd.grad(expected_output.square().sum(), trained)
    torch.manual_seed(5)
    output = tiled(mlp, 16)(tokens)
    torch.testing.assert_close(output, expected_output)
    torch.rand(3)  # whatever is drawn between forward and backward
    for ours, theirs in zip(torch.autograd.grad(output.square().sum(), trained), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_an_adapter_that_is_not_active_gets_no_gradient() -> None:
    mlp: Any = make_mlp().requires_grad_(False)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    holder = nn.ModuleDict({"mlp": mlp})
    for name in ("default", "other"):
        inject_adapter_in_model(config, holder, adapter_name=name)
    for parameter in mlp.parameters():
        parameter.requires_grad_(True)
    tiled(mlp, 16)(torch.randn(40, H)).sum().backward()
    active = mlp.gate_proj.active_adapters[0]
    for name, parameter in mlp.named_parameters():
        is_other = ("default" in name or "other" in name) and active not in name
        assert (parameter.grad is None) == is_other, name


class NormBehind(GradientCheckpointingLayer):
    """As Gemma 2: the value of the MLP's output is wanted in the backward."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = make_mlp()
        self.norm = nn.LayerNorm(H)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.norm(self.mlp(hidden_states))


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([NormBehind(), NormBehind()])

    def get_decoder(self) -> nn.Module:
        return self


def test_an_output_that_the_backward_wants_is_computed() -> None:
    tokens, gradients = torch.randn(1, 40, H), []
    for setting in ({}, {"recompute": "full", "mlp_tile_size": 16}):
        model: Any = OneLayer().train()
        ActivationMemory(**setting).apply(model)  # type: ignore[arg-type]
        states = tokens
        for layer in model.layers:
            states = layer(states)
        states.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for ours, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_validation_runs_the_mlp_in_tiles_too() -> None:
    model = make_model(ActivationMemory(mlp_tile_size=2), intermediate_size=2048)
    with torch.no_grad(), LargestTensor() as largest:
        model.eval()(collate(uneven_rows()))
    assert largest.numel < 128 * 2048
