from __future__ import annotations

import math

import pytest
import torch

from lightning_modules.optim.schedules import CosineWithWarmup, LinearWithWarmup, LrSchedule


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


def theirs(schedule: str, *, num_steps: int, **options: int) -> list[float]:
    """Rates of a schedule of transformers, step by step, in an optimizer with a peak of 1."""
    import transformers

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = getattr(transformers, schedule)(optimizer, **options)
    rates = []
    for _ in range(num_steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def ours(schedule: LrSchedule, *, num_steps: int) -> list[float]:
    return [schedule.multiplier(step, max_steps=num_steps) for step in range(num_steps)]


@pytest.mark.parametrize("warmup_steps", [0, 1, 5])
def test_linear_is_transformers_step_by_step(warmup_steps: int) -> None:
    reference = theirs(
        "get_linear_schedule_with_warmup", num_steps=20, num_warmup_steps=warmup_steps, num_training_steps=20
    )
    schedule = LinearWithWarmup(warmup_steps=warmup_steps, warmup_start_ratio=0.0)
    assert ours(schedule, num_steps=20) == pytest.approx(reference, abs=1e-15)
    assert reference[-1] > 0, "the last step still trains; the one after it would not"
    assert schedule.multiplier(20, max_steps=20) == schedule.multiplier(99, max_steps=20) == 0


@pytest.mark.parametrize("warmup_steps", [0, 1, 20])
def test_constant_is_transformers_step_by_step(warmup_steps: int) -> None:
    reference = theirs("get_constant_schedule_with_warmup", num_steps=30, num_warmup_steps=warmup_steps)
    schedule = LinearWithWarmup(warmup_steps=warmup_steps, min_lr_ratio=1.0, warmup_start_ratio=0.0)
    assert ours(schedule, num_steps=30) == pytest.approx(reference, abs=1e-15)


def test_cosine_that_starts_at_zero_is_transformers_step_by_step() -> None:
    reference = theirs("get_cosine_schedule_with_warmup", num_steps=20, num_warmup_steps=5, num_training_steps=20)
    assert ours(CosineWithWarmup(warmup_steps=5, warmup_start_ratio=0.0), num_steps=20) == pytest.approx(reference)


@pytest.mark.parametrize("schedule", [CosineWithWarmup, LinearWithWarmup])
def test_warmup_from_a_tenth_of_the_peak_rises_by_equal_steps(schedule: type[CosineWithWarmup]) -> None:
    """Position Interpolation: 20 steps of warm-up that begin at 10 % of the rate."""
    made = schedule(warmup_steps=20, min_lr_ratio=1.0, warmup_start_ratio=0.1)
    reference = torch.linspace(0.1, 1.0, 21, dtype=torch.float64).tolist()
    assert [made.multiplier(step, max_steps=1000) for step in range(21)] == pytest.approx(reference)


@pytest.mark.parametrize("schedule", [CosineWithWarmup, LinearWithWarmup])
@pytest.mark.parametrize("ratios", [{"min_lr_ratio": 1.5}, {"warmup_start_ratio": -0.1}, {"warmup_start_ratio": 10}])
def test_a_share_of_the_peak_is_from_0_to_1(schedule: type[CosineWithWarmup], ratios: dict[str, float]) -> None:
    ((name, ratio),) = ratios.items()
    with pytest.raises(ValueError, match=rf"^lr_schedule\.{name}={ratio} must be from 0 to 1"):
        schedule(**ratios)  # type: ignore[arg-type]
