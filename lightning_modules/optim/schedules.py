"""Learning-rate schedules, as multipliers of the peak rate: a linear warm-up, then a cosine or a line.

    warmup_start_ratio    null     the first step trains at 1 / warmup_steps of the peak, the last of the warm-up at it
                          0.1      the first step at a tenth of the peak, and the peak right after the warm-up (PI)
                          0.0      the first step does nothing, as in transformers' own schedules

A constant rate is a line that ends where it began: `min_lr_ratio=1.0` (conf/lr_schedule/constant.yaml).
"""

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
        warmup_start_ratio: Share of the peak at step 0; the rise then ends one step later. None: 1 / warmup_steps.

    Raises:
        ValueError: A ratio is not from 0 to 1.
    """

    warmup_steps: int = 0
    min_lr_ratio: float = 0.0
    warmup_start_ratio: float | None = None

    def __post_init__(self) -> None:
        check_ratios(self.min_lr_ratio, self.warmup_start_ratio)

    def multiplier(self, step: int, *, max_steps: int) -> float:
        if step < self.warmup_steps:
            return warming_up(step, warmup_steps=self.warmup_steps, start_ratio=self.warmup_start_ratio)
        progress = share_after_warmup(step, warmup_steps=self.warmup_steps, max_steps=max_steps)
        return self.min_lr_ratio + (1 - self.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class LinearWithWarmup:
    """Linear warm-up, then a straight line down to `min_lr_ratio`, which the step after the last one would reach.

    Args:
        warmup_steps: As in `CosineWithWarmup`.
        min_lr_ratio: The end of the line as a share of the peak; 1.0 keeps the peak.
        warmup_start_ratio: As in `CosineWithWarmup`.

    Raises:
        ValueError: A ratio is not from 0 to 1.

    Reference:
        With `warmup_start_ratio=0.0` step for step transformers' `get_linear_schedule_with_warmup` (OpenChatKit's
        fine-tunes), and with `min_lr_ratio=1.0` besides its `get_constant_schedule_with_warmup` (LongLoRA).
    """

    warmup_steps: int = 0
    min_lr_ratio: float = 0.0
    warmup_start_ratio: float | None = None

    def __post_init__(self) -> None:
        check_ratios(self.min_lr_ratio, self.warmup_start_ratio)

    def multiplier(self, step: int, *, max_steps: int) -> float:
        if step < self.warmup_steps:
            return warming_up(step, warmup_steps=self.warmup_steps, start_ratio=self.warmup_start_ratio)
        progress = share_after_warmup(step, warmup_steps=self.warmup_steps, max_steps=max_steps)
        return self.min_lr_ratio + (1 - self.min_lr_ratio) * (1 - progress)


def warming_up(step: int, *, warmup_steps: int, start_ratio: float | None) -> float:
    """The factor of a step of the warm-up."""
    if start_ratio is None:
        return (step + 1) / warmup_steps
    return start_ratio + (1 - start_ratio) * step / warmup_steps


def share_after_warmup(step: int, *, warmup_steps: int, max_steps: int) -> float:
    """How much of the run behind the warm-up has passed at a step of it, 0..1."""
    return min((step - warmup_steps) / max(1, max_steps - warmup_steps), 1.0)


def check_ratios(min_lr_ratio: float, warmup_start_ratio: float | None) -> None:
    """Refuse shares of the peak that are none.

    Raises:
        ValueError: One is not from 0 to 1.
    """
    for name, ratio in (("min_lr_ratio", min_lr_ratio), ("warmup_start_ratio", warmup_start_ratio)):
        if ratio is not None and not 0 <= ratio <= 1:
            raise ValueError(f"lr_schedule.{name}={ratio} must be from 0 to 1, a share of optimizer.lr")
