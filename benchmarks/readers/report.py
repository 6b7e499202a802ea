"""What readers answered, as a table and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SAME_LOGITS = 1e-4
"""Of the largest logit: what another order of summation changes at most; another RoPE changes tenths of it."""


class Reading(NamedTuple):
    """One export in one reader.

    Attributes:
        model: Which model was exported.
        method: Which RoPE method.
        difference: Largest difference of a logit, over the largest logit; or why the reader refused.
        planted: The same for the planted fault.
        may_refuse: Whether this reader is known to have no word for this RoPE in this model, and to say so.
    """

    model: str
    method: str
    difference: float | str
    planted: float | str
    may_refuse: bool = False

    @property
    def sound(self) -> bool:
        """Whether nobody is misled: the same model, or a refusal where one is due."""
        return self.may_refuse if isinstance(self.difference, str) else is_same(self.difference)


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference of a logit, over the largest logit; infinite where something is not a number."""
    difference = float(np.abs(ours - theirs).max() / np.abs(ours).max())
    return difference if np.isfinite(difference) else float("inf")


def is_same(difference: float | str) -> bool:
    return not isinstance(difference, str) and difference <= SAME_LOGITS


def table(title: str, fault: str, readings: Sequence[Reading]) -> str:
    """One line a reading, in the order given."""
    lines = [title, f"{'model':<18}{'RoPE':<28}{'as exported':>14}  {fault:>24}"]
    for reading in readings:
        verdict = "" if reading.sound else "   DISAGREES"
        lines.append(
            f"{reading.model:<18}{reading.method:<28}{_cell(reading.difference):>14}"
            f"  {_cell(reading.planted):>24}{verdict}"
        )
    lines += [
        f"  {reason}" for reason in dict.fromkeys(r.difference for r in readings if isinstance(r.difference, str))
    ]
    return "\n".join([*lines, summary(readings)])


def summary(readings: Sequence[Reading]) -> str:
    agreeing, refused = (
        sum(is_same(one.difference) for one in readings),
        sum(isinstance(one.difference, str) for one in readings),
    )
    noticed = sum(not is_same(one.planted) for one in readings)
    refusals = f", {refused} are refused" if refused else ""
    return f"{agreeing} of {len(readings)} agree{refusals}; the planted fault shows in {noticed}"


def all_sound(readings: Sequence[Reading]) -> bool:
    """Whether every export is read as it was made, by a reader that does notice the planted fault."""
    return all(one.sound for one in readings) and any(not is_same(one.planted) for one in readings)


def _cell(difference: float | str) -> str:
    return "refused" if isinstance(difference, str) else f"{difference:.1e}" if difference else "0"
