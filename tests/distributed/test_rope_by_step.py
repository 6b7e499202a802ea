"""RoPE that changes by step on two sharded ranks."""

from __future__ import annotations

import pytest
import torch

from tests.distributed.conftest import TwoRanks


def test_tables_are_right_on_every_sharded_rank(two_ranks: TwoRanks) -> None:
    """FSDP2 over gloo: a change by step, and a table that one rank alone has wrong stops both."""
    results = (two_ranks.results, two_ranks.results_of_second)
    for found, fault in zip(results, ("another rank's RoPE", "inv_freq does not hold"), strict=True):
        of_rank = found["rope_by_step"]
        assert of_rank["thetas"] == pytest.approx([4e4, 4e4, 9e5, 9e5], rel=1e-4)
        expected = torch.tensor([9e5 ** (-2 * i / 16) for i in range(8)])
        torch.testing.assert_close(of_rank["inv_freq"], expected, rtol=1e-6, atol=0.0)
        assert fault in of_rank["fault"]
    # The sharded losses are those of one process.
    first = two_ranks.results["rope_by_step"]
    assert first["losses"] == pytest.approx(first["alone"], rel=1e-5)
