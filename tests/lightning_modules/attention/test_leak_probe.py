from __future__ import annotations

from typing import Any

import pytest
import torch

from datamodules.batch import PADDING_DOCUMENT
from lightning_modules.attention.leak_probe import LeakReport, Moved, around_edges, probe_leaks
from lightning_modules.attention.registry import register_attention_functions
from tests.lightning_modules.tiny_models import tiny_model

T = 24
EMBEDDING = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
DOCUMENT_IDS = {
    "contiguous": torch.tensor([[3] * 9 + [1] * 8 + [2] * 7]),
    "interleaved": torch.tensor([[0] * 6 + [1] * 5 + [0] * 4 + [2] * 5 + [1] * 4]),
    "padded": torch.tensor([[0] * 10 + [1] * 8 + [PADDING_DOCUMENT] * 6]),
}


def input_ids(rows: int = 1) -> torch.Tensor:
    return torch.randint(0, 64, (rows, T), generator=torch.Generator().manual_seed(5))


def mixing(weights: torch.Tensor) -> Any:
    """An output in which position t sees position s where weights [T, T] are not 0."""

    def outputs(ids: torch.Tensor) -> torch.Tensor:
        return EMBEDDING[ids] @ weights.T.double()

    return outputs


def allowed(document_ids: torch.Tensor) -> torch.Tensor:
    """[T, T]: who may see whom, brute force."""
    ids = document_ids[0]
    return torch.tensor([[float(s <= t and ids[s] == ids[t]) for s in range(T)] for t in range(T)])


def probe(outputs: Any, document_ids: torch.Tensor, **options: Any) -> LeakReport:
    return probe_leaks(outputs, input_ids(len(document_ids)), document_ids, vocab_size=64, **options)


@pytest.mark.parametrize("name", DOCUMENT_IDS)
@pytest.mark.parametrize("single_token", [False, True])
def test_the_document_mask_itself_is_clean(name: str, single_token: bool):
    report = probe(mixing(allowed(DOCUMENT_IDS[name])), DOCUMENT_IDS[name], single_token=single_token)
    assert not report.leaks
    assert not report.sees_the_future
    assert report.after.num_moved == report.after.num_positions > 0
    assert report.others.num_positions > 0


@pytest.mark.parametrize("name", DOCUMENT_IDS)
def test_every_wrong_neighbour_across_an_edge_is_found(name: str):
    """One forbidden pair at a time: the token before each edge seen from the first token after it."""
    document_ids = DOCUMENT_IDS[name]
    edges = [t for t in range(1, T) if document_ids[0, t] != document_ids[0, t - 1]]
    edges = [t for t in edges if document_ids[0, t] != PADDING_DOCUMENT]
    assert edges
    for t in edges:
        weights = allowed(document_ids)
        weights[t, t - 1] = 1.0
        report = probe(mixing(weights), document_ids)
        # The last token before an edge is in the changed half unless its document goes on after it.
        goes_on = document_ids[0, t - 1] in document_ids[0, t:]
        assert report.leaks or goes_on, t


def test_the_number_of_positions_that_moved_is_that_of_brute_force():
    document_ids = torch.tensor([[0] * 12 + [1] * 12])
    at_6 = input_ids()[0, 6]
    report = probe(mixing(torch.ones(T, T).tril()), document_ids, single_token=True)
    # Token 6 is seen from 6 to 23, token 18 from 18 to 23.
    assert report.others[:2] == (12, 24)
    assert report.others.largest == pytest.approx(float((EMBEDDING[at_6] - EMBEDDING[(at_6 + 32) % 64]).abs()))
    assert report.before == Moved(0, 12, 0.0)
    assert report.after[:2] == (12, 12)


def test_a_future_token_is_found():
    document_ids = torch.zeros(1, T, dtype=torch.long)
    report = probe(mixing(torch.ones(T, T)), document_ids)
    assert report.sees_the_future
    assert report.before[:2] == (12, 12)
    assert report.others.num_positions == 0


def test_padding_that_is_seen_is_a_leak_and_padding_that_moves_is_none():
    document_ids = torch.tensor([[0] * 16 + [PADDING_DOCUMENT] * 8])
    weights = allowed(document_ids)
    weights[:16, 20] = 1.0
    assert probe(mixing(weights), document_ids).leaks
    weights = allowed(document_ids)
    weights[20, :16] = 1.0
    assert not probe(mixing(weights), document_ids).leaks


def test_another_row_is_another_document():
    document_ids = torch.zeros(2, T, dtype=torch.long)
    clean = probe(lambda ids: EMBEDDING[ids].cumsum(1), document_ids)
    assert not clean.leaks
    document_ids = torch.tensor([[0] * T, [0] * 12 + [1] * 12])
    assert probe(lambda ids: EMBEDDING[ids].cumsum(1) + EMBEDDING[ids].sum(), document_ids).leaks


def test_what_a_kernel_does_not_reproduce_is_no_leak_but_a_leak_beside_it_is():
    document_ids = DOCUMENT_IDS["contiguous"]
    generator = torch.Generator().manual_seed(0)

    def noisy(weights: torch.Tensor) -> Any:
        return lambda ids: mixing(weights)(ids) + 1e-6 * torch.rand(1, T, generator=generator)

    assert not probe(noisy(allowed(document_ids)), document_ids).leaks
    assert probe(noisy(torch.ones(T, T).tril()), document_ids).leaks


def test_an_output_that_turns_into_no_number_has_moved():
    def outputs(ids: torch.Tensor) -> torch.Tensor:
        clean = mixing(allowed(DOCUMENT_IDS["contiguous"]))(ids)
        return torch.where(ids.sum() == input_ids().sum(), clean, float("nan"))

    assert probe(outputs, DOCUMENT_IDS["contiguous"]).leaks


def test_nothing_that_moves_is_blind():
    assert probe(lambda ids: torch.zeros(1, T), DOCUMENT_IDS["contiguous"]).blind


@pytest.mark.parametrize("attention", ["lcr_per_document", "lcr_reference"])
@pytest.mark.parametrize("name", DOCUMENT_IDS)
def test_our_attention_in_a_model_is_clean_and_plain_sdpa_is_not(attention: str, name: str):
    register_attention_functions()
    document_ids = DOCUMENT_IDS[name]
    model = tiny_model("llama", attention=attention).eval()

    def outputs(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(ids, document_ids=document_ids, use_cache=False).logits

    report = probe(outputs, document_ids, single_token=True)
    assert [report.leaks, report.sees_the_future, report.blind] == [False] * 3
    model.set_attn_implementation("sdpa")
    assert probe(outputs, document_ids, single_token=True).leaks


def test_columns_around_edges():
    document_ids = torch.tensor([[0] * 50 + [1] * 50, [0] * 100])
    columns = around_edges(document_ids, num_tokens=10)
    assert columns[0].tolist() == [*range(45, 55)]
    assert columns[1].tolist() == [*range(10)]
    assert around_edges(document_ids, num_tokens=1000).shape == (2, 100)


def test_columns_around_many_edges_hold_more_than_the_edges():
    document_ids = (torch.arange(1000) // 8)[None]
    columns = around_edges(document_ids, num_tokens=32)[0]
    assert columns.tolist() == [*range(4, 36)]
    assert [int(n) for n in document_ids[0, columns].unique(return_counts=True)[1]] == [4, 8, 8, 8, 4]
