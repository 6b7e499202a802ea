"""A run that is stopped on two ranks and goes on on two ranks computes what it would have computed, bit for bit."""

from __future__ import annotations

import pytest
import torch

from tests.distributed.conftest import MAX_STEPS, STOP_AT, TwoRanks
from tests.resume.recipe_runs import losses


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_run_resumed_on_as_many_ranks_goes_on_bit_for_bit(strategy: str, two_ranks: TwoRanks) -> None:
    result, folder = two_ranks.results[f"{strategy}_stopped"], two_ranks.folder / f"{strategy}_stopped"
    assert result["stopped_at"] == STOP_AT
    expected, found = losses(folder / "straight"), losses(folder / "stopped")
    assert list(expected) == list(range(1, MAX_STEPS + 1))
    assert len({loss for (loss,) in expected.values()}) == MAX_STEPS
    assert found == expected
    assert losses(folder / "stopped", "val/loss") == losses(folder / "straight", "val/loss")
    assert len(result["straight"]) == 20
    for name, weight in result["straight"].items():
        assert torch.equal(result["resumed"][name], weight), name
