import copy
from typing import Any

import pytest
import torch

from lightning_modules.optim.muon import muon
from tests.lightning_modules.tiny_models import tiny_model

SETTINGS: dict[str, Any] = {"lr": 3e-3, "weight_decay": 0.1}


def a_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("tied", [True, False])
def test_layer_matrices_move_as_under_muon_alone_and_the_rest_as_under_adamw_alone(tied: bool):
    model = tiny_model("llama", tie_word_embeddings=tied)
    expected = copy.deepcopy(model)
    optimizer = muon(model, **SETTINGS)
    named = dict(expected.named_parameters())
    matrices = [p for name, p in named.items() if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in named.items() if p.ndim == 2 and ".layers." not in name]
    vectors = [p for p in named.values() if p.ndim == 1]
    alone = [
        torch.optim.Muon(matrices, momentum=0.95, adjust_lr_fn="match_rms_adamw", **SETTINGS),
        torch.optim.AdamW(
            [{"params": others, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
            lr=3e-3,
            betas=(0.9, 0.95),
        ),
    ]
    for seed in range(3):
        a_step(model, optimizer, seed)
        for part in alone:
            a_step(expected, part, seed)
    for (name, ours), theirs in zip(model.named_parameters(), named.values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_schedules_reach_both_parts():
    optimizer = muon(tiny_model("llama"), **SETTINGS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert schedule.get_last_lr() == [1.5e-3] * 3
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == [1.5e-3] * 3


def test_a_loaded_state_goes_on_bit_for_bit():
    straight = tiny_model("llama")
    optimizer = muon(straight, **SETTINGS)
    a_step(straight, optimizer, 0)
    resumed = copy.deepcopy(straight)
    again = muon(resumed, **SETTINGS)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, part in ((straight, optimizer), (resumed, again)):
        a_step(model, part, 1)
    for ours, theirs in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs)
