"""Factors of extension: given, or what the lengths need."""

from __future__ import annotations

import math
from typing import NamedTuple


class Extension(NamedTuple):
    """How far a factor takes a model."""

    factor: float
    covered_length: int

    @classmethod
    def of(cls, factor: float | None, *, original_length: int, context_length: int) -> Extension:
        """The given factor, or context_length / original_length, never rounded.

        Raises:
            ValueError: If the factor does not reach context_length, or would shorten the model.
        """
        if factor is None:
            if context_length < original_length:
                raise ValueError(
                    f"context_length={context_length} is below the {original_length} that the base model reads, "
                    "which would make rope.factor less than 1; set rope=unchanged or context_length"
                )
            return cls(context_length / original_length, context_length)
        covered_length = math.floor(round(factor * original_length, 6))  # 2.3 * 100 is 229.99999999999997
        if covered_length < context_length:
            raise ValueError(
                f"rope.factor={factor} takes {original_length} tokens to {covered_length}, "
                f"less than context_length={context_length}; set rope.factor to "
                f"{context_length / original_length:g} or more, or null"
            )
        return cls(float(factor), covered_length)


def check_factor(factor: float | None) -> None:
    """Refuses what is no factor of extension.

    Raises:
        ValueError: If it is not a finite number of at least 1, or None.
    """
    if factor is not None and not (math.isfinite(factor) and factor >= 1):
        raise ValueError(f"rope.factor={factor} is not a number of at least 1; set rope.factor, or null")


def check_theta(rope_theta: float) -> None:
    """Refuses what is no base.

    Raises:
        ValueError: If it is not a finite number above 0.
    """
    if not (math.isfinite(rope_theta) and rope_theta > 0):
        raise ValueError(f"rope.rope_theta={rope_theta} is not a positive number; set rope.rope_theta")
