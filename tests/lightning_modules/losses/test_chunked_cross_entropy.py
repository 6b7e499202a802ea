from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.activation_memory import LiveTensors
from datamodules.batch import IGNORE_INDEX
from lightning_modules.losses.chunked_cross_entropy import chunked_linear_cross_entropy
from tests.lightning_modules.largest_tensor import LargestTensor

N, H, V = 37, 16, 101


def tensors(dtype: torch.dtype = torch.float32, *, bias: bool = False) -> tuple[torch.Tensor, ...]:
    """hidden [N, H], weight [V, H], targets [N] with a third ignored, and bias [V] or nothing."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, offset = (torch.randn(shape, generator=generator) for shape in ((N, H), (V, H), (V,)))
    targets = torch.randint(0, V, (N,), generator=generator)
    targets[torch.randperm(N, generator=generator)[: N // 3]] = IGNORE_INDEX
    parameters = [hidden, weight, offset] if bias else [hidden, weight]
    parameters = [tensor.to(dtype).requires_grad_() for tensor in parameters]
    return (*parameters[:2], targets, *parameters[2:])


def plain(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Losses [N] of the logits held whole."""
    return F.cross_entropy(F.linear(hidden, weight, bias).float(), targets, reduction="none")


@pytest.mark.parametrize("chunk_size", [1, 7, 25, 26, 1024])
@pytest.mark.parametrize("bias", [False, True])
def test_value_and_gradients_match_plain_cross_entropy(chunk_size: int, bias: bool):
    hidden, weight, targets, *offset = tensors(bias=bias)
    loss = chunked_linear_cross_entropy(
        hidden, weight, targets, chunk_size=chunk_size, bias=offset[0] if bias else None
    )
    (loss.loss_sum * 0.37).backward()

    inputs = tensors(bias=bias)
    expected = plain(*inputs)
    (expected.sum() * 0.37).backward()
    torch.testing.assert_close(loss.token_losses, expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss.loss_sum, expected.sum(), rtol=1e-5, atol=1e-6)
    for ours, theirs in zip((hidden, weight, *offset), (*inputs[:2], *inputs[3:]), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def test_token_losses_are_detached_and_zero_where_ignored():
    hidden, weight, targets = tensors()
    token_losses = chunked_linear_cross_entropy(hidden, weight, targets).token_losses
    assert not token_losses.requires_grad
    assert token_losses.dtype == torch.float32
    assert torch.equal(token_losses == 0, targets == IGNORE_INDEX)


def test_ignored_positions_are_not_computed():
    hidden, weight, targets = tensors()
    poisoned = hidden.detach().clone()
    poisoned[targets == IGNORE_INDEX] = float("nan")
    poisoned.requires_grad_()
    loss = chunked_linear_cross_entropy(poisoned, weight, targets)
    assert torch.equal(loss.loss_sum, chunked_linear_cross_entropy(hidden, weight, targets).loss_sum)
    loss.loss_sum.backward()
    assert poisoned.grad is not None
    assert poisoned.grad[targets == IGNORE_INDEX].abs().max() == 0
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


def test_all_targets_ignored_gives_zero_and_zero_gradients():
    hidden, weight, targets = tensors()
    loss = chunked_linear_cross_entropy(hidden, weight, torch.full_like(targets, IGNORE_INDEX))
    loss.loss_sum.backward()
    assert loss.loss_sum.item() == 0.0
    for tensor in (hidden, weight):
        assert tensor.grad is not None
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


def test_frozen_head_gets_no_gradient_and_costs_none():
    hidden, weight, targets = tensors()
    weight.requires_grad_(False)
    with LargestTensor() as largest:
        chunked_linear_cross_entropy(hidden, weight, targets, chunk_size=2).loss_sum.backward()
    assert weight.grad is None
    assert largest.numel < V * H  # no buffer of the head's size was made
    expected = tensors()
    plain(*expected).sum().backward()
    torch.testing.assert_close(hidden.grad, expected[0].grad, rtol=1e-5, atol=1e-6)


def test_no_gradient_is_computed_without_grad():
    hidden, weight, targets = tensors()
    with torch.no_grad(), LargestTensor() as largest:
        loss = chunked_linear_cross_entropy(hidden, weight, targets, chunk_size=2)
    assert not loss.loss_sum.requires_grad
    assert largest.numel < N * H
    torch.testing.assert_close(loss.token_losses, plain(hidden, weight, targets).detach(), rtol=1e-5, atol=1e-6)


def test_bf16_loss_is_fp32_and_gradients_are_as_near_as_the_plain_ones():
    exact = tensors(torch.bfloat16)
    exact = [tensor.detach().float().requires_grad_() if tensor.is_floating_point() else tensor for tensor in exact]
    expected = plain(*exact)
    expected.sum().backward()

    theirs = tensors(torch.bfloat16)
    plain(*theirs).sum().backward()
    hidden, weight, targets = tensors(torch.bfloat16)
    loss = chunked_linear_cross_entropy(hidden, weight, targets, chunk_size=4)
    loss.loss_sum.backward()
    assert loss.loss_sum.dtype == torch.float32
    torch.testing.assert_close(loss.loss_sum, plain(*theirs).sum(), rtol=1e-5, atol=1e-6)  # same bf16 logits
    for ours, plain_tensor, reference in zip((hidden, weight), theirs[:2], exact[:2], strict=True):
        assert ours.grad is not None
        assert plain_tensor.grad is not None
        assert reference.grad is not None
        assert ours.grad.dtype == torch.bfloat16
        error = (ours.grad.float() - reference.grad).norm()
        assert error <= 1.5 * (plain_tensor.grad.float() - reference.grad).norm()
        assert error / reference.grad.norm() < 0.01


def test_head_gradient_does_not_lose_small_chunks_in_bf16():
    """Many chunks of one position each: a bf16 sum stops growing at 256, the fp32 sum does not."""
    hidden = torch.ones(2000, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    loss = chunked_linear_cross_entropy(hidden, weight, torch.zeros(2000, dtype=torch.long), chunk_size=1)
    loss.loss_sum.backward()
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [-1000.0, 1000.0]


def test_autocast_decides_the_dtype_of_the_logits():
    hidden, weight, targets = tensors()
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_linear_cross_entropy(hidden, weight, targets)
        expected = plain(hidden, weight, targets)
    torch.testing.assert_close(loss.token_losses, expected.detach(), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(loss.token_losses, plain(hidden, weight, targets), rtol=1e-5, atol=1e-6)
    loss.loss_sum.backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32


def test_second_backward_is_refused():
    hidden, weight, targets = tensors()
    loss = chunked_linear_cross_entropy(hidden, weight, targets)
    loss.loss_sum.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="run the forward again"):
        loss.loss_sum.backward()


def test_large_logits_do_not_overflow():
    hidden, weight, targets = tensors()
    with torch.no_grad():
        loss = chunked_linear_cross_entropy(hidden * 1e4, weight, targets)
        torch.testing.assert_close(loss.token_losses, plain(hidden * 1e4, weight, targets), rtol=1e-5, atol=1e-2)


def test_bad_arguments_are_refused():
    hidden, weight, targets = tensors()
    with pytest.raises(ValueError, match=r"set loss\.chunk_size"):
        chunked_linear_cross_entropy(hidden, weight, targets, chunk_size=0)
    with pytest.raises(ValueError, match="do not fit"):
        chunked_linear_cross_entropy(hidden[None], weight, targets)


def test_no_tensor_as_large_as_the_logits_exists():
    hidden, weight = torch.randn(512, 8, requires_grad=True), torch.randn(256, 8, requires_grad=True)
    targets = torch.randint(0, 256, (512,))
    with LargestTensor() as largest:
        chunked_linear_cross_entropy(hidden, weight, targets, chunk_size=32).loss_sum.backward()
    assert largest.numel <= 32 * 256  # one chunk of logits, and the [512, 8] and [256, 8] gradients are smaller
    with LargestTensor() as largest:
        plain(hidden, weight, targets).sum().backward()
    assert largest.numel >= 512 * 256  # the detector does see logits


@pytest.mark.parametrize(("dtype", "num_bytes"), [(torch.float32, 4), (torch.bfloat16, 6)])  # 6: rounded from fp32
def test_second_chunk_of_logits_takes_the_place_of_the_first(dtype: torch.dtype, num_bytes: int):
    C, V = 128, 2048
    hidden = torch.randn(2 * C, 4).to(dtype).requires_grad_()
    weight = torch.randn(V, 4).to(dtype).requires_grad_()
    targets = torch.randint(0, V, (2 * C,))
    with LiveTensors(elsewhere=lambda: 0) as live:
        chunked_linear_cross_entropy(hidden, weight, targets, chunk_size=C).loss_sum.backward()
    assert live.peak_bytes < 1.2 * num_bytes * C * V


PEAK_MEMORY = """
import resource, sys, torch
from lightning_modules.losses.chunked_cross_entropy import chunked_linear_cross_entropy
torch.set_num_threads(1)
def peak(N):
    hidden, weight = torch.randn(N, 16, requires_grad=True), torch.randn(8192, 16, requires_grad=True)
    chunked_linear_cross_entropy(hidden, weight, torch.zeros(N, dtype=torch.long), chunk_size=256).loss_sum.backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(-peak(1024) + peak(16384))
"""


def test_peak_memory_is_flat_in_the_number_of_tokens():
    run = subprocess.run([sys.executable, "-c", PEAK_MEMORY], check=True, capture_output=True, text=True)
    assert int(run.stdout) < 32 * 2**20  # the logits of 16384 positions are 512 MiB


class Products(TorchDispatchMode):
    """Adds up the operations of matrix products; torch's own counter leaves those in place out."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            left, right = args[-2:]
            self.operations += 2 * left.numel() * right.shape[1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("trained_head", "products"), [(True, 3), (False, 2)])
@pytest.mark.parametrize("num_labels", [0, 128, 1024])
def test_products_with_the_head_follow_the_labels(num_labels: int, trained_head: bool, products: int):
    """Logits, the gradient of `hidden` and, of a head that is trained, its own: 2 * labels * H * V operations each."""
    N, H, V = 1024, 16, 64
    hidden, weight = torch.randn(N, H, requires_grad=True), torch.randn(V, H, requires_grad=trained_head)
    targets = torch.full((N,), IGNORE_INDEX)
    targets[torch.randperm(N, generator=torch.Generator().manual_seed(0))[:num_labels]] = 3
    with Products() as counted:
        chunked_linear_cross_entropy(hidden, weight, targets, chunk_size=256).loss_sum.backward()
    assert counted.operations == products * 2 * num_labels * H * V


@pytest.mark.parametrize("trained_head", [True, False])
def test_a_frozen_head_has_no_gradient_held_or_made(trained_head: bool):
    """At V=512 the head's gradient would be the largest tensor by far; a chunk has a quarter of it."""
    hidden, weight = torch.randn(64, 32, requires_grad=True), torch.randn(512, 32, requires_grad=trained_head)
    with LargestTensor() as largest:
        loss = chunked_linear_cross_entropy(hidden, weight, torch.arange(64), chunk_size=8).loss_sum
        held = [grad for grad in loss.grad_fn.grads if grad is not None]  # type: ignore[union-attr]
        loss.backward()
    assert [grad.shape for grad in held] == [hidden.shape] + [weight.shape] * trained_head
    assert (weight.grad is not None) == trained_head
    assert largest.numel == (512 * 32 if trained_head else 8 * 512)


def test_logits_exist_for_labels_alone():
    """Fewer labels than a chunk has positions, and logits of no more than these."""
    hidden, weight = torch.randn(4096, 4, requires_grad=True), torch.randn(1024, 4)
    targets = torch.full((4096,), IGNORE_INDEX)
    targets[::64] = 5
    with LargestTensor() as largest:
        chunked_linear_cross_entropy(hidden, weight, targets, chunk_size=64).loss_sum.backward()
    assert largest.numel == 64 * 1024
