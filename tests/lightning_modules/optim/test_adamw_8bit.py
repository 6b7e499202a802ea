from __future__ import annotations

import copy
import importlib.util
from typing import Any

import pytest
import torch

from lightning_modules.optim.adamw_8bit import adamw_8bit, refuse_sharded
from tests.lightning_modules.tiny_models import tiny_model

SETTINGS: dict[str, Any] = {"lr": 3e-3, "weight_decay": 0.1}


def test_where_bitsandbytes_is_absent_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^optimizer=adamw_8bit needs bitsandbytes, .* set optimizer=adamw_bf16$"):
        adamw_8bit(tiny_model("llama"), **SETTINGS)


def test_sharded_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="does not work with strategy=fsdp; set optimizer=adamw_bf16"):
        refuse_sharded(True)


def test_states_take_a_byte_and_a_loaded_state_goes_on_bit_for_bit() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    straight = tiny_model("llama", hidden_size=128)
    optimizer = adamw_8bit(straight, **SETTINGS)

    def a_step(model: torch.nn.Module, part: torch.optim.Optimizer, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        part.step()

    a_step(straight, optimizer, 0)
    large = straight.model.layers[0].mlp.up_proj.weight
    assert optimizer.state[large]["state1"].dtype == torch.uint8
    resumed = copy.deepcopy(straight)
    again = adamw_8bit(resumed, **SETTINGS)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, part in ((straight, optimizer), (resumed, again)):
        a_step(model, part, 1)
    for ours, theirs in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs)
