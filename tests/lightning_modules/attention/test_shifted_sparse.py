"""Shifted sparse attention against its mask, written token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from datamodules.batch import PADDING_DOCUMENT
from datamodules.step_batches import collate
from lightning_modules.attention.leak_probe import probe_leaks
from lightning_modules.attention.registry import SHIFTED_SPARSE_ATTENTION, register_attention_functions
from lightning_modules.attention.shifted_sparse import ShiftedGroups, shifted_sparse_attention, within_groups
from lightning_modules.models.causal_lm_with_loss import CausalLMWithLoss
from tests.lightning_modules.largest_tensor import LargestTensor
from tests.lightning_modules.tiny_models import tiny_model
from tests.lightning_modules.tiny_training import TinySource, make_row

T = 30
DOCUMENT_IDS = {
    "whole_rows": torch.tensor([[0] * T, [4] * T]),
    "contiguous": torch.tensor([[0] * 11 + [1] * 18 + [2], [2] * 3 + [1] * 27]),
    "interleaved": torch.tensor([[0] * 6 + [1] * 5 + [0] * 9 + [2, 1] * 5, [0, 1, 2] * 10]),
    "padded": torch.tensor([[0] * 9 + [1] * 15 + [-1] * 6, [0] * 20 + [-1] * 10]),
}


def mask(document_ids: torch.Tensor, group_size: int, *, num_heads: int) -> torch.Tensor:
    """[B, H, T, T] bool, by counting the tokens of each document one by one."""
    B, length = document_ids.shape
    allowed = torch.zeros(B, num_heads, length, length, dtype=torch.bool)
    for b in range(B):
        seen: dict[int, int] = {}
        places = []
        for document in document_ids[b].tolist():
            places.append(seen.get(document, 0))
            seen[document] = places[-1] + 1
        for head in range(num_heads):
            shift = 0 if head < num_heads // 2 else group_size // 2
            for i in range(length):
                for j in range(i + 1):
                    same = document_ids[b, i] == document_ids[b, j]
                    allowed[b, head, i, j] = (
                        same and (places[i] + shift) // group_size == (places[j] + shift) // group_size
                    )
    return allowed


def brute_force(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    k, v = (states.repeat_interleave(q.shape[1] // states.shape[1], dim=1) for states in (k, v))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return (scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ v).transpose(1, 2)


def states(shape: tuple[int, int], *, heads: int, kv_heads: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(shape[0], n, shape[1], 8) for n in (heads, kv_heads, kv_heads)]
    return [torch.randn(size, generator=generator, requires_grad=True) for size in sizes]


@pytest.mark.parametrize("name", DOCUMENT_IDS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1), (6, 3), (1, 1)])
@pytest.mark.parametrize("group_size", [2, 8, 64])
def test_output_and_gradients_are_those_of_the_mask(name: str, heads: int, kv_heads: int, group_size: int) -> None:
    ids = DOCUMENT_IDS[name]
    real = (ids != PADDING_DOCUMENT)[:, :, None, None]
    ours, theirs = (states((len(ids), T), heads=heads, kv_heads=kv_heads) for _ in range(2))
    (q, k, v), groups = ours, ShiftedGroups.from_document_ids(ids, group_size=group_size)
    found = shifted_sparse_attention(q, k, v, groups)
    q, k, v = theirs
    expected = brute_force(q, k, v, mask(ids, group_size, num_heads=heads))
    torch.testing.assert_close(found * real, expected * real, rtol=1e-5, atol=1e-5)
    for output in (found, expected):
        (output * real * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-5)


def test_groups_are_as_the_docstring_draws_them() -> None:
    ids = torch.tensor([[5, 5, 9, 5, 5, 9, -1]])
    assert within_groups(ids, 2, shifted=False).tolist() == [[5, 5, 10, 6, 6, 10, -1]]
    assert within_groups(ids, 2, shifted=True).tolist() == [[5, 6, 10, 6, 7, 11, -1]]
    ten = torch.zeros(1, 10, dtype=torch.long)
    sizes = [within_groups(ten, 4, shifted=shifted).unique(return_counts=True)[1].tolist() for shifted in (False, True)]
    assert sizes == [[4, 4, 2], [2, 4, 4]]


@pytest.mark.parametrize("group_size", [0, 1, 3, -2])
def test_group_that_has_no_half_is_refused(group_size: int) -> None:
    with pytest.raises(ValueError, match=f"attention.group_size={group_size} must be an even number of at least 2"):
        within_groups(torch.zeros(1, 8, dtype=torch.long), group_size, shifted=False)


def test_no_tensor_is_as_large_as_a_mask() -> None:
    length = 1024
    groups = ShiftedGroups.from_document_ids(torch.zeros(1, length, dtype=torch.long), group_size=64)
    query, key, value = states((1, length), heads=2, kv_heads=2)
    with LargestTensor() as largest:
        shifted_sparse_attention(query, key, value, groups).sum().backward()
    assert largest.numel < length * length / 8


def model(group_size: int | None = 8) -> CausalLMWithLoss:
    source = TinySource(attention=SHIFTED_SPARSE_ATTENTION)
    return CausalLMWithLoss(source.load(), shifted_group_size=group_size)


def plain_losses(allowed: torch.Tensor | None, batch: Any) -> torch.Tensor:
    """transformers' own model under an explicit mask for each head, or causal within documents."""
    plain = tiny_model("llama", attention="eager").eval()
    ids = batch["document_ids"]
    if allowed is None:
        allowed = mask(ids, 2 * T * 10, num_heads=1)
    logits = plain(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        attention_mask=torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf")),
        use_cache=False,
    ).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())


def test_model_trains_under_it_and_is_evaluated_with_full_attention() -> None:
    register_attention_functions()
    batch = collate([make_row((T,), seed=1)])
    ours = model()
    for training, allowed in ((True, mask(batch["document_ids"], 8, num_heads=4)), (False, None)):
        loss = ours.train(training)(batch).loss_sum / (T - 1)
        torch.testing.assert_close(loss, plain_losses(allowed, batch), rtol=1e-5, atol=0)


def test_no_document_sees_another_and_no_token_its_future() -> None:
    """The paper's roll would let the first half group of a row see its last tokens."""
    ours = model().train()
    batch = collate([make_row((11, 19), seed=1)])

    def losses(input_ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return ours({**batch, "input_ids": input_ids}).token_losses  # type: ignore[arg-type]

    report = probe_leaks(losses, batch["input_ids"], batch["document_ids"], vocab_size=64)
    assert [report.leaks, report.sees_the_future, report.blind] == [False] * 3


def test_training_without_groups_and_with_fragments_is_refused() -> None:
    batch = collate([make_row((T,), seed=1)])
    with pytest.raises(ValueError, match="was given no groups to train with; set attention=shifted_sparse with"):
        model(group_size=None).train()(batch)
    with pytest.raises(ValueError, match=r"attention=shifted_sparse has groups .* length_schedule\.mechanism=window"):
        model().train()(batch, window=8)
    model().eval()(batch, window=8)
