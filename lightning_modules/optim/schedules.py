"""Learning-rate schedules, as multipliers of the peak rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class LrSchedule(Protocol):
    """A multiplier of the peak learning rate for each optimizer step."""

    def multiplier(self, step: int, *, max_steps: int) -> float:
        """The factor of step `step`, counted from 0, of a run of `max_steps`."""
        ...


@dataclass(frozen=True)
class CosineWithWarmup:
    """Linear warm-up, then a cosine down to `min_lr_ratio`.

    Args:
        warmup_steps: Steps of the linear rise; step 0 already trains, at 1 / warmup_steps of the peak.
        min_lr_ratio: The end of the cosine as a share of the peak (UtK: 1e-5 -> 1e-6 is 0.1).
    """

    warmup_steps: int = 0
    min_lr_ratio: float = 0.0

    def multiplier(self, step: int, *, max_steps: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, max_steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return self.min_lr_ratio + (1 - self.min_lr_ratio) * cosine
