"""Adjusted base frequency (ABF)."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_modules.rope.methods.base import BaseRope, ExtendedRope
from lightning_modules.rope.methods.factors import check_theta
from lightning_modules.rope.methods.scaled_base import SCALINGS_OF_THETA, check_on_scaled_base, starting_point


@dataclass(frozen=True)
class AdjustedBase:
    """theta_i = rope_theta ** (-2i / d) with a larger rope_theta.

    Args:
        rope_theta: The new base b.
        on_scaled_base: refuse | replace | keep, for a base model whose RoPE is scaled already.

    Reference:
        Xiong et al. 2023 (Llama 2 Long), arXiv:2309.16039, section 4.1: b from 10,000 to 500,000. The Index-1.9B
        report uses 320,000; Untie the Knots 5,000,000, and on Llama-3.1 with its scaling kept.
    """

    rope_theta: float
    on_scaled_base: str = "refuse"

    def __post_init__(self) -> None:
        check_theta(self.rope_theta)
        check_on_scaled_base(self.on_scaled_base, allowed=SCALINGS_OF_THETA)

    def extend(self, base: BaseRope, *, context_length: int) -> ExtendedRope:
        start = starting_point(base, self.on_scaled_base, changes_theta=True)
        parameters = {**start.rope_parameters, "rope_theta": float(self.rope_theta)}
        return start.extended(parameters, covered_length=max(start.readable_length, context_length))
