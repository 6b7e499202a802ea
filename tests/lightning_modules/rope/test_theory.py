"""The published numbers of the theory, and its search against brute force."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from lightning_modules.rope import theory

MEN_ET_AL = {
    1024: 4.3e3,
    2048: 1.2e4,
    4096: 2.7e4,
    8192: 8.4e4,
    16384: 2.3e5,
    32768: 6.3e5,
    65536: 2.1e6,
    131072: 4.9e6,
    262144: 2.4e7,
    524288: 5.8e7,
    1048576: 6.5e7,
}
"""The table of arXiv:2405.14591, head_dim 128."""


def plain_sums(b: float, d: int, length: int) -> np.ndarray:
    """The definition, cosine by cosine."""
    return sum((np.cos(np.arange(length) * b ** (-2 * i / d)) for i in range(d // 2)), np.zeros(length))


def is_sufficient(b: float, d: int, length: int) -> bool:
    return bool((plain_sums(b, d, length) >= 0).all())


def test_a_pair_turns_once_in_its_wavelength() -> None:
    theta = theory.inv_freq(320000.0, 128)
    assert theta.shape == (64,)
    np.testing.assert_allclose(theta, [320000.0 ** (-i / 64) for i in range(64)], rtol=1e-14)
    np.testing.assert_allclose(np.cos(theta * theory.wavelengths(theta)), 1.0, atol=1e-12)
    assert theory.wavelengths(theta)[0] == pytest.approx(2 * math.pi)


@pytest.mark.parametrize(("b", "d", "length"), [(1e4, 128, 4096), (1e6, 128, 32768), (1e4, 64, 512), (5e5, 96, 8192)])
def test_pairs_that_never_turn_are_those_beyond_the_critical_dimension(b: float, d: int, length: int) -> None:
    turned = [i for i in range(d // 2) if length * b ** (-2 * i / d) >= 2 * math.pi]
    assert theory.num_incomplete_pairs(theory.inv_freq(b, d), length) == d // 2 - len(turned)
    assert theory.critical_dimension(b, d, length) == 2 * len(turned)


def test_llama_2_has_92_critical_dimensions() -> None:
    assert theory.critical_dimension(1e4, 128, 4096) == 92
    assert theory.critical_dimension(1e4, 128, 10**9) == 128


@pytest.mark.parametrize(
    ("b", "tokens"),
    [(1e4, 4712), (1.6e5, 34565), (3.2e5, 56886), (5e5, 78400), (1e6, 129027), (5e6, 410265)],
)
def test_extrapolation_limits_after_4096_tokens(b: float, tokens: int) -> None:
    assert round(theory.extrapolation_limit(b, 128, 92)) == tokens
    # T_extra is the wavelength that the fastest pair beyond the critical dimension has under the new base.
    assert theory.wavelengths(theory.inv_freq(b, 128))[46] == pytest.approx(theory.extrapolation_limit(b, 128, 92))


def test_untie_the_knots_base_reaches_less_than_128k_untrained() -> None:
    d_extra = theory.critical_dimension(1e6, 128, 32768)
    assert round(theory.extrapolation_limit(5e6, 128, d_extra), -2) == 96600


def test_critical_base_and_smallest_base_for_32k() -> None:
    assert round(theory.critical_base(1e4, 4096, 32768)) == 192144
    assert theory.critical_base(1e4, 4096, 4096) == pytest.approx(1e4)
    reaching = theory.smallest_base_reaching(32768, 128, 92)
    assert round(reaching) == 148544
    assert theory.extrapolation_limit(reaching, 128, 92) == pytest.approx(32768)


def test_small_bases_turn_the_slowest_pair_a_quarter_a_half_and_a_whole_turn() -> None:
    bases = theory.small_bases(16384)
    assert [16384 / b / (2 * math.pi) for b in bases] == pytest.approx([0.25, 0.5, 1.0])


@pytest.mark.parametrize(("s", "b"), [(8, 82685), (200000 / 4096, 519367)])
def test_ntk_aware_base_slows_the_slowest_pair_by_the_factor(s: float, b: int) -> None:
    found = theory.ntk_aware_base(1e4, s, 128)
    assert round(found) == b
    ratio = theory.inv_freq(1e4, 128) / theory.inv_freq(found, 128)
    assert (ratio[0], ratio[-1]) == pytest.approx((1.0, s))


@pytest.mark.parametrize(("b", "d", "length"), [(3.2e5, 128, 5000), (1e4, 64, 512), (50.0, 8, 1500), (1e4, 2, 1)])
def test_sums_by_the_addition_theorem_are_the_sums(b: float, d: int, length: int) -> None:
    sums = theory.rotation_sums(theory.inv_freq(b, d), length)
    assert sums.shape == (length,)
    np.testing.assert_allclose(sums, plain_sums(b, d, length), atol=1e-9)


@pytest.mark.parametrize(
    ("b", "length", "first"), [(3.2e5, 32768, 16350), (3.2e5, 16351, 16350), (3.2e5, 16350, None), (5e6, 131072, 82999)]
)
def test_first_negative_distance_of_published_bases(b: float, length: int, first: int | None) -> None:
    assert theory.first_negative_distance(theory.inv_freq(b, 128), length) == first
    negative = np.flatnonzero(plain_sums(b, 128, length) < 0)
    assert (int(negative[0]) if len(negative) else None) == first


@pytest.mark.parametrize(("d", "length"), [(4, 40), (8, 60), (16, 100), (32, 200)])
def test_smallest_sufficient_base_is_the_first_that_brute_force_meets(d: int, length: int) -> None:
    found = theory.smallest_sufficient_base(length, d)
    assert is_sufficient(found * (1 + 1e-6), d, length)
    smaller = np.geomspace(1.0001, found * (1 - 1e-6), 3000)
    theta = smaller[:, None] ** (-2 * np.arange(d // 2) / d)  # [bases, d/2]
    lowest = np.full(len(smaller), np.inf)
    for m in range(length):
        lowest = np.minimum(lowest, np.cos(m * theta).sum(1))
    assert (lowest < 0).all()


@pytest.mark.parametrize("length", [n for n in MEN_ET_AL if n <= 8192])
def test_smallest_sufficient_base_is_that_of_the_paper(length: int) -> None:
    found = theory.smallest_sufficient_base(length, 128)
    assert float(f"{found:.1e}") == MEN_ET_AL[length]
    assert math.ceil(found) == theory.SUFFICIENT_BASES[128][length]


def test_larger_bases_may_be_insufficient_again() -> None:
    assert is_sufficient(630_500, 128, 32768)
    assert not is_sufficient(640_000, 128, 32768)
    assert not is_sufficient(1e6, 128, 32768)


@pytest.mark.parametrize("d", theory.SUFFICIENT_BASES)
def test_tabled_bases_stand_where_sufficiency_begins(d: int) -> None:
    table = theory.SUFFICIENT_BASES[d]
    assert list(table) == [512 * 2**k for k in range(len(table))]
    for length, b in table.items():
        assert theory.first_negative_distance(theory.inv_freq(b, d), length) is None
        for below in (1 - 2e-6, 1 - 1e-3):  # an integer is rounded up by at most 5e-4 of these
            assert theory.first_negative_distance(theory.inv_freq((b - 1) * below, d), length) is not None
    if d == 128:
        assert {n: float(f"{b:.1e}") for n, b in table.items() if n in MEN_ET_AL} == MEN_ET_AL


@pytest.mark.parametrize(("d", "length"), [(64, 32768), (128, 32768), (128, 131072)])
def test_the_search_ends_at_the_tabled_base_of_a_long_context(d: int, length: int) -> None:
    b = theory.SUFFICIENT_BASES[d][length]
    assert math.ceil(theory.smallest_sufficient_base(length, d, above=b * 0.99)) == pytest.approx(b, rel=1e-7)


def test_a_length_between_two_tabled_ones_is_bracketed() -> None:
    assert theory.tabled_sufficient_base(32768, 128) == (629979, 629979)
    assert theory.tabled_sufficient_base(40000, 128) == (629979, 2090180)
    assert theory.tabled_sufficient_base(40000, 80) is None
    assert theory.tabled_sufficient_base(10**9, 128) is None
    low, high = theory.tabled_sufficient_base(3000, 128) or (0, 0)
    assert low <= theory.smallest_sufficient_base(3000, 128) <= high


@pytest.mark.parametrize("rope_theta", [1.0, 0.5, -3.0, math.nan, math.inf])
def test_a_base_without_slower_pairs_is_refused(rope_theta: float) -> None:
    with pytest.raises(ValueError, match=r"set rope\.rope_theta"):
        theory.inv_freq(rope_theta, 128)


def test_odd_dimensions_and_tiny_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"7 rotary dimensions are not pairs; set model\.head_dim"):
        theory.inv_freq(1e4, 7)
    with pytest.raises(ValueError, match="a length of 6 tokens is less than one turn"):
        theory.critical_dimension(1e4, 128, 6)


def test_theory_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, lightning_modules.rope.theory; print({'torch', 'transformers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "set()"
