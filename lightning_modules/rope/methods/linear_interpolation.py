"""Position interpolation (PI)."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_modules.rope.methods.base import BaseRope, ExtendedRope
from lightning_modules.rope.methods.factors import Extension, check_factor
from lightning_modules.rope.methods.scaled_base import check_on_scaled_base, starting_point


@dataclass(frozen=True)
class LinearInterpolation:
    """Position m is read as m / factor, so that theta_i becomes theta_i / factor.

    Args:
        factor: L' / L of the paper; context_length / original length if None.
        on_scaled_base: refuse | replace, for a base model whose RoPE is scaled already.

    Reference:
        Chen et al. 2023, arXiv:2306.15595, eq. 4: f'(x, m) = f(x, m L / L'). Agrees exactly, with factor = L' / L.
    """

    factor: float | None = None
    on_scaled_base: str = "refuse"

    def __post_init__(self) -> None:
        check_factor(self.factor)
        check_on_scaled_base(self.on_scaled_base)

    def extend(self, base: BaseRope, *, context_length: int) -> ExtendedRope:
        start = starting_point(base, self.on_scaled_base)
        factor, covered_length = Extension.of(
            self.factor, original_length=start.max_position_embeddings, context_length=context_length
        )
        parameters = {**start.rope_parameters, "rope_type": "linear", "factor": factor}
        return start.extended(parameters, covered_length=covered_length)
