"""QLoRA where there is no GPU: what it says, and with what it would call bitsandbytes."""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

import pytest
import torch
from torch import nn

from lightning_modules.models.causal_lm_with_loss import CausalLMWithLoss
from lightning_modules.peft.lora import ALL_LINEAR, target_names
from lightning_modules.peft.q_lora import QLora
from lightning_modules.strategies.sharding import shard
from tests.lightning_modules.peft.adapted import base_model


class FakeParams4bit(nn.Parameter):
    settings: dict[str, Any]

    def __new__(cls, data: torch.Tensor, *, requires_grad: bool, **settings: Any) -> Any:
        made = torch.Tensor._make_subclass(cls, data, requires_grad)
        made.settings = settings
        return made


class FakeLinear4bit(nn.Linear):
    def __init__(self, inputs: int, outputs: int, *, bias: bool, **settings: Any) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.settings = settings


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("bitsandbytes")
    module.__spec__ = importlib.util.spec_from_loader("bitsandbytes", loader=None)
    module.nn = types.SimpleNamespace(Linear4bit=FakeLinear4bit, Params4bit=FakeParams4bit)
    monkeypatch.setitem(sys.modules, "bitsandbytes", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_without_a_gpu_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^peft=qlora needs a CUDA GPU, and there is none here; set peft=lora$"):
        QLora().apply(base_model())


def test_without_bitsandbytes_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs bitsandbytes, which is not installed; run pip install -e '\.\[gpu\]'"):
        QLora().apply(base_model())


@pytest.mark.usefixtures("fake_gpu")
@pytest.mark.parametrize("double", [True, False])
def test_linear_layers_become_nf4_with_their_own_weights(double: bool) -> None:
    model, plain = base_model("qwen2", dtype=torch.bfloat16), base_model("qwen2", dtype=torch.bfloat16)
    targets = target_names(model, ALL_LINEAR)
    assert len(targets) == 14
    QLora(double_quantization=double)._prepare_base(model, targets)
    for name in targets:
        layer, before = model.get_submodule(name), plain.get_submodule(name)
        assert isinstance(layer, FakeLinear4bit)
        assert layer.settings == {
            "compute_dtype": torch.bfloat16,
            "compress_statistics": double,
            "quant_type": "nf4",
        }
        assert isinstance(layer.weight, FakeParams4bit)
        assert layer.weight.settings == {"compress_statistics": double, "quant_type": "nf4"}
        assert not layer.weight.requires_grad
        assert torch.equal(layer.weight, before.weight)
        assert (layer.bias is None) == (before.bias is None)
        if before.bias is not None:
            assert torch.equal(layer.bias, before.bias)
    assert type(model.lm_head) is nn.Linear
    assert model.is_loaded_in_4bit


def test_sharding_4_bits_is_refused() -> None:
    model: Any = base_model()
    model.is_loaded_in_4bit = True
    with pytest.raises(ValueError, match="which strategy=fsdp cannot shard; set strategy=ddp"):
        shard(CausalLMWithLoss(model), mesh=None, compute_dtype=torch.bfloat16)  # type: ignore[arg-type]
