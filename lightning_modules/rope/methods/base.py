"""The words that RoPE methods share: what a base model has, and what a method makes of it.

A method turns the `rope_parameters` of a base model, in transformers' own words, into those of the extended one and
touches no weight; `resolve.py` finds them in a model's config and `patch.py` writes them into a live model.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

# d rotary dimensions of a head; theta_i = rope_theta ** (-2i / d)


class BaseRope(NamedTuple):
    """RoPE of a base model, of the layers that attend to the whole context."""

    rope_parameters: dict[str, Any]
    max_position_embeddings: int
    head_dim: int

    @property
    def rope_type(self) -> str:
        return self.rope_parameters.get("rope_type", "default")

    @property
    def rotary_dim(self) -> int:
        """d: the dimensions of a head that are rotated."""
        return int(self.head_dim * self.rope_parameters.get("partial_rotary_factor", 1.0))

    @property
    def unscaled_length(self) -> int:
        """Tokens that the model was pre-trained on before its RoPE was scaled, if it was."""
        if self.rope_type == "linear":
            return round(self.max_position_embeddings / self.rope_parameters["factor"])
        return int(self.rope_parameters.get("original_max_position_embeddings") or self.max_position_embeddings)

    @property
    def readable_length(self) -> int:
        """Tokens that the model reads as it is."""
        if self.rope_type == "dynamic":  # its max_position_embeddings is the length before scaling
            return math.floor(round(self.max_position_embeddings * self.rope_parameters["factor"], 6))
        return self.max_position_embeddings

    def extended(self, rope_parameters: dict[str, Any], *, covered_length: int) -> ExtendedRope:
        """These parameters in place of the model's own."""
        dynamic = rope_parameters["rope_type"] == "dynamic"
        return ExtendedRope(
            rope_parameters,
            covered_length=covered_length,
            # transformers' dynamic type takes it for the length before scaling; raised, the scaling would be off.
            max_position_embeddings=self.max_position_embeddings if dynamic else covered_length,
            total_factor=covered_length / self.unscaled_length,
        )


class ExtendedRope(NamedTuple):
    """What a method makes of a base model's RoPE."""

    rope_parameters: dict[str, Any]
    covered_length: int  # tokens that the model then reads
    max_position_embeddings: int  # of its config; equals covered_length but for rope_type dynamic
    total_factor: float  # covered_length / tokens that the model read before any scaling, the base's own included


class RopeMethod(Protocol):
    """How RoPE changes for a context length."""

    def extend(self, base: BaseRope, *, context_length: int) -> ExtendedRope:
        """The complete new `rope_parameters` and how far they read.

        Keys that the method does not change, such as partial_rotary_factor, carry over.

        Args:
            base: The base model's RoPE; it is left as it is.
            context_length: Tokens that the recipe wants read.

        Raises:
            ValueError: If the method cannot take this base model to that length.
        """
        ...
