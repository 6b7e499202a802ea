from __future__ import annotations

import pytest
import torch

from datamodules.batch import PADDING_DOCUMENT
from lightning_modules.attention.layout import DocumentLayout
from lightning_modules.attention.per_document import per_document_attention
from lightning_modules.attention.reference import reference_attention
from tests.lightning_modules.largest_tensor import LargestTensor

SHAPE = (2, 24)
DOCUMENT_IDS = {
    "whole_rows": torch.tensor([[1] * 24, [1] * 24]),
    "contiguous": torch.tensor([[3] * 7 + [1] * 16 + [2], [1] * 20 + [5] * 4]),
    "interleaved": torch.tensor([[1, 2] * 12, [1] * 5 + [7] * 9 + [1] * 10]),
    "padded": torch.tensor([[1] * 10 + [2] * 4 + [-1] * 10, [-1] * 4 + [6] * 20]),
}


def states(B: int, T: int, *, H: int = 4, K: int = 2, D: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query [B, H, T, D], key and value [B, K, T, D]."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(B, heads, T, D, generator=generator).requires_grad_() for heads in (H, K, K))
    return query, key, value


@pytest.mark.parametrize("name", DOCUMENT_IDS)
@pytest.mark.parametrize("scaling", [None, 0.5])
def test_outputs_and_gradients_match_the_explicit_mask(name: str, scaling: float | None):
    document_ids = DOCUMENT_IDS[name]
    real = (document_ids != PADDING_DOCUMENT)[:, :, None, None]  # [B, T, 1, 1]
    layout = DocumentLayout.from_document_ids(document_ids)
    inputs, expected_inputs = states(*SHAPE), states(*SHAPE)

    output = per_document_attention(*inputs, layout, scaling=scaling) * real
    expected = reference_attention(*expected_inputs, document_ids, scaling=scaling) * real
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    for tensor in (output, expected):
        (tensor * torch.arange(tensor.numel()).view_as(tensor).cos()).sum().backward()
    for ours, theirs in zip(inputs, expected_inputs, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def test_reference_matches_attention_written_as_loops():
    query, key, value = (tensor.detach().double() for tensor in states(1, 24))
    document_ids = DOCUMENT_IDS["interleaved"][:1]
    output = reference_attention(query.float(), key.float(), value.float(), document_ids)
    for head in range(4):
        for t in range(24):
            seen = [s for s in range(t + 1) if document_ids[0, s] == document_ids[0, t]]
            weights = torch.softmax(key[0, head // 2, seen] @ query[0, head, t] / 4.0, 0)
            expected = (weights @ value[0, head // 2, seen]).float()
            torch.testing.assert_close(output[0, t, head], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_nothing_quadratic_in_the_row_is_ever_held(interleaved: bool):
    T = 2048
    ids = torch.arange(T)[None]
    layout = DocumentLayout.from_document_ids(ids % 8 if interleaved else ids // 256)
    query, key, value = states(1, T, H=2, K=1, D=8)
    with LargestTensor() as largest:
        per_document_attention(query, key, value, layout).sum().backward()
    assert largest.numel <= 4 * query.numel()
    with LargestTensor() as largest:
        reference_attention(query, key, value, layout.document_ids).sum().backward()
    assert largest.numel >= T * T  # the detector does see a mask


def test_padding_costs_no_attention(monkeypatch: pytest.MonkeyPatch):
    documents: list[int] = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def spy(query: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        documents.append(query.shape[0])
        return attention(query, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    document_ids = DOCUMENT_IDS["padded"]
    per_document_attention(*states(*SHAPE), DocumentLayout.from_document_ids(document_ids))
    assert sum(documents) == 3


def test_dropout_reaches_the_attention_weights():
    layout = DocumentLayout.from_document_ids(DOCUMENT_IDS["contiguous"])
    query, key, value = states(2, 24)
    assert per_document_attention(query, key, value, layout, dropout=1.0).abs().max() == 0
    assert reference_attention(query, key, value, layout.document_ids, dropout=1.0).abs().max() == 0
