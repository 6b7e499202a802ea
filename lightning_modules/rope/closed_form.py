"""The tables of every RoPE type written without transformers, so that they can judge its.

fp64 but for what every implementation rounds to fp32 first: the exponents 2i / d and the ramps. Rounding 2i / d alone
moves theta_i by up to 7e-7 (theta 3.6e9, d 120), most of the tolerance of `assert_rope`.
"""

from __future__ import annotations

import math
from typing import Any

import torch

# d rotary dimensions of a head, i = 0 … d/2 - 1, b the base, s the factor, L the length before scaling

CLOSED_FORMS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
"""Values of rope_type whose tables `closed_form_inv_freq` computes."""


def closed_form_inv_freq(
    rope_parameters: dict[str, Any],
    head_dim: int,
    *,
    seq_len: int | None = None,
    max_position_embeddings: int | None = None,
) -> torch.Tensor:
    """The frequency of each pair of dimensions; theta_i = b^(-2i / d) where nothing is scaled.

    Args:
        rope_parameters: Of one of `CLOSED_FORMS`.
        head_dim: Size of a head; d is its share partial_rotary_factor.
        seq_len: Longest position met, plus one; only dynamic and longrope follow it. The original length if None.
        max_position_embeddings: Of the config; only dynamic with a seq_len needs it.

    Returns:
        [d / 2] fp32.

    Raises:
        ValueError: If the rope_type has no closed form here.

    Reference:
        linear: arXiv:2306.15595, eq. 4. dynamic: arXiv:2309.00071, section 3.1, with s n / L - (s - 1) for n tokens.
        yarn: arXiv:2309.00071, section 3.2. longrope: arXiv:2402.13753, eq. 1. llama3: Llama 3.1's released code.
    """
    rope_type = rope_parameters["rope_type"]
    if rope_type not in CLOSED_FORMS:
        raise ValueError(f"rope_type={rope_type} has no closed form here; allowed are {', '.join(CLOSED_FORMS)}")
    d = int(head_dim * rope_parameters.get("partial_rotary_factor", 1.0))
    b = float(rope_parameters["rope_theta"])
    if rope_type == "dynamic" and seq_len is not None:
        b *= _dynamic_growth(rope_parameters["factor"], seq_len, max_position_embeddings) ** (d / (d - 2))
    exponents = (torch.arange(0, d, 2, dtype=torch.float32) / d).double()
    theta = b**-exponents  # [d / 2]
    if rope_type == "linear":
        theta = theta / rope_parameters["factor"]
    elif rope_type == "yarn":
        theta = theta * _yarn_share(rope_parameters, d=d, b=b)
    elif rope_type == "llama3":
        theta = theta * _llama3_share(rope_parameters, theta)
    elif rope_type == "longrope":
        long = seq_len is not None and seq_len > rope_parameters["original_max_position_embeddings"]
        factors = rope_parameters["long_factor" if long else "short_factor"]
        theta = theta / torch.tensor(factors, dtype=torch.float64)
    return theta.float()


def closed_form_attention_factor(
    rope_parameters: dict[str, Any], *, max_position_embeddings: int | None = None
) -> float:
    """What cos and sin are multiplied by: 1 but for yarn and longrope.

    Args:
        rope_parameters: Of one of `CLOSED_FORMS`.
        max_position_embeddings: Of the config; only yarn and longrope without a factor need it.

    Reference:
        yarn: arXiv:2309.00071, section 3.4, sqrt(1/t) = 0.1 ln s + 1. longrope: microsoft/LongRoPE, which has
        sqrt(1 + ln s / ln L).
    """
    if rope_parameters["rope_type"] not in ("yarn", "longrope"):
        return 1.0
    if rope_parameters.get("attention_factor") is not None:
        return float(rope_parameters["attention_factor"])
    original_length = rope_parameters["original_max_position_embeddings"]
    s = rope_parameters.get("factor")
    if s is None:
        assert max_position_embeddings is not None, "the factor is in neither the parameters nor the lengths"
        s = max_position_embeddings / original_length
    if rope_parameters["rope_type"] == "longrope":
        return math.sqrt(1 + math.log(s) / math.log(original_length)) if s > 1 else 1.0
    mscale, all_dim = rope_parameters.get("mscale"), rope_parameters.get("mscale_all_dim")
    if mscale and all_dim:
        return _temperature(s, mscale) / _temperature(s, all_dim)
    return _temperature(s, 1.0)


def table_tolerance(rope_parameters: dict[str, Any]) -> float:
    """Largest relative difference that fp32 leaves between the closed form and transformers' tables.

    Where a factor s multiplies the difference of two nearly equal numbers (a wavelength and the end of the ramp, a
    length and the original one), it multiplies their rounding too.
    """
    cancels = rope_parameters["rope_type"] in ("dynamic", "llama3")
    return 1e-6 + (rope_parameters["factor"] * 2.0**-22 if cancels else 0.0)


def _temperature(s: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(s) + 1.0 if s > 1 else 1.0


def _dynamic_growth(s: float, seq_len: int, original_length: int | None) -> float:
    """s n / L - (s - 1), and 1 up to L."""
    assert original_length is not None, "dynamic needs max_position_embeddings to know what is beyond it"
    return s * max(seq_len, original_length) / original_length - (s - 1)


def _yarn_share(rope_parameters: dict[str, Any], *, d: int, b: float) -> torch.Tensor:
    """What is left of each theta_i, from 1 (fast, extrapolated) to 1 / s (slow, interpolated): [d / 2] fp64."""
    original_length = rope_parameters["original_max_position_embeddings"]

    def dimension(turns: float) -> float:
        """The i, not rounded, whose wave turns so often within the original length."""
        return d * math.log(original_length / (2 * math.pi * turns)) / (2 * math.log(b))

    low = dimension(rope_parameters.get("beta_fast") or 32.0)
    high = dimension(rope_parameters.get("beta_slow") or 1.0)
    if rope_parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    high = high + 0.001 if high == low else high
    ramp = ((torch.arange(d // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    extrapolated = (1 - ramp).double()
    return extrapolated + (1 - extrapolated) / rope_parameters["factor"]


def _llama3_share(rope_parameters: dict[str, Any], theta: torch.Tensor) -> torch.Tensor:
    """What is left of each theta_i, from 1 (many turns over L) to 1 / s (few): [d / 2] fp64."""
    turns = rope_parameters["original_max_position_embeddings"] / (2 * math.pi / theta.float())
    few, many = rope_parameters["low_freq_factor"], rope_parameters["high_freq_factor"]
    kept = ((turns - few) / (many - few)).clamp(0, 1).double()
    return kept + (1 - kept) / rope_parameters["factor"]
