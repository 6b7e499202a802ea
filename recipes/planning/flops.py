"""What a training step costs in FLOPs.

Model FLOPs count what the mathematics needs: causal attention as a half, no recomputation. Conventions differ by up to
a factor of two (torchtitan counts the whole square of attention), so a share of a peak says nothing without this:

    linear     2 N T                    N weights of matrix products, output head included, embedding table not
    attention  2 L (heads * head_dim) sum n (n + 1)    over documents of n tokens: QK and PV, causal
    full       3 linear + 3 attention
    LoRA       2 linear + 6 N_lora T + 3 attention     frozen matrices get no gradient

Reference: Narayanan et al. 2021, arXiv:2104.04473 (model FLOPs); Dao 2023, arXiv:2307.08691 (attention's backward runs
2.5 times the products of its forward).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from recipes.planning.dimensions import Dimensions

BACKWARD_OF_ATTENTION = 2.5
"""Products of attention's backward kernel over those of its forward: it computes QK once more."""

PASSES = {"none": 1.0, "full": 2.0, "keep_attention": 2.0}
"""Forwards of a layer in a step; `every_n_layers` says its own."""


class StepFlops(NamedTuple):
    """What the hardware computes in a step, recomputation included."""

    linear: float
    attention_forward: float
    attention_backward: float


def pairs(lengths: Sequence[int]) -> int:
    """sum n (n + 1): twice the pairs of a token and one that it sees, over documents of n tokens."""
    return sum(length * (length + 1) for length in lengths)


def attention_forward(model: Dimensions, seen: float) -> float:
    """FLOPs of causal attention's forward; `seen` is `pairs` of the documents."""
    return 2 * model.num_layers * model.query_size * seen


def model_flops(model: Dimensions, *, tokens: float, seen: float, adapter_weights: int | None = None) -> float:
    """FLOPs of training on so many tokens.

    Args:
        model: Sizes.
        tokens: Of all documents.
        seen: `pairs` of the documents.
        adapter_weights: Weights of adapters beside a frozen model; None where all of it trains.
    """
    attention = 3 * attention_forward(model, seen)
    if adapter_weights is None:
        return 6 * model.num_matmul * tokens + attention
    return (4 * model.num_matmul + 6 * adapter_weights) * tokens + attention


def layer_forwards(recompute: str, layers_per_checkpoint: int | None) -> float:
    """Forwards of a layer in one step."""
    if recompute == "every_n_layers":
        assert layers_per_checkpoint is not None
        return 2.0 + (layers_per_checkpoint - 1) / layers_per_checkpoint
    return PASSES[recompute]


def step_flops(
    model: Dimensions,
    *,
    tokens: float,
    seen: float,
    adapter_weights: int | None = None,
    recompute: str = "none",
    layers_per_checkpoint: int | None = None,
) -> StepFlops:
    """What is computed for so many tokens, with what the backward computes again (the head is not)."""
    attention, forwards = attention_forward(model, seen), layer_forwards(recompute, layers_per_checkpoint)
    linear = model_flops(model, tokens=tokens, seen=seen, adapter_weights=adapter_weights) - 3 * attention
    linear += (forwards - 1) * 2 * (model.num_matmul - model.embedding) * tokens
    kept = 1.0 if recompute == "keep_attention" else forwards
    return StepFlops(linear, kept * attention, BACKWARD_OF_ATTENTION * attention)
