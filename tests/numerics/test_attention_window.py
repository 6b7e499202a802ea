"""A row under an attention window, against plain transformers with the mask written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from datamodules.batch import IGNORE_INDEX, Batch, shifted_targets
from datamodules.step_batches import collate
from lightning_modules.models.causal_lm_with_loss import CausalLMWithLoss
from tests.lightning_modules.tiny_models import tiny_model
from tests.lightning_modules.tiny_training import TinySource, make_row

T = 32


def make_batch(*, masked: bool) -> Batch:
    rows = [make_row((20, 12), seed=1), make_row((5, 27), seed=2)]
    if not masked:
        rows = [r._replace(position_ids=r.position_ids * 0 + range(T), document_ids=r.document_ids * 0) for r in rows]
    return collate(rows)


def expected_loss(batch: Batch, window: int | None) -> tuple[torch.Tensor, torch.nn.Module]:
    """Eager attention under a mask made token by token, and torch's own cross-entropy, summed."""
    model = tiny_model("llama", attention="eager")
    ids = batch["document_ids"]
    mask = torch.full((len(ids), 1, T, T), float("-inf"))
    for row in range(len(ids)):
        for i in range(T):
            for j in range(i + 1):
                if ids[row, i] == ids[row, j] and (window is None or i // window == j // window):
                    mask[row, 0, i, j] = 0.0
    logits = model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], attention_mask=mask, use_cache=False
    ).logits
    targets = shifted_targets(batch)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
    return loss, model


@pytest.mark.parametrize("attention", ["lcr_per_document", "lcr_reference"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("window", [None, 1, 8, 11, 32])
def test_loss_and_gradients_are_those_of_the_mask(window: int | None, masked: bool, attention: str) -> None:
    batch = make_batch(masked=masked)
    expected, plain = expected_loss(batch, window)
    expected.backward()
    ours = CausalLMWithLoss(TinySource(attention=attention).load(), loss_chunk_size=7)
    loss, token_losses, _ = ours(batch, window=window)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert int((token_losses != 0).sum()) == 2 * T - (4 if masked else 2)  # targets are those of the whole row
    gradients = dict(ours.causal_lm.named_parameters())
    for name, parameter in plain.named_parameters():
        assert parameter.grad is not None
        scale = max(float(parameter.grad.abs().max()), 1.0)  # with a window of 1 that of queries and keys is 0
        torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=1e-5, atol=1e-5 * scale, msg=name)


def test_window_matters() -> None:
    batch, model = make_batch(masked=True), CausalLMWithLoss(TinySource().load())
    with torch.no_grad():
        losses = [float(model(batch, window=window).loss_sum) for window in (None, 8)]
    assert abs(losses[0] - losses[1]) > 1e-3
