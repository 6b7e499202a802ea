"""LongRoPE: a factor for every dimension, given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_modules.rope.methods.base import BaseRope, ExtendedRope
from lightning_modules.rope.methods.factors import Extension, check_factor
from lightning_modules.rope.methods.scaled_base import check_on_scaled_base, starting_point
from lightning_modules.rope.methods.yarn import check_attention_factor


@dataclass(frozen=True)
class LongRoPE:
    """theta_i is divided by lambda_i; beyond the original length L by one list, up to L by another.

    The lists are the result of a search that is not done here: take a published model's. A recipe should train with a
    static type, or with the same numbers in both lists, so that a token is rotated alike in every batch: which list
    applies follows the longest position of the *batch*, so that packed in a row a short document is rotated otherwise
    than alone, and context-parallel ranks can disagree.

    Args:
        long_factor: lambda_i for inputs beyond L, d / 2 numbers.
        short_factor: lambda_i up to L; ones if None, which is the base model's own RoPE.
        factor: s, for the attention factor and the length covered; context_length / L if None.
        attention_factor: Of cos and sin at every length; sqrt(1 + ln s / ln L) if None.
        on_scaled_base: refuse | replace, for a base model whose RoPE is scaled already, such as the 128K Phi-3.

    Reference:
        Ding et al. 2024, arXiv:2402.13753, and microsoft/LongRoPE; the first n0 tokens are not kept apart, as in Phi-3
        and transformers.
    """

    long_factor: Sequence[float]
    short_factor: Sequence[float] | None = None
    factor: float | None = None
    attention_factor: float | None = None
    on_scaled_base: str = "refuse"

    def __post_init__(self) -> None:
        check_factor(self.factor)
        check_attention_factor(self.attention_factor)
        check_on_scaled_base(self.on_scaled_base)
        for name, factors in (("long_factor", self.long_factor), ("short_factor", self.short_factor)):
            if factors is not None and not _are_factors(factors):
                raise ValueError(f"rope.{name}={factors} is not a list of positive numbers; set rope.{name}")

    def extend(self, base: BaseRope, *, context_length: int) -> ExtendedRope:
        start = starting_point(base, self.on_scaled_base)
        original_length, d = start.max_position_embeddings, start.rotary_dim
        short_factor = [1.0] * (d // 2) if self.short_factor is None else self.short_factor
        for name, factors in (("long_factor", self.long_factor), ("short_factor", short_factor)):
            if len(factors) != d // 2:
                raise ValueError(
                    f"rope.{name} has {len(factors)} numbers, but the model rotates {d} dimensions of a head, two by"
                    f" two; give rope.{name} {d // 2} numbers"
                )
        factor, covered_length = Extension.of(
            self.factor, original_length=original_length, context_length=context_length
        )
        parameters: dict[str, Any] = {
            **start.rope_parameters,
            "rope_type": "longrope",
            "factor": factor,
            "original_max_position_embeddings": original_length,
            "short_factor": [float(number) for number in short_factor],
            "long_factor": [float(number) for number in self.long_factor],
        }
        if self.attention_factor is not None:
            parameters["attention_factor"] = float(self.attention_factor)
        return start.extended(parameters, covered_length=covered_length)


def _are_factors(factors: Any) -> bool:
    return isinstance(factors, list | tuple) and all(
        isinstance(number, int | float) and math.isfinite(number) and number > 0 for number in factors
    )
