"""What a recipe changes about RoPE to make a model read further, in transformers' own words.

Each method turns the `rope_parameters` of a base model into those of the extended one and touches no weight;
`patch.py` writes them into a live model. theta_i = rope_theta ** (-2i / d) below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol


class RopeMethod(Protocol):
    """How `rope_parameters` change, and how far the result reads."""

    def rope_parameters(self, current: dict[str, Any], *, original_length: int, context_length: int) -> dict[str, Any]:
        """The complete new `rope_parameters`.

        Args:
            current: The base model's; keys that the method does not change, such as partial_rotary_factor, carry over.
            original_length: Tokens that the base model reads.
            context_length: Tokens that the recipe wants read.

        Raises:
            ValueError: If the method cannot take this base model to that length.
        """
        ...

    def covered_length(self, original_length: int, context_length: int) -> int:
        """Tokens that the changed model reads: its new max_position_embeddings."""
        ...


@dataclass(frozen=True)
class Unchanged:
    """RoPE as the base model has it, already scaled or not."""

    def rope_parameters(self, current: dict[str, Any], *, original_length: int, context_length: int) -> dict[str, Any]:
        if context_length > original_length:
            raise ValueError(
                f"context_length={context_length} is beyond the {original_length} that the base model reads "
                "with rope=unchanged; choose another rope or lower context_length"
            )
        return dict(current)

    def covered_length(self, original_length: int, context_length: int) -> int:
        return original_length


@dataclass(frozen=True)
class LinearInterpolation:
    """Position interpolation (PI): position m is read as m / factor, so that theta_i becomes theta_i / factor.

    Args:
        factor: L' / L of the paper; context_length / original_length if None.

    Reference:
        Chen et al. 2023, arXiv:2306.15595, eq. 4: f'(x, m) = f(x, m L / L'). Agrees exactly, with factor = L' / L.
    """

    factor: float | None = None

    def __post_init__(self) -> None:
        if self.factor is not None and not (math.isfinite(self.factor) and self.factor >= 1):
            raise ValueError(f"rope.factor={self.factor} is not a number of at least 1; set rope.factor, or null")

    def rope_parameters(self, current: dict[str, Any], *, original_length: int, context_length: int) -> dict[str, Any]:
        _refuse_scaled(current)
        if self.factor is None and context_length < original_length:
            raise ValueError(
                f"context_length={context_length} is below the {original_length} that the base model reads, "
                "which would make rope.factor less than 1; set rope=unchanged or context_length"
            )
        if self.factor is not None and self.factor * original_length < context_length:
            raise ValueError(
                f"rope.factor={self.factor} takes {original_length} tokens to {self.factor * original_length:g}, "
                f"less than context_length={context_length}; set rope.factor to "
                f"{context_length / original_length:g} or more, or null"
            )
        factor = context_length / original_length if self.factor is None else self.factor
        return {**current, "rope_type": "linear", "factor": float(factor)}

    def covered_length(self, original_length: int, context_length: int) -> int:
        return context_length if self.factor is None else math.floor(self.factor * original_length)


@dataclass(frozen=True)
class AdjustedBase:
    """Adjusted base frequency (ABF): theta_i = rope_theta ** (-2i / d) with a larger rope_theta.

    Args:
        rope_theta: The new base b.

    Reference:
        Xiong et al. 2023 (Llama 2 Long), arXiv:2309.16039, section 4.1: b from 10,000 to 500,000. The Index-1.9B
        report uses 320,000.
    """

    rope_theta: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rope_theta) and self.rope_theta > 0):
            raise ValueError(f"rope.rope_theta={self.rope_theta} is not a positive number; set rope.rope_theta")

    def rope_parameters(self, current: dict[str, Any], *, original_length: int, context_length: int) -> dict[str, Any]:
        _refuse_scaled(current)
        return {**current, "rope_type": "default", "rope_theta": float(self.rope_theta)}

    def covered_length(self, original_length: int, context_length: int) -> int:
        return max(original_length, context_length)


def _refuse_scaled(current: dict[str, Any]) -> None:
    rope_type = current.get("rope_type", "default")
    if rope_type != "default":
        raise ValueError(
            f"the base model's rope_parameters already have rope_type={rope_type}; "
            "set rope=unchanged or name an unscaled base model"
        )
