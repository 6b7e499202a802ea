from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from datamodules.step_batches import collate
from lightning_modules.memory import kept_attention
from lightning_modules.memory.activation_memory import ActivationMemory
from lightning_modules.memory.kept_attention import KERNELS, KeptAttention, is_fused, is_kept
from tests.lightning_modules.memory.training import NUM_LAYERS, gradients_of, make_model
from tests.lightning_modules.tiny_training import uneven_rows

ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


class Counted(TorchDispatchMode):
    """Counts the calls of fused attention that are run."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is ON_CPU
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _warns_anew() -> Iterator[None]:
    kept_attention.warn_that_nothing_was_kept.cache_clear()
    yield
    kept_attention.warn_that_nothing_was_kept.cache_clear()


def attention_forwards(**setting: Any) -> int:
    model = make_model(ActivationMemory(**setting))
    with Counted() as counted:
        gradients_of(model)
    return counted.count


def test_attention_runs_forward_once_and_not_again_in_the_backward() -> None:
    once = attention_forwards()
    assert once == 2 * NUM_LAYERS  # micro-batches; documents below 64 tokens are one block
    assert attention_forwards(recompute="full") == 2 * once
    assert attention_forwards(recompute="keep_attention") == once
    assert attention_forwards(recompute="keep_attention", mlp_tile_size=10, offload_to_host=True) == once


def test_outputs_are_let_go_of_as_they_are_used() -> None:
    kept = KeptAttention()
    x = torch.randn(1, 2, 8, 4, requires_grad=True)

    def attention(x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x, is_causal=True).sin()

    y = checkpoint(attention, x, use_reentrant=False, context_fn=lambda: (kept.keeping, kept.replaying))
    assert len(kept) == 1
    y.sum().backward()
    assert len(kept) == 0
    expected = torch.autograd.grad(attention(x).sum(), x)[0]
    assert x.grad is not None
    assert torch.equal(x.grad, expected)


def test_a_backward_after_autocast_has_ended_casts_weights_anew() -> None:
    """Weights whose casts autocast remembers in the forward and not in the backward change no count."""
    gradients = []
    for recompute in ("none", "keep_attention"):
        model = make_model(ActivationMemory(recompute=recompute))
        batch = collate(uneven_rows())
        with torch.autocast("cpu", torch.bfloat16):
            model(batch).loss_sum.backward()
            model.zero_grad()
            loss = model(batch).loss_sum
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for ours, expected in zip(gradients[1], gradients[0], strict=True):
        assert torch.equal(ours, expected)


def test_attention_with_dropout_is_recomputed_so_that_what_drops_after_it_draws_the_same() -> None:
    """Where a kernel draws, leaving it out would shift the random numbers of the rest of the layer."""
    q = torch.zeros(1, 1, 4, 8)
    assert is_kept(ON_CPU, (q, q, q), {})
    assert is_kept(ON_CPU, (q, q, q, 0.0, True), {})
    assert not is_kept(ON_CPU, (q, q, q, 0.1, True), {})
    on_gpu = torch.ops.aten._scaled_dot_product_flash_attention.default
    assert is_kept(on_gpu, (q, q, q), {})
    assert not is_kept(on_gpu, (q, q, q), {"dropout_p": 0.1})
    # bias and compute_log_sumexp come before dropout in this one.
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention.default
    assert is_kept(efficient, (q, q, q, None, True), {})
    assert not is_kept(efficient, (q, q, q, None, True, 0.1), {})


def test_where_nothing_can_be_kept_it_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    gradients_of(make_model(ActivationMemory(recompute="keep_attention")))
    assert "keep_attention keeps nothing" not in caplog.text
    gradients_of(make_model(ActivationMemory(recompute="keep_attention"), attention_dropout=0.3))
    assert caplog.text.count("keep_attention keeps nothing") == 1


def test_a_second_backward_of_one_forward_is_a_clear_error() -> None:
    kept = KeptAttention()
    x = torch.randn(1, 2, 8, 4, requires_grad=True)
    y = checkpoint(
        lambda x: F.scaled_dot_product_attention(x, x, x).sin(),
        x,
        use_reentrant=False,
        context_fn=lambda: (kept.keeping, kept.replaying),
    )
    y.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="which its forward did not run or has handed over; a backward pass can run"):
        y.sum().backward()


def test_torchs_own_kernels_are_all_known_by_name() -> None:
    names = [name.split("::")[1] for name in KERNELS if name.startswith("aten::")]
    assert len(names) == 5
    assert all(is_fused(getattr(torch.ops.aten, name).default) for name in names)
    assert not is_fused(torch.ops.aten.mm.default)
