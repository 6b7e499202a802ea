"""The scaling of Llama 3.1."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_modules.rope.methods.base import BaseRope, ExtendedRope
from lightning_modules.rope.methods.factors import Extension, check_factor
from lightning_modules.rope.methods.scaled_base import check_on_scaled_base, starting_point


@dataclass(frozen=True)
class Llama3:
    """Wavelengths below L / high_freq_factor are kept, those above L / low_freq_factor interpolated by s.

    In between the two are mixed, linearly in the number of turns over the original length L.

    Args:
        factor: s; context_length / L if None.
        low_freq_factor: Turns over L up to which a dimension is interpolated in full.
        high_freq_factor: Turns over L from which on a dimension is left alone.
        on_scaled_base: refuse | replace, for a base model whose RoPE is scaled already, such as Llama 3.1 itself.

    Reference:
        Llama 3.1's released code and configs: L = 8192, s = 8 (32 for the 1B and 3B of Llama 3.2), 1 and 4.
    """

    factor: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    on_scaled_base: str = "refuse"

    def __post_init__(self) -> None:
        check_factor(self.factor)
        check_on_scaled_base(self.on_scaled_base)
        if not (0 < self.low_freq_factor < self.high_freq_factor < math.inf):
            raise ValueError(
                f"rope.low_freq_factor={self.low_freq_factor} and rope.high_freq_factor={self.high_freq_factor} are"
                " not turns in rising order; set rope.low_freq_factor above 0 and below rope.high_freq_factor"
            )

    def extend(self, base: BaseRope, *, context_length: int) -> ExtendedRope:
        start = starting_point(base, self.on_scaled_base)
        original_length = start.max_position_embeddings
        factor, covered_length = Extension.of(
            self.factor, original_length=original_length, context_length=context_length
        )
        parameters = {
            **start.rope_parameters,
            "rope_type": "llama3",
            "factor": factor,
            "original_max_position_embeddings": original_length,
            "low_freq_factor": float(self.low_freq_factor),
            "high_freq_factor": float(self.high_freq_factor),
        }
        return start.extended(parameters, covered_length=covered_length)
