"""What theory says about a RoPE base: how far each pair of dimensions turns, and which bases are large enough.

Pair i of the d rotary dimensions of a head turns by theta_i = b^(-2i / d) a token, so that it has turned once after
2 pi / theta_i tokens. Two theories draw bounds from that. arXiv:2310.05209 asks which pairs completed a turn within
the length T_train of pre-training; the others have met a part of their angles only, and a larger base keeps their
angles within that part for longer. arXiv:2405.14591 asks that sum_i cos(m theta_i) >= 0 at every distance m, so that
similar tokens attend to one another more than random ones do. The two disagree, and with practice too.

numpy alone, neither torch nor transformers: `recipes.show` prints these numbers at once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

# d rotary dimensions of a head (rotary_dim), i = 0 … d/2 - 1 pairs, b the base (rope_theta), L tokens, m a distance

SUFFICIENT_BASES: dict[int, dict[int, int]] = {
    64: {
        512: 3439,
        1024: 7753,
        2048: 29618,
        4096: 100071,
        8192: 323745,
        16384: 1358605,
        32768: 3788344,
        65536: 4867185,
        131072: 73779831,
        262144: 307573963,
        524288: 472935976,
    },
    128: {
        512: 2066,
        1024: 4294,
        2048: 11588,
        4096: 26953,
        8192: 83764,
        16384: 231644,
        32768: 629979,
        65536: 2090180,
        131072: 4869105,
        262144: 23662398,
        524288: 58496174,
        1048576: 65374956,
    },
}
"""rotary_dim -> length -> `smallest_sufficient_base`, rounded up to a whole number."""

RESOLUTION = 1e-8
"""Relative width of a stretch of sufficient bases that `smallest_sufficient_base` could pass over."""


def inv_freq(rope_theta: float, rotary_dim: int) -> np.ndarray:
    """theta_i = b^(-2i / d), in radians a token.

    Returns:
        [d / 2] fp64.

    Raises:
        ValueError: If the base is not above 1, or d is not even.
    """
    if not (math.isfinite(rope_theta) and rope_theta > 1):
        raise ValueError(f"rope_theta={rope_theta} is not above 1, so that no pair turns slower; set rope.rope_theta")
    return float(rope_theta) ** -_exponents(rotary_dim)


def wavelengths(inv_freq: np.ndarray) -> np.ndarray:
    """Tokens in which each pair turns once: [d / 2]."""
    return 2 * math.pi / np.asarray(inv_freq, dtype=np.float64)


def num_incomplete_pairs(inv_freq: np.ndarray, length: int) -> int:
    """Pairs of dimensions that never complete a turn within `length` tokens."""
    return int((wavelengths(inv_freq) > length).sum())


def critical_dimension(rope_theta: float, rotary_dim: int, trained_length: int) -> int:
    """d_extra: how many of the d dimensions completed a turn within the pre-training length.

    Reference:
        arXiv:2310.05209: d_extra = 2 ceil(d/2 log_b(T_train / 2 pi)); 92 of 128 for Llama 2. Never more than d here.
    """
    turned = rotary_dim / 2 * math.log(_radians(trained_length)) / math.log(rope_theta)
    return min(2 * math.ceil(turned), rotary_dim)


def extrapolation_limit(rope_theta: float, rotary_dim: int, d_extra: int) -> float:
    """T_extra: tokens after which the critical dimension has turned once under the new base.

    Args:
        rope_theta: The base that the model is tuned with.
        rotary_dim: d.
        d_extra: `critical_dimension` of the model before tuning.

    Reference:
        arXiv:2310.05209: T_extra = 2 pi b^(d_extra / d), for b above `critical_base`; below it the limit is T_tune.
    """
    return 2 * math.pi * rope_theta ** (d_extra / rotary_dim)


def smallest_base_reaching(length: int, rotary_dim: int, d_extra: int) -> float:
    """The base whose `extrapolation_limit` is `length`: (T / 2 pi)^(d / d_extra)."""
    return _radians(length) ** (rotary_dim / d_extra)


def critical_base(rope_theta: float, trained_length: int, tuned_length: int) -> float:
    """b0: tuned at T_tune with a larger base than this, a model reads beyond T_tune.

    Args:
        rope_theta: The base of pre-training; 10,000 in the paper.
        trained_length: T_train.
        tuned_length: T_tune.

    Reference:
        arXiv:2310.05209: b0 = 10000^(log_(T_train / 2 pi)(T_tune / 2 pi)).
    """
    return rope_theta ** (math.log(_radians(tuned_length)) / math.log(_radians(trained_length)))


class SmallBases(NamedTuple):
    """b1 > b2 > b3 of arXiv:2310.05209: below them every pair meets cos from 1 to 0, to -1, and a whole turn.

    The paper finds that bases this small extrapolate better, the better the smaller.
    """

    quarter_turn: float
    half_turn: float
    whole_turn: float


def small_bases(tuned_length: int) -> SmallBases:
    """2T / pi, T / pi and T / 2 pi: even the slowest pair, theta about 1 / b, turns that far within T tokens."""
    return SmallBases(2 * tuned_length / math.pi, tuned_length / math.pi, tuned_length / (2 * math.pi))


def ntk_aware_base(rope_theta: float, factor: float, rotary_dim: int) -> float:
    """The base that slows the slowest pair by `factor` and leaves the fastest alone: b s^(d / (d - 2)).

    Reference:
        arXiv:2309.00071, section 3.1. 10,000 becomes 82,685 for s = 8 and d = 128.
    """
    return rope_theta * factor ** (rotary_dim / (rotary_dim - 2))


def rotation_sums(inv_freq: np.ndarray, length: int) -> np.ndarray:
    """sum_i cos(m theta_i) at every distance m from 0 to length - 1: [length] fp64.

    Positions are split as m = k B + j, and cos(k B theta + j theta) is opened by the addition theorem, which makes two
    matrix products of length * d multiplications in all: 4 ms for 128K tokens and d = 128 where 8 M cosines take 140.
    """
    theta = np.asarray(inv_freq, dtype=np.float64)
    B = 512
    coarse, fine = np.arange(0, length, B)[:, None] * theta, np.arange(B)[:, None] * theta  # [L / B, d/2], [B, d/2]
    return (np.cos(coarse) @ np.cos(fine).T - np.sin(coarse) @ np.sin(fine).T).ravel()[:length]


def first_negative_distance(inv_freq: np.ndarray, length: int) -> int | None:
    """The smallest m < length with sum_i cos(m theta_i) < 0, where arXiv:2405.14591's condition is violated."""
    negative = np.flatnonzero(rotation_sums(inv_freq, length) < 0)
    return int(negative[0]) if len(negative) else None


def smallest_sufficient_base(length: int, rotary_dim: int, *, above: float = 1.0) -> float:
    """The infimum of the bases with sum_i cos(m theta_i) >= 0 for all m < length.

    The condition is not monotone in the base: the smallest sufficient base stands at the beginning of a narrow window
    (630,000 to 631,000 for 32K tokens and d = 128), above which insufficient bases follow, then other windows. Judge a
    given base by `first_negative_distance`, never by comparing it with this number.

    The search proves as it goes. At log-base u it looks at all m for *witnesses*, distances with a negative sum. Where
    the sum of m is -v with slope g', and no second derivative on the way up exceeds M in size, it stays negative for
    (sqrt(g'^2 + 2 M v) - g') / M more; u moves on by the largest such step, until no distance is a witness. So every
    base passed over has a distance that violates the condition, but for gaps of relative width `RESOLUTION`.

    Cost: 0.1 s for 4K tokens and d = 128, 1.2 s for 32K, 7 s for 128K on one core.

    Args:
        length: L; the paper's context length.
        rotary_dim: d.
        above: A base known to be insufficient, as are all below it: where the search begins.

    Reference:
        Men et al. 2024, arXiv:2405.14591. Agrees with its table for 1K to 256K tokens at d = 128, in both digits.
    """
    exponents, log_base = _exponents(rotary_dim), math.log(above)
    witnesses = np.empty(0)  # [W] distances
    while True:
        theta = np.exp(-log_base * exponents)
        step = _steps(witnesses, theta, exponents).max(initial=0.0)
        if step < RESOLUTION:
            candidates = np.flatnonzero(rotation_sums(theta, length) < 0)[:1024].astype(np.float64)
            if not len(candidates):
                return math.exp(log_base)
            steps = _steps(candidates, theta, exponents)
            witnesses = candidates[np.argsort(-steps)[:64]]
            step = max(steps.max(), RESOLUTION)
        log_base += step


def tabled_sufficient_base(length: int, rotary_dim: int) -> tuple[float, float] | None:
    """Two bases between which `smallest_sufficient_base` lies, equal where it is tabled; None where nothing is known.

    It never falls with the length, as a longer one adds conditions.
    """
    table = SUFFICIENT_BASES.get(rotary_dim, {})
    below = max((base for tabled, base in table.items() if tabled <= length), default=None)
    above = min((base for tabled, base in table.items() if tabled >= length), default=None)
    return None if below is None or above is None else (float(below), float(above))


def _steps(distances: np.ndarray, theta: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """How far log b may rise with the sum of each distance staying negative; 0 where it is not: [W]."""
    angles = distances[:, None] * theta  # [W, d/2]; d angle / d log b = -exponent * angle
    value = np.cos(angles).sum(1)
    slope = (np.sin(angles) * angles * exponents).sum(1)
    # |second derivative| <= sum_i e_i^2 (x_i + x_i^2), which falls as b rises
    curvature = distances * (exponents**2 @ theta) + distances**2 * (exponents**2 @ theta**2)
    depth = np.maximum(-value, 0.0)
    return np.where(depth > 0, (np.sqrt(slope**2 + 2 * curvature * depth) - slope) / curvature, 0.0)


def _exponents(rotary_dim: int) -> np.ndarray:
    if rotary_dim < 2 or rotary_dim % 2:
        raise ValueError(f"{rotary_dim} rotary dimensions are not pairs; set model.head_dim to an even number")
    return 2 * np.arange(rotary_dim // 2) / rotary_dim


def _radians(length: int) -> float:
    """T / 2 pi: the turns of the fastest pair, whose theta is 1."""
    if length < 7:
        raise ValueError(f"a length of {length} tokens is less than one turn of the fastest pair; give 7 or more")
    return length / (2 * math.pi)
