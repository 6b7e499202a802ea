"""Packed rows against the same documents one by one through plain transformers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from datamodules.batch import Batch
from datamodules.packed_dataset import Sequence
from datamodules.step_batches import collate
from lightning_modules.models.causal_lm_with_loss import CausalLMWithLoss
from tests.lightning_modules.tiny_models import tiny_model
from tests.lightning_modules.tiny_training import TinySource, make_row, uneven_rows

ARCHITECTURE = "llama"


def documents_of(row: Sequence) -> list[Sequence]:
    """The contiguous documents of one row."""
    edges = [int(d) for d in dict.fromkeys(row.document_ids.tolist())]
    return [Sequence(*(array[row.document_ids == d] for array in row[:5])) for d in edges]


def separate_loss(model: torch.nn.Module, rows: list[Sequence]) -> torch.Tensor:
    """One sdpa forward per document and torch's own cross-entropy, summed."""
    total = torch.zeros(())
    for document in (document for row in rows for document in documents_of(row)):
        logits = model(input_ids=torch.from_numpy(document.input_ids)[None], use_cache=False).logits[0]
        total = total + F.cross_entropy(logits[:-1], torch.from_numpy(document.labels)[1:], reduction="sum")
    return total


def packed(source: TinySource, *, chunk_size: int = 7) -> CausalLMWithLoss:
    return CausalLMWithLoss(source.load(), loss_chunk_size=chunk_size)


@pytest.mark.parametrize("attention", ["lcr_per_document", "lcr_reference"])
@pytest.mark.parametrize("tied", [False, True])
def test_packed_loss_and_gradients_equal_documents_one_by_one(attention: str, tied: bool) -> None:
    rows = uneven_rows()
    settings = {"tie_word_embeddings": tied}
    ours = packed(TinySource(attention=attention, settings=settings))
    plain = tiny_model(ARCHITECTURE, attention="sdpa", **settings)

    loss = ours(collate(rows)).loss_sum
    loss.backward()
    expected = separate_loss(plain, rows)
    expected.backward()

    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    gradients = dict(ours.causal_lm.named_parameters())
    compared = 0
    for name, parameter in plain.named_parameters():
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=1e-5, atol=1e-5 * scale, msg=name)
        compared += 1
    assert compared == len(gradients) == (20 if tied else 21)


def losses(model: CausalLMWithLoss, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return model(batch).token_losses


@pytest.mark.parametrize("place", [0, 11, 12, 31])
def test_perturbed_token_moves_no_loss_of_another_document(place: int) -> None:
    batch = collate([make_row((12, 20), seed=1), make_row((32,), seed=2)])
    model = packed(TinySource())
    before = losses(model, batch)
    batch["input_ids"][0, place] = (batch["input_ids"][0, place] + 1) % 64
    after = losses(model, batch)

    moved = (before != after)[0]
    own = batch["document_ids"][0] == batch["document_ids"][0, place]
    assert not moved[~own].any()
    assert torch.equal(before[1], after[1])
    has_target = place not in (11, 31)  # a document's last token predicts nothing
    assert bool(moved[own].any()) == has_target


def test_last_token_of_a_document_is_not_trained_on_the_next_documents_first() -> None:
    batch = collate([make_row((12, 20), seed=1)])
    token_losses = losses(packed(TinySource()), batch)[0]
    assert (token_losses == 0).nonzero().flatten().tolist() == [11, 31]
