"""A base that grows with the context length of the training stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_modules.rope.methods.base import BaseRope, ExtendedRope
from lightning_modules.rope.methods.factors import check_theta
from lightning_modules.rope.methods.scaled_base import SCALINGS_OF_THETA, check_on_scaled_base, starting_point


@dataclass(frozen=True)
class ProgressiveBase:
    """A base b for each context length; a length between two of them takes the base of the longer.

    With a schedule of lengths the base changes where the length does; without one it is that of context_length.

    Args:
        rope_theta: Pairs of a context length and its base, lengths rising: [[65536, 15.3e6], [262144, 207.1e6]].
        on_scaled_base: refuse | replace | keep, for a base model whose RoPE is scaled already.

    Reference:
        Gradient's Llama-3-8B model cards: 15.3 million at 65,536 tokens, 207.1 million at 262,144.
    """

    rope_theta: Sequence[Sequence[float]]
    on_scaled_base: str = "refuse"

    def __post_init__(self) -> None:
        check_on_scaled_base(self.on_scaled_base, allowed=SCALINGS_OF_THETA)
        pairs = self.rope_theta
        are_pairs = isinstance(pairs, list | tuple) and all(
            isinstance(pair, list | tuple) and [type(x) in (int, float) for x in pair] == [True, True] for pair in pairs
        )
        lengths = [pair[0] for pair in pairs] if are_pairs else []
        if not lengths or sorted({n for n in lengths if n >= 1 and n % 1 == 0}) != lengths:
            raise ValueError(
                f"rope.rope_theta={pairs} is not a list of context lengths, rising, each with its base; set"
                " rope.rope_theta to such as [[65536, 15.3e6], [262144, 207.1e6]]"
            )
        for _, rope_theta in pairs:
            check_theta(rope_theta)

    def extend(self, base: BaseRope, *, context_length: int) -> ExtendedRope:
        start = starting_point(base, self.on_scaled_base, changes_theta=True)
        rope_theta = next((theta for length, theta in self.rope_theta if length >= context_length), None)
        if rope_theta is None:
            raise ValueError(
                f"rope.rope_theta has no base for context_length={context_length}, its longest is for"
                f" {self.rope_theta[-1][0]}; add a pair to rope.rope_theta or lower context_length"
            )
        parameters = {**start.rope_parameters, "rope_theta": float(rope_theta)}
        return start.extended(parameters, covered_length=max(start.readable_length, context_length))
