from __future__ import annotations

from typing import Any

import pytest

from lightning_modules.rope.methods import AdjustedBase, LinearInterpolation, RopeMethod, Unchanged

BASE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
LENGTHS = {"original_length": 4096, "context_length": 32768}


def test_linear_interpolation_takes_its_factor_from_the_lengths():
    expected = {"rope_type": "linear", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "factor": 8.0}
    assert LinearInterpolation().rope_parameters(BASE, **LENGTHS) == expected
    assert LinearInterpolation().covered_length(4096, 32768) == 32768


def test_linear_interpolation_does_not_round_its_factor():
    parameters = LinearInterpolation().rope_parameters(BASE, original_length=4096, context_length=10000)
    assert parameters["factor"] == 10000 / 4096


def test_a_given_factor_may_cover_more_than_asked():
    method = LinearInterpolation(factor=16)
    assert method.rope_parameters(BASE, **LENGTHS)["factor"] == 16.0
    assert method.covered_length(4096, 32768) == 65536


def test_adjusted_base_changes_theta_alone():
    assert AdjustedBase(320000).rope_parameters(BASE, **LENGTHS) == {**BASE, "rope_theta": 320000.0}
    assert AdjustedBase(320000).covered_length(4096, 32768) == 32768
    assert AdjustedBase(320000).covered_length(4096, 1024) == 4096


def test_unchanged_keeps_a_scaled_base_as_it_is():
    scaled = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0}
    parameters = Unchanged().rope_parameters(scaled, original_length=4096, context_length=4096)
    assert parameters == scaled
    assert parameters is not scaled
    assert Unchanged().covered_length(4096, 1024) == 4096


@pytest.mark.parametrize("method", [LinearInterpolation(), AdjustedBase(5e5)])
def test_the_base_is_left_alone(method: RopeMethod):
    before = dict(BASE)
    method.rope_parameters(BASE, **LENGTHS)
    assert before == BASE


@pytest.mark.parametrize("factor", [0.5, float("nan"), float("inf"), -2.0])
def test_bad_factor_is_refused(factor: float):
    with pytest.raises(ValueError, match=r"set rope\.factor"):
        LinearInterpolation(factor=factor)


@pytest.mark.parametrize("theta", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_theta_is_refused(theta: float):
    with pytest.raises(ValueError, match=r"set rope\.rope_theta"):
        AdjustedBase(rope_theta=theta)


def test_a_factor_that_does_not_reach_is_refused():
    with pytest.raises(ValueError, match=r"set rope\.factor to 8 or more"):
        LinearInterpolation(factor=4).rope_parameters(BASE, **LENGTHS)


def test_interpolating_to_a_shorter_context_is_refused():
    with pytest.raises(ValueError, match=r"rope\.factor less than 1"):
        LinearInterpolation().rope_parameters(BASE, original_length=4096, context_length=2048)


@pytest.mark.parametrize("method", [LinearInterpolation(), AdjustedBase(5e5)])
def test_a_scaled_base_is_refused(method: RopeMethod):
    with pytest.raises(ValueError, match="already have rope_type=yarn"):
        method.rope_parameters({**BASE, "rope_type": "yarn", "factor": 4.0}, **LENGTHS)


def test_unchanged_does_not_reach_beyond_the_base():
    with pytest.raises(ValueError, match="choose another rope or lower context_length"):
        Unchanged().rope_parameters(BASE, **LENGTHS)
