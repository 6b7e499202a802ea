from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_modules.optim.adamw import adamw
from lightning_modules.optim.adamw_bf16 import MOMENTS, adamw_bf16, rounded_by_chance
from tests.lightning_modules.tiny_models import tiny_model

SETTINGS: dict[str, Any] = {"lr": 3e-3, "weight_decay": 0.1}


def a_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("value", [1.0 + 1 / 512, -3.0 - 1 / 100, 1e-20, 0.0, 2.0])
def test_rounding_gives_a_neighbour_and_is_right_on_average(value: float) -> None:
    exact = torch.full((200_000,), value)
    rounded = rounded_by_chance(exact, torch.Generator().manual_seed(0))
    assert rounded.dtype == torch.bfloat16
    down = (exact.view(torch.int32) & -65536).view(torch.float32)
    up = ((exact.view(torch.int32) & -65536) + 65536).view(torch.float32)
    found = rounded.float()
    assert bool(((found == down) | (found == up)).all())
    if bool((down == exact).all()):
        assert bool((found == exact).all())
    spacing = float((up - down).abs()[0])
    assert float(found.double().mean() - exact.double()[0]) == pytest.approx(0, abs=spacing / 100)


def test_the_second_moment_goes_on_where_rounding_to_the_nearest_stops_it() -> None:
    """1000 steps of gradient 1 at beta2=0.999: v = 1 - 0.999 ** 1000 = 0.632, on average over the numbers."""
    parameter = torch.nn.Parameter(torch.zeros(4096))
    optimizer = adamw_bf16(torch.nn.ParameterList([parameter]), lr=0.0, betas=(0.9, 0.999))
    nearest = torch.zeros(1, dtype=torch.bfloat16)
    for _ in range(1000):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        nearest = (nearest.float() * 0.999 + 0.001).to(torch.bfloat16)
    expected = 1 - 0.999**1000
    assert float(optimizer.state[parameter]["exp_avg_sq"].double().mean()) == pytest.approx(expected, rel=2e-3)
    assert float(nearest) < 0.8 * expected


def test_the_first_step_is_adamws_to_fp32() -> None:
    """Nothing has been rounded yet when the first update is computed."""
    ours, theirs = tiny_model("llama"), tiny_model("llama")
    a_step(ours, adamw_bf16(ours, **SETTINGS), 0)
    a_step(theirs, adamw(theirs, **SETTINGS), 0)
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_it_learns_as_adamw_does() -> None:
    """A regression to its end: the losses of 200 steps differ by a few percent."""

    def losses(make: Callable[..., torch.optim.Optimizer]) -> torch.Tensor:
        torch.manual_seed(0)
        model, x = torch.nn.Linear(32, 8), torch.randn(256, 32)
        target = x @ torch.randn(32, 8)
        optimizer = make(model, lr=2e-2)
        found = []
        for _ in range(200):
            loss = (model(x) - target).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.detach())
        return torch.stack(found)

    ours, theirs = losses(adamw_bf16), losses(adamw)
    assert theirs[-1] < 0.1 * theirs[0]
    torch.testing.assert_close(ours, theirs, rtol=0.1, atol=1e-3)


def test_moments_take_two_bytes_and_what_decays_is_adamws() -> None:
    model = tiny_model("qwen2")
    optimizer = adamw_bf16(model, **SETTINGS)
    assert [len(group["params"]) for group in optimizer.param_groups] == [
        len(group["params"]) for group in adamw(model, **SETTINGS).param_groups
    ]
    a_step(model, optimizer, 0)
    held = [state[name] for state in optimizer.state.values() for name in MOMENTS]
    assert sum(moment.nbytes for moment in held) == 4 * sum(p.numel() for p in model.parameters())


def test_a_loaded_state_goes_on_bit_for_bit_and_stays_bf16() -> None:
    straight = tiny_model("llama")
    optimizer = adamw_bf16(straight, **SETTINGS)
    for seed in range(2):
        a_step(straight, optimizer, seed)
    resumed = copy.deepcopy(straight)
    again = adamw_bf16(resumed, **SETTINGS)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert {state[name].dtype for state in again.state.values() for name in MOMENTS} == {torch.bfloat16}
    torch.rand(7)  # the random state outside does not matter
    for model, part in ((straight, optimizer), (resumed, again)):
        a_step(model, part, 2)
    for ours, theirs in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_random_state_outside_is_left_alone() -> None:
    model = tiny_model("llama")
    before = torch.get_rng_state()
    optimizer = adamw_bf16(model, **SETTINGS)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert torch.equal(torch.get_rng_state(), before)
