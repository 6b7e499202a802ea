"""The shapes of a context-length warm-up: constant, stages, linear and geometric growth.

Each is worked out into a staircase, the step at which each length begins; `constant` has one. A linear growth under
`cut` has few stairs, the divisors of the row, and under `window` one every few steps.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from datamodules.length_schedules.context_length_warmup import ContextLengthWarmup

SHAPES = {
    "linear": lambda first, last, share: first + (last - first) * share,
    "geometric": lambda first, last, share: first * (last / first) ** share,
}
"""From the first to the last length, by the share of the growth that is over."""


def constant(*, max_seqlen: int) -> ContextLengthWarmup:
    """Whole rows from the first step to the last."""
    return ContextLengthWarmup(first_steps=(0,), lengths=(max_seqlen,), max_seqlen=max_seqlen)


def stages(
    *,
    max_seqlen: int,
    max_steps: int,
    stages: Sequence[Mapping[str, Any]] | None = None,
    mechanism: str = "cut",
    rope_follows: bool = False,
) -> ContextLengthWarmup:
    """One length after the other.

    Args:
        max_seqlen: Tokens of a row.
        max_steps: Optimizer steps of the run.
        stages: Each `{"length": tokens, "until_step": n}`, in order: the length of the steps before step n that are in
            no earlier stage; null in the last one means to the end. None takes an eighth, a quarter, half and all of
            `max_seqlen`, for a quarter of the run each.
        mechanism: `cut` or `window`.
        rope_follows: RoPE is set for the length of each step.

    Raises:
        ValueError: A stage is not of that form, too long, out of order, or does not divide `max_seqlen` with `cut`.
    """
    if stages is None:
        lengths = [max_seqlen // part for part in (8, 4, 2, 1) if max_seqlen % part == 0]
        firsts = [-(-number * max_steps // len(lengths)) for number in range(len(lengths))]
        return _staircase(dict(zip(firsts, lengths, strict=True)), max_seqlen, mechanism, rope_follows)
    if not isinstance(stages, Sequence) or isinstance(stages, str) or not stages:
        raise ValueError(f"length_schedule.stages={stages} must be a list such as [{{length: 4096, until_step: 100}}]")
    first, previous, steps = 0, 0, {}
    for number, stage in enumerate(stages):
        name = f"length_schedule.stages[{number}]"
        length, until = _stage(name, stage, is_last=number == len(stages) - 1)
        if length > max_seqlen:
            raise ValueError(
                f"{name}.length={length} is longer than packing.max_seqlen={max_seqlen}; lower it, or raise"
                " packing.max_seqlen"
            )
        if mechanism == "cut" and max_seqlen % length:
            raise ValueError(
                f"{name}.length={length} does not divide packing.max_seqlen={max_seqlen}, and"
                f" length_schedule.mechanism=cut fills rows without a rest; the nearest below is"
                f" {max(n for n in range(1, length) if max_seqlen % n == 0)}"
            )
        if length < previous:
            raise ValueError(f"{name}.length={length} is below the {previous} before it; lengths of a warm-up grow")
        if until is not None and until <= first:
            raise ValueError(f"{name}.until_step={until} is not after step {first}, where it begins; put them in order")
        steps[first], previous = length, length
        first = max_steps if until is None else until
    if first < max_steps:
        raise ValueError(
            f"length_schedule.stages end at step {first} of data.max_steps={max_steps}; set until_step of the last"
            " stage to null"
        )
    return _staircase(steps, max_seqlen, mechanism, rope_follows)


def growing(
    *,
    shape: str,
    max_seqlen: int,
    max_steps: int,
    start: int | None = None,
    end: int | None = None,
    growth_steps: int | None = None,
    growth_share: float = 0.7,
    multiple_of: int = 64,
    mechanism: str = "cut",
    rope_follows: bool = False,
) -> ContextLengthWarmup:
    """From a short length to a long one, then on at the long one.

    Args:
        shape: `linear` adds as many tokens at every step, `geometric` multiplies by the same factor.
        max_seqlen: Tokens of a row.
        max_steps: Optimizer steps of the run.
        start: Length of the first step; None takes an eighth of `max_seqlen`.
        end: Length from the end of the growth on; None takes `max_seqlen`.
        growth_steps: Steps until `end` is reached; SkyLadder's alpha = 1/8 is 8 * (end - start). None takes
            `growth_share`.
        growth_share: Share of the run in which the length grows.
        multiple_of: Lengths are rounded down to multiples of this, and with `cut` to divisors of `max_seqlen`.
        mechanism: `cut` or `window`.
        rope_follows: RoPE is set for the length of each step.

    Raises:
        ValueError: `start` is above `end`, `end` is above `max_seqlen`, rounding leaves no length for one of them, or a
            value is not in its range.

    Reference:
        Zhu et al. 2025, arXiv:2503.15450 (SkyLadder), with t the step and n `growth_steps`: linear
        w(t) = w_s + (w_e - w_s) t / n, exponential w(t) = w_s (w_e / w_s)^(t / n), rounded down. Their start is 32
        tokens, as they train from scratch; an eighth of the row is ours, for models that read that far already.
    """
    if shape not in SHAPES:
        raise ValueError(f"length_schedule.shape={shape} is not known; allowed are {', '.join(SHAPES)}")
    if not 0 < growth_share <= 1:
        raise ValueError(f"length_schedule.growth_share={growth_share} must be above 0 and at most 1")
    for key, value in (("start", start), ("end", end), ("growth_steps", growth_steps), ("multiple_of", multiple_of)):
        if value is not None and value < 1:
            raise ValueError(f"length_schedule.{key}={value} must be a whole number of at least 1")
    allowed = _lengths(max_seqlen, multiple_of, mechanism)
    first = max(max_seqlen // 8, allowed[0]) if start is None else start
    last = max_seqlen if end is None else end
    _refuse_ends(first, last, allowed, max_seqlen=max_seqlen, multiple_of=multiple_of, mechanism=mechanism)
    num_steps = growth_steps or max(1, min(round(growth_share * max_steps), max_steps - 1))
    grown = SHAPES[shape](first, last, np.minimum(np.arange(max_steps) / num_steps, 1.0))  # [max_steps]
    grown = grown * (1 + 1e-9)  # what should be whole may come out a hair below it
    lengths = np.array(allowed)[np.searchsorted(allowed, grown, side="right") - 1]
    changes = np.flatnonzero(np.diff(lengths, prepend=0))
    return _staircase({int(step): int(lengths[step]) for step in changes}, max_seqlen, mechanism, rope_follows)


def _refuse_ends(
    first: int, last: int, allowed: Sequence[int], *, max_seqlen: int, multiple_of: int, mechanism: str
) -> None:
    """Raises where a growth cannot begin or end as it should."""
    if last > max_seqlen:
        raise ValueError(
            f"length_schedule.end={last} is longer than packing.max_seqlen={max_seqlen}; lower it, or raise"
            " packing.max_seqlen"
        )
    if first > last:
        raise ValueError(f"length_schedule.start={first} is above the end, {last}; lengths of a warm-up grow")
    if first < allowed[0]:
        raise ValueError(
            f"length_schedule.start={first} is below the shortest length of length_schedule.mechanism={mechanism} and"
            f" multiple_of={multiple_of}, {allowed[0]}; raise it or lower length_schedule.multiple_of"
        )
    if last not in allowed:
        below = allowed[bisect_right(allowed, last) - 1]
        raise ValueError(
            f"length_schedule.end={last} is no length of length_schedule.mechanism={mechanism} and"
            f" multiple_of={multiple_of}; the nearest below is {below}"
        )


def _lengths(max_seqlen: int, multiple_of: int, mechanism: str) -> list[int]:
    """The lengths that a growth passes through, in order; `max_seqlen` is always one."""
    lengths = range(multiple_of, max_seqlen, multiple_of)
    return [*(n for n in lengths if mechanism != "cut" or max_seqlen % n == 0), max_seqlen]


def _staircase(lengths: Mapping[int, int], max_seqlen: int, mechanism: str, rope_follows: bool) -> ContextLengthWarmup:
    return ContextLengthWarmup(
        first_steps=tuple(lengths),
        lengths=tuple(lengths.values()),
        max_seqlen=max_seqlen,
        mechanism=mechanism,
        rope_follows=rope_follows,
    )


def _stage(name: str, stage: Any, *, is_last: bool) -> tuple[int, int | None]:
    """Length and end of one stage of the user's."""
    if not isinstance(stage, Mapping) or not {"length"} <= set(stage) <= {"length", "until_step"}:
        raise ValueError(f"{name}={stage} must have the keys length and until_step, and no other")
    length, until = stage["length"], stage.get("until_step")
    for key, value in (("length", length), ("until_step", until)):
        if value is None and key == "until_step" and is_last:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            given = "null" if value is None else value
            raise ValueError(f"{name}.{key}={given} must be a whole number of at least 1")
    return length, until
