from __future__ import annotations

import math

import pytest
import torch

from lightning_modules.metrics.position_loss import PositionLoss

EDGES = {"00000-00255": (0, 256), "00256-00511": (256, 512), "00512-01023": (512, 1024)}


def brute_force(batches: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    tokens = [
        (int(position), float(loss))
        for losses, targets, positions in batches
        for loss, target, position in zip(losses.flatten(), targets.flatten(), positions.flatten(), strict=True)
        if target
    ]
    result = {"loss": math.fsum(loss for _, loss in tokens) / len(tokens)}
    for name, (start, end) in EDGES.items():
        if inside := [loss for position, loss in tokens if start <= position < end]:
            result[f"loss_at/{name}"] = math.fsum(inside) / len(inside)
    return result


def random_batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(3, 200, generator=generator) * 5
    return (
        losses,
        torch.rand(3, 200, generator=generator) < 0.6,
        torch.randint(0, 1024, (3, 200), generator=generator),
    )


def test_equals_brute_force_over_several_batches() -> None:
    batches = [random_batch(seed) for seed in range(3)]
    metric = PositionLoss(max_seqlen=1024)
    for batch in batches:
        metric.update(*batch)
    expected = brute_force(batches)
    assert len(expected) == 4
    assert metric.compute() == pytest.approx(expected, rel=1e-9)


def test_edges_of_buckets_belong_to_the_bucket_that_they_open() -> None:
    positions = torch.tensor([[0, 255, 256, 511, 512, 1023]])
    losses = torch.tensor([[1.0, 3.0, 10.0, 30.0, 100.0, 300.0]])
    metric = PositionLoss(max_seqlen=1024)
    metric.update(losses, torch.ones_like(positions, dtype=torch.bool), positions)
    found = metric.compute()
    assert [found[f"loss_at/{name}"] for name in EDGES] == [2.0, 20.0, 200.0]


def test_empty_buckets_are_left_out_and_never_nan() -> None:
    positions = torch.tensor([[3, 600, 700]])
    metric = PositionLoss(max_seqlen=1024)
    metric.update(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[True, False, True]]), positions)
    assert metric.compute() == {"loss": 2.5, "loss_at/00000-00255": 1.0, "loss_at/00512-01023": 4.0}


def test_no_target_at_all_gives_nothing() -> None:
    metric = PositionLoss(max_seqlen=1024)
    metric.update(torch.zeros(1, 4), torch.zeros(1, 4, dtype=torch.bool), torch.arange(4)[None])
    assert metric.compute() == {}


def test_positions_beyond_the_row_go_into_the_last_bucket() -> None:
    metric = PositionLoss(max_seqlen=300)
    metric.update(torch.tensor([[2.0]]), torch.tensor([[True]]), torch.tensor([[5000]]))
    assert metric.compute() == {"loss": 2.0, "loss_at/00256-00511": 2.0}


def test_reset_forgets() -> None:
    metric = PositionLoss(max_seqlen=1024)
    metric.update(*random_batch(0))
    metric.reset()
    second = random_batch(1)
    metric.update(*second)
    assert metric.compute() == pytest.approx(brute_force([second]), rel=1e-9)
