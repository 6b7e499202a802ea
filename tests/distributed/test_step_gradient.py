"""The gradient of a step is the mean over its target tokens, whatever the layout: micro-batches, DDP, FSDP2."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from datamodules.batch import num_targets
from datamodules.step_batches import collate
from tests.distributed.conftest import TwoRanks
from tests.distributed.worker import run
from tests.lightning_modules.tiny_models import tiny_model
from tests.lightning_modules.tiny_training import uneven_rows
from tests.numerics.test_packed_equals_separate import separate_loss

STRATEGIES = ["ddp", "fsdp"]


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    """The mean over all targets by plain transformers, one document at a time; nothing of ours but the rows."""
    rows = uneven_rows()
    model = tiny_model("llama", attention="sdpa")
    (separate_loss(model, rows) / sum(num_targets(collate([row])) for row in rows)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_gradient(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5 * scale, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("micro_batches", [[4], [2, 2], [3, 1], [1, 1, 1, 1]])
def test_micro_batches_do_not_change_the_gradient(micro_batches: list[int], expected: dict[str, torch.Tensor]) -> None:
    result = run({"ranks": 1, "strategy": "single", "micro_batches": micro_batches, "steps": 1})
    assert_same_gradient(result["gradients"][0], expected)
    # SGD with lr=1 and no clipping: what the weights lost is the gradient.
    start = dict(tiny_model("llama").named_parameters())
    for name, weight in result["weights"].items():
        torch.testing.assert_close(start[name].detach() - weight, expected[name], rtol=0, atol=2e-6)


def test_mean_of_micro_batch_means_is_another_gradient(expected: dict[str, torch.Tensor]) -> None:
    """The rows are uneven enough that Lightning's own accumulation would be caught."""
    model = tiny_model("llama", attention="sdpa")
    for row in uneven_rows():
        (separate_loss(model, [row]) / num_targets(collate([row])) / 4).backward()
    flat = torch.cat([p.grad.flatten() for p in model.parameters()])
    right = torch.cat([gradient.flatten() for gradient in expected.values()])
    assert F.cosine_similarity(flat, right, dim=0) < 0.9


@pytest.mark.parametrize("strategy", [*STRATEGIES, "fsdp_once_a_step"])
def test_two_ranks_have_the_gradient_of_one(
    strategy: str, expected: dict[str, torch.Tensor], two_ranks: TwoRanks
) -> None:
    result = two_ranks.results[strategy]
    assert_same_gradient(result["gradients"][0], expected)
    single = run({"ranks": 1, "strategy": "single", "micro_batches": [4], "steps": 2})
    for name, weight in single["weights"].items():
        torch.testing.assert_close(result["weights"][name], weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("strategy", "reductions"),
    [
        ("ddp", 1),  # of one bucket
        ("fsdp_once_a_step", 3),  # two layers and the rest
        ("fsdp", 2 * 3),  # with each of two micro-batches, so that no rank holds the gradients of the whole model
    ],
)
def test_gradients_travel_as_often_in_a_step_as_the_strategy_says(
    strategy: str, reductions: int, two_ranks: TwoRanks
) -> None:
    assert two_ranks.results[strategy]["reductions"] == 2 * reductions  # two steps
