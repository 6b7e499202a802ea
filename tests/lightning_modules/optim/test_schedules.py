from __future__ import annotations

import math

import pytest
import torch

from lightning_modules.optim.schedules import CosineWithWarmup


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1 / 4),
        (1, 2 / 4),
        (3, 1.0),
        (4, 1.0),  # the cosine begins at its top
        (7, 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 3 / 8))),
        (8, 0.1 + 0.9 * 0.5),  # half way
        (11, 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 7 / 8))),
        (12, 0.1),
        (99, 0.1),
    ],
)
def test_cosine_with_warmup_has_its_closed_form(step: int, expected: float) -> None:
    schedule = CosineWithWarmup(warmup_steps=4, min_lr_ratio=0.1)
    assert schedule.multiplier(step, max_steps=12) == pytest.approx(expected, rel=1e-12)


def test_equals_torchs_cosine_annealing_without_warmup() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=17)
    ours = CosineWithWarmup()
    for step in range(17):
        assert ours.multiplier(step, max_steps=17) == pytest.approx(reference.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        reference.step()


def test_equals_transformers_linear_warmup_one_step_later() -> None:
    """transformers starts at a rate of 0, so that its first step does nothing; ours trains from step 0."""
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=5, num_training_steps=20)
    theirs = []
    for _ in range(20):
        theirs.append(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
    ours = [CosineWithWarmup(warmup_steps=5).multiplier(step, max_steps=20) for step in range(20)]
    assert ours[:5] == pytest.approx(theirs[1:6])
    assert ours[5:] == pytest.approx(theirs[5:])


@pytest.mark.parametrize("warmup_steps", [0, 1, 5, 9])
def test_no_step_has_a_rate_of_zero_or_above_the_peak(warmup_steps: int) -> None:
    schedule = CosineWithWarmup(warmup_steps=warmup_steps)
    values = [schedule.multiplier(step, max_steps=5) for step in range(5)]
    assert all(0 < value <= 1 for value in values)
