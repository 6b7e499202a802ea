"""Recomputed layers, offloaded inputs, tiled MLPs and bf16 moments on several ranks, all at once."""

from __future__ import annotations

import pytest
import torch

from tests.distributed.conftest import TwoRanks
from tests.distributed.worker import run
from tests.lightning_modules.tiny_models import tiny_model


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_gradients_are_those_of_layers_that_hold_everything(strategy: str, two_ranks: TwoRanks) -> None:
    found, expected = (two_ranks.results[name]["gradients"][0] for name in (f"{strategy}_memory", strategy))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < 1e-5 * gradient.norm(), name


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_gradients_still_travel_once_a_step(strategy: str, two_ranks: TwoRanks) -> None:
    assert two_ranks.results[f"{strategy}_memory"]["reductions"] == two_ranks.results[strategy]["reductions"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_bf16_moments_move_the_weights_as_on_one_device(strategy: str, two_ranks: TwoRanks) -> None:
    """Within a percent of the way: of a sharded moment other numbers are rounded up than of a whole one."""
    job = {"ranks": 1, "strategy": "single", "micro_batches": [4], "steps": 2, "optimizer": "adamw_bf16"}
    single, weights = run(job)["weights"], two_ranks.results[f"{strategy}_memory"]["weights"]
    start = {name: parameter.detach() for name, parameter in tiny_model("llama").named_parameters()}
    for name, weight in single.items():
        assert (weights[name] - weight).norm() < 0.01 * (weight - start[name]).norm(), name
    assert not torch.equal(single["lm_head.weight"], start["lm_head.weight"])
