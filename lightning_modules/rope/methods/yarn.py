"""YaRN: interpolation by dimension, and a temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lightning_modules.rope.methods.base import BaseRope, ExtendedRope
from lightning_modules.rope.methods.factors import Extension, check_factor
from lightning_modules.rope.methods.scaled_base import check_on_scaled_base, starting_point


@dataclass(frozen=True)
class YaRN:
    """Dimensions that turn often within the original length L keep their frequency, slow ones are interpolated by s.

    Between beta_fast and beta_slow turns over L the two are mixed along a ramp; cos and sin are multiplied by
    attention_factor, which makes the softmax sharper.

    Args:
        factor: s; context_length / L if None.
        beta_fast: Turns over L from which on a dimension is left alone.
        beta_slow: Turns over L up to which a dimension is interpolated in full.
        attention_factor: Of cos and sin; 0.1 ln s + 1 if None.
        truncate: Whether the ends of the ramp are rounded outwards to whole dimensions, as the authors' code does.
        on_scaled_base: refuse | replace, for a base model whose RoPE is scaled already.

    Reference:
        Peng et al. 2023, arXiv:2309.00071, sections 3.2 to 3.4, with the authors' 32, 1 and 0.1 ln s + 1.
    """

    factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True
    on_scaled_base: str = "refuse"

    def __post_init__(self) -> None:
        check_factor(self.factor)
        check_on_scaled_base(self.on_scaled_base)
        if not (0 < self.beta_slow < self.beta_fast < math.inf):
            raise ValueError(
                f"rope.beta_slow={self.beta_slow} and rope.beta_fast={self.beta_fast} are not turns in rising order;"
                " set rope.beta_slow above 0 and below rope.beta_fast"
            )
        check_attention_factor(self.attention_factor)

    def extend(self, base: BaseRope, *, context_length: int) -> ExtendedRope:
        start = starting_point(base, self.on_scaled_base)
        original_length = start.max_position_embeddings
        factor, covered_length = Extension.of(
            self.factor, original_length=original_length, context_length=context_length
        )
        parameters: dict[str, Any] = {
            **start.rope_parameters,
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original_length,
            "beta_fast": float(self.beta_fast),
            "beta_slow": float(self.beta_slow),
        }
        if self.attention_factor is not None:
            parameters["attention_factor"] = float(self.attention_factor)
        if not self.truncate:
            parameters["truncate"] = False
        return start.extended(parameters, covered_length=covered_length)


def check_attention_factor(attention_factor: float | None) -> None:
    """Refuses what cos and sin cannot be multiplied by.

    Raises:
        ValueError: If it is not a finite number above 0, or None.
    """
    if attention_factor is not None and not (math.isfinite(attention_factor) and attention_factor > 0):
        raise ValueError(
            f"rope.attention_factor={attention_factor} is not a positive number; set rope.attention_factor, or null"
        )
