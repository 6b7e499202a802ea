"""NTK-aware scaling with a fixed base."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_modules.rope.methods.base import BaseRope, ExtendedRope
from lightning_modules.rope.methods.factors import Extension, check_factor
from lightning_modules.rope.methods.scaled_base import SCALINGS_OF_THETA, check_on_scaled_base, starting_point


@dataclass(frozen=True)
class NTKAware:
    """A larger base, from the factor s: b' = b s^(d / (d - 2)).

    The fastest dimension keeps its frequency and the slowest one is interpolated by s, as PI would. The table is fixed,
    and the checkpoint a plain one with another rope_theta.

    Args:
        factor: s; context_length / the length that the base model reads if None.
        on_scaled_base: refuse | replace | keep, for a base model whose RoPE is scaled already; with keep, s counts from
            the length that the scaled model reads.

    Reference:
        bloc97 2023, and YaRN, arXiv:2309.00071, section 3.1, eq. 16, with alpha = s. Agrees exactly: s = 8 takes
        10,000 to 82,685 at d = 128.
    """

    factor: float | None = None
    on_scaled_base: str = "refuse"

    def __post_init__(self) -> None:
        check_factor(self.factor)
        check_on_scaled_base(self.on_scaled_base, allowed=SCALINGS_OF_THETA)

    def extend(self, base: BaseRope, *, context_length: int) -> ExtendedRope:
        start = starting_point(base, self.on_scaled_base, changes_theta=True)
        factor, covered_length = Extension.of(
            self.factor, original_length=start.readable_length, context_length=context_length
        )
        d = start.rotary_dim
        if d < 4:
            raise ValueError(f"rope=ntk_aware needs 4 rotary dimensions or more, and this model has {d}; set rope")
        rope_theta = float(start.rope_parameters["rope_theta"]) * factor ** (d / (d - 2))
        return start.extended({**start.rope_parameters, "rope_theta": rope_theta}, covered_length=covered_length)
