"""Our forward of a LoRA layer against peft's, and what it keeps."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.functional import cast_adapter_dtype
from peft.tuners.lora import LoraLayer
from torch import nn

from datamodules.step_batches import collate
from lightning_modules.models.causal_lm_with_loss import CausalLMWithLoss
from lightning_modules.peft.linear import LoraLinear, lean
from lightning_modules.peft.lora import Lora
from tests.lightning_modules.peft.adapted import adapted_model, base_model, randomise
from tests.lightning_modules.peft.saved_tensors import kept_tensors
from tests.lightning_modules.tiny_training import make_row

N, INPUTS, OUTPUTS, R = 40, 24, 56, 4


def layers(*, bias: bool, dtype: torch.dtype, dropout: float = 0.0) -> tuple[Any, Any]:
    """peft's layer and ours, with the same weights."""
    both = []
    for _ in range(2):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(INPUTS, OUTPUTS, bias=bias)).to(dtype)
        config = LoraConfig(r=R, lora_alpha=10, target_modules=["0"], init_lora_weights=False, lora_dropout=dropout)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            inject_adapter_in_model(config, model)
        cast_adapter_dtype(model, "default")
        both.append(model)
    lean(both[1][0])
    assert type(both[1][0]) is LoraLinear
    return both[0], both[1]


def gradients(model: nn.Module, x: torch.Tensor, *, autocast: bool) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        torch.manual_seed(5)  # of dropout
        output = model(x)
    (output.float() * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(grads) == {"0.lora_A.default.weight", "0.lora_B.default.weight"}
    return {"output": output.detach(), "x": x.grad, **grads}  # type: ignore[dict-item]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(N, INPUTS), (2, N // 2, INPUTS)])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_output_and_gradients_are_pefts(bias: bool, shape: tuple[int, ...], dropout: float) -> None:
    theirs, ours = layers(bias=bias, dtype=torch.float32, dropout=dropout)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    expected, found = gradients(theirs, x, autocast=False), gradients(ours, x, autocast=False)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
def test_under_autocast_it_is_as_near_to_fp64_as_peft(base: torch.dtype) -> None:
    theirs, ours = layers(bias=False, dtype=base)
    x = torch.randn(N, INPUTS, generator=torch.Generator().manual_seed(2)).to(base)
    exact_model, _ = layers(bias=False, dtype=base)
    exact = gradients(exact_model.double(), x.double(), autocast=False)
    errors = []
    for model in (theirs, ours):
        found = gradients(model, x, autocast=True)
        assert found["output"].dtype == torch.bfloat16
        assert found["x"].dtype == base
        assert found["0.lora_A.default.weight"].dtype == torch.float32
        errors.append([float((found[name] - exact[name]).norm() / exact[name].norm()) for name in exact])
    for their_error, our_error in zip(*errors, strict=True):
        assert our_error < 1.1 * their_error + 1e-3
        assert our_error < 0.01


def test_bf16_base_without_autocast_computes_in_the_dtype_of_its_input() -> None:
    _, ours = layers(bias=True, dtype=torch.bfloat16)
    x = torch.randn(N, INPUTS)
    assert gradients(ours, x.bfloat16(), autocast=False)["output"].dtype == torch.bfloat16
    assert gradients(ours, x, autocast=False)["output"].dtype == torch.float32


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
def test_what_is_kept_is_the_input_once_and_the_low_rank(base: torch.dtype) -> None:
    """In bytes: bf16 [N, inputs] and bf16 [N, r]; no fp32 activation, no cast of the frozen weight."""
    theirs, ours = layers(bias=False, dtype=base)
    x = torch.randn(N, INPUTS).to(base).requires_grad_(True)
    kept = {}
    for name, model in (("theirs", theirs), ("ours", ours)):
        with torch.autocast("cpu", torch.bfloat16), kept_tensors(but=model) as found:
            _ = model(x)
        kept[name] = sorted(found)
    assert all(tensor.dtype == torch.bfloat16 for tensor in kept["ours"])
    assert sum(tensor.num_bytes for tensor in kept["ours"]) == 2 * N * (INPUTS + R)
    assert sum(tensor.num_bytes for tensor in kept["theirs"]) > 2 * N * (INPUTS + R)  # the detector sees more


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_lora_layer_of_a_model_keeps_a_copy_in_fp32(dtype: torch.dtype, dropout: float) -> None:
    model = adapted_model(Lora(r=R, dropout=dropout), dtype=dtype)
    model.train()
    inside: list[Any] = []
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            inside.append(_watch(layer))
    assert len(inside) == 14
    with torch.autocast("cpu", torch.bfloat16):
        CausalLMWithLoss(model)(collate([make_row((20, 12), seed=1)]))
    kept = [tensor for watched in inside for tensor in watched()]
    assert len(kept) >= 28
    assert {tensor.dtype for tensor in kept} == {torch.bfloat16}


def test_layers_that_read_one_bf16_tensor_keep_it_once() -> None:
    """q, k and v: with peft's own forward each keeps a cast of its own."""
    batch, kept = collate([make_row((200, 56), seed=1)]), {}
    for name in ("peft", "ours"):
        model = base_model(dtype=torch.bfloat16)
        Lora(r=R).apply(model)
        randomise(model)
        if name == "peft":
            for layer in model.modules():
                if type(layer) is LoraLinear:
                    layer.__class__ = LoraLinear.__mro__[1]
        with torch.autocast("cpu", torch.bfloat16), kept_tensors(but=model) as found:
            CausalLMWithLoss(model)(batch)
        kept[name] = sum(tensor.num_bytes for tensor in found)
    hidden, layers_, tokens = 64, 2, 256
    # Two of q, k, v and one of gate, up need no input of their own in bf16.
    assert kept["peft"] - kept["ours"] >= layers_ * 3 * tokens * hidden * 2


def _watch(layer: Any) -> Any:
    """Collects what one layer's forward keeps, besides its weights."""
    forward, found = layer.forward, []

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        with kept_tensors(but=layer) as kept:
            output = forward(*args, **kwargs)
        found.extend(kept)
        return output

    layer.forward = watched
    return lambda: found
