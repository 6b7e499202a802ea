"""NTK-aware scaling that follows the length of the input."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_modules.rope.methods.base import BaseRope, ExtendedRope
from lightning_modules.rope.methods.factors import Extension, check_factor
from lightning_modules.rope.methods.scaled_base import check_on_scaled_base, starting_point


@dataclass(frozen=True)
class DynamicNTK:
    """A base that grows with the longest position met: b' = b (s n / L - (s - 1))^(d / (d - 2)) for n > L tokens.

    Up to the original length L nothing changes, so a base model can be read further without training. A recipe should
    train with a static type (ntk_aware, adjusted_base, linear, yarn, llama3), which rotates a token alike in every
    batch. Here the table follows the longest position of the *batch*: packed in a row, a short document is rotated
    otherwise than alone, its neighbours change its result, and context-parallel ranks can disagree.

    `max_position_embeddings` of the config stays L, since transformers takes it for L; a larger one would switch the
    scaling off up to that length. How far the model reads is then in no config: the recipe's context_length says.

    Args:
        factor: s; context_length / L if None. Any s reads any length.
        on_scaled_base: refuse | replace, for a base model whose RoPE is scaled already.

    Reference:
        emozilla 2023, "Dynamically scaled RoPE", in transformers' form. Index-1.9B's report tried s = 8.
    """

    factor: float | None = None
    on_scaled_base: str = "refuse"

    def __post_init__(self) -> None:
        check_factor(self.factor)
        check_on_scaled_base(self.on_scaled_base)

    def extend(self, base: BaseRope, *, context_length: int) -> ExtendedRope:
        start = starting_point(base, self.on_scaled_base)
        factor = self.factor
        if factor is None:
            factor, _ = Extension.of(None, original_length=start.max_position_embeddings, context_length=context_length)
        if start.rotary_dim < 4:
            raise ValueError(
                f"rope=dynamic_ntk needs 4 rotary dimensions or more, and this model has {start.rotary_dim}; set rope"
            )
        parameters = {**start.rope_parameters, "rope_type": "dynamic", "factor": float(factor)}
        return start.extended(parameters, covered_length=max(start.max_position_embeddings, context_length))
