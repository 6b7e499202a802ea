"""No change."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from lightning_modules.rope.methods.base import BaseRope, ExtendedRope


@dataclass(frozen=True)
class Unchanged:
    """RoPE as the base model has it, already scaled or not."""

    def extend(self, base: BaseRope, *, context_length: int) -> ExtendedRope:
        if context_length > base.readable_length:
            raise ValueError(
                f"context_length={context_length} is beyond the {base.readable_length} that the base model reads "
                "with rope=unchanged; choose another rope or lower context_length"
            )
        return base.extended(copy.deepcopy(base.rope_parameters), covered_length=base.readable_length)
