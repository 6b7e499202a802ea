"""Muon on several ranks: the update is that of the whole matrix, whoever holds its rows.

torch's Muon orthogonalises in bf16, by five polynomials that blow up small singular values about 3.4-fold each. So what
differs in the last bit of a gradient, as sums over ranks do, differs in some percent of an update: 1.7 percent of the
way of the worst matrix after four steps, between micro-batches on one device as between two DDP ranks, and 5 percent
where FSDP2 also splits the products inside. 10 percent is allowed; rows orthogonalised by themselves are much further.
"""

from __future__ import annotations

import pytest
import torch

from tests.distributed.conftest import TwoRanks
from tests.distributed.worker import run
from tests.lightning_modules.tiny_models import tiny_model

ALLOWED = 0.1  # of the way that a matrix has come
ALLOWED_UNDER_ADAMW = 0.01  # of embeddings, head and vectors, which see the matrices through the loss alone


def distance(found: torch.Tensor, expected: torch.Tensor, start: torch.Tensor) -> float:
    return float((found - expected).norm() / (expected - start).norm())


@pytest.fixture(scope="module")
def single() -> dict[str, torch.Tensor]:
    return run({"ranks": 1, "strategy": "single", "micro_batches": [4], "steps": 4, "optimizer": "muon"})["weights"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_move_as_one_device(strategy: str, single: dict[str, torch.Tensor], two_ranks: TwoRanks) -> None:
    weights = two_ranks.results[f"{strategy}_muon"]["weights"]
    start = dict(tiny_model("llama").named_parameters())
    assert weights.keys() == single.keys() == start.keys()
    for name, weight in weights.items():
        is_matrix_of_layer = weight.ndim == 2 and ".layers." in name
        allowed = ALLOWED if is_matrix_of_layer else ALLOWED_UNDER_ADAMW
        assert distance(weight, single[name], start[name].detach()) < allowed, name


def test_orthogonalising_the_rows_of_each_rank_would_be_noticed() -> None:
    """A gradient of full rank: what a sharded Muon that never gathers would do to it."""
    gradient = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))

    def moved(rows: list[torch.Tensor]) -> torch.Tensor:
        parameters = [torch.nn.Parameter(torch.zeros_like(part)) for part in rows]
        for parameter, part in zip(parameters, rows, strict=True):
            parameter.grad = part.clone()
        torch.optim.Muon(parameters, lr=1.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw").step()
        return torch.cat([parameter.detach() for parameter in parameters])

    whole = moved([gradient])
    assert distance(moved(list(gradient.chunk(2))), whole, torch.zeros(64, 64)) > 4 * ALLOWED
