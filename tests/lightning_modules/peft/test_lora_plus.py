from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch

from lightning_modules.optim.adamw import adamw
from lightning_modules.optim.muon import muon
from lightning_modules.peft.lora_plus import LoraPlus
from tests.lightning_modules.peft.adapted import adapted_model

LR, RATIO = 0.01, 8.0

OPTIMIZERS: dict[str, Any] = {
    "adamw": partial(adamw, lr=LR, weight_decay=0.1),
    "muon": partial(muon, lr=LR, weight_decay=0.1),
    "sgd": lambda model: torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LR),
}


def made(name: str) -> tuple[Any, Any, LoraPlus]:
    adapter = LoraPlus(r=2, lr_ratio=RATIO)
    model = adapted_model(adapter)
    return model, OPTIMIZERS[name](model), adapter


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_b_has_its_ratio_of_the_rate_of_a_at_every_step_of_the_schedule(name: str) -> None:
    model, optimizer, adapter = made(name)
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    adapter.regroup(optimizer, model)
    names = {id(p): parameter_name for parameter_name, p in model.named_parameters()}
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    for step in range(3):
        seen = []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                is_b = ".lora_B." in names[id(parameter)]
                assert group["lr"] == pytest.approx(LR / (step + 1) * (RATIO if is_b else 1))
                seen.append(names[id(parameter)])
            assert any({k: v for k, v in group.items() if k in old} | {"lr": LR} == old for old in settings)
        assert sorted(seen) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr()[0] == pytest.approx(LR / 4)  # what is logged is A's


def test_step_of_sgd_moves_b_by_the_ratio() -> None:
    model, optimizer, adapter = made("sgd")
    adapter.regroup(optimizer, model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        moved = LR * (RATIO if ".lora_B." in name else 1.0) if parameter.requires_grad else 0.0
        torch.testing.assert_close(before[name] - parameter.detach(), torch.full_like(parameter, moved))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_of_split_groups_comes_back(name: str) -> None:
    model, optimizer, adapter = made(name)
    adapter.regroup(optimizer, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()
    again_model, again, _ = made(name)
    adapter.regroup(again, again_model)
    again_model.load_state_dict(model.state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # or both would share it
    for one in (model, again_model):
        for parameter in one.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.full_like(parameter, -0.25)
    optimizer.step()
    again.step()
    theirs = dict(model.named_parameters())
    for parameter_name, parameter in again_model.named_parameters():
        assert torch.equal(parameter, theirs[parameter_name]), parameter_name
