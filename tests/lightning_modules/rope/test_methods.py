from __future__ import annotations

import copy
from typing import Any

import pytest

from lightning_modules.rope.methods import (
    AdjustedBase,
    BaseRope,
    DynamicNTK,
    ExtendedRope,
    LinearInterpolation,
    Llama3,
    LongRoPE,
    NTKAware,
    ProgressiveBase,
    RopeMethod,
    Unchanged,
    YaRN,
)

DEFAULT: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
LLAMA2 = BaseRope(DEFAULT, 4096, 128)
HALF_ROTATED = BaseRope({**DEFAULT, "partial_rotary_factor": 0.5}, 4096, 128)
TURNS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA31 = BaseRope(
    {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 8192, **TURNS},
    131072,
    128,
)
TOGETHER_32K = BaseRope({**DEFAULT, "rope_type": "linear", "factor": 8.0}, 32768, 128)
PHI3_128K = BaseRope(  # as released: no factor, the ratio of the lengths is meant
    {
        **DEFAULT,
        "rope_type": "longrope",
        "original_max_position_embeddings": 4096,
        "short_factor": [1.0] * 48,
        "long_factor": [2.0] * 48,
    },
    131072,
    96,
)
SCALING = [LinearInterpolation, DynamicNTK, YaRN, Llama3]
GRADIENT = [[65536, 15.3e6], [262144, 207.1e6]]
ALL: dict[str, RopeMethod] = {
    "linear": LinearInterpolation(),
    "adjusted_base": AdjustedBase(5e5),
    "ntk_aware": NTKAware(),
    "dynamic_ntk": DynamicNTK(),
    "yarn": YaRN(),
    "longrope": LongRoPE([2.0] * 64),
    "llama3": Llama3(),
    "progressive_base": ProgressiveBase(GRADIENT),
}


def extended(method: RopeMethod, base: BaseRope = LLAMA2, context_length: int = 32768) -> ExtendedRope:
    return method.extend(base, context_length=context_length)


def test_linear_interpolation_takes_its_factor_from_the_lengths():
    rope = extended(LinearInterpolation(), HALF_ROTATED)
    expected = {"rope_type": "linear", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "factor": 8.0}
    assert rope == ExtendedRope(expected, covered_length=32768, max_position_embeddings=32768, total_factor=8.0)


@pytest.mark.parametrize("method", SCALING)
def test_factors_are_not_rounded(method: Any):
    assert extended(method(), context_length=10000).rope_parameters["factor"] == 10000 / 4096


@pytest.mark.parametrize("method", [LinearInterpolation(factor=16), YaRN(factor=16), Llama3(factor=16), NTKAware(16)])
def test_a_given_factor_may_cover_more_than_asked(method: RopeMethod):
    rope = extended(method)
    assert (rope.covered_length, rope.max_position_embeddings, rope.total_factor) == (65536, 65536, 16.0)


def test_a_fractional_factor_reaches_the_whole_number_that_it_means():
    base = BaseRope(DEFAULT, 100, 128)
    assert 2.3 * 100 < 230  # in floating point
    assert extended(LinearInterpolation(2.3), base, 230).covered_length == 230


def test_adjusted_base_changes_theta_alone():
    rope = extended(AdjustedBase(320000), HALF_ROTATED)
    assert rope.rope_parameters == {**HALF_ROTATED.rope_parameters, "rope_theta": 320000.0}
    assert rope.max_position_embeddings == 32768
    assert extended(AdjustedBase(320000), context_length=1024).covered_length == 4096


def test_ntk_aware_base_of_published_anchors():
    assert extended(NTKAware()).rope_parameters == {**DEFAULT, "rope_theta": pytest.approx(82_685, abs=0.5)}
    skywork = extended(NTKAware(), context_length=200_000)  # 4K -> 200K, s = 48.83
    assert skywork.rope_parameters["rope_theta"] == pytest.approx(519_367, abs=0.5)
    assert extended(NTKAware(), HALF_ROTATED).rope_parameters["rope_theta"] == 10000.0 * 8 ** (64 / 62)


def test_dynamic_keeps_the_length_that_transformers_scales_from():
    rope = extended(DynamicNTK())
    assert rope.rope_parameters == {**DEFAULT, "rope_type": "dynamic", "factor": 8.0}
    assert (rope.covered_length, rope.max_position_embeddings, rope.total_factor) == (32768, 4096, 8.0)
    assert extended(DynamicNTK(factor=2)).covered_length == 32768  # any factor reads any length


def test_yarn_llama3_and_longrope_name_the_original_length():
    for method in (YaRN(), Llama3(), LongRoPE([2.0] * 64)):
        assert extended(method).rope_parameters["original_max_position_embeddings"] == 4096
    assert extended(YaRN()).rope_parameters.keys().isdisjoint({"attention_factor", "truncate"})  # transformers' own


def test_longrope_without_a_short_list_is_the_base_model_at_short_lengths():
    assert extended(LongRoPE([2.0] * 32), HALF_ROTATED).rope_parameters["short_factor"] == [1.0] * 32


@pytest.mark.parametrize(
    ("context_length", "rope_theta"), [(8192, 15.3e6), (65536, 15.3e6), (65537, 207.1e6), (262144, 207.1e6)]
)
def test_progressive_base_is_that_of_the_next_longer_length(context_length: int, rope_theta: float):
    rope = extended(ProgressiveBase(GRADIENT), context_length=context_length)
    assert rope.rope_parameters == {**DEFAULT, "rope_theta": rope_theta}


def test_unchanged_keeps_a_scaled_base_as_it_is():
    for base in (LLAMA2, LLAMA31, TOGETHER_32K, PHI3_128K):
        rope = extended(Unchanged(), base, 4096)
        assert rope.rope_parameters == base.rope_parameters
        assert rope.rope_parameters is not base.rope_parameters
        assert rope.covered_length == rope.max_position_embeddings == base.max_position_embeddings
    assert extended(Unchanged(), LLAMA31, 131072).total_factor == 16.0
    dynamic = BaseRope({**DEFAULT, "rope_type": "dynamic", "factor": 8.0}, 4096, 128)
    rope = extended(Unchanged(), dynamic, 32768)
    assert (rope.covered_length, rope.max_position_embeddings) == (32768, 4096)


@pytest.mark.parametrize("name", ALL)
def test_the_base_is_left_alone(name: str):
    before = copy.deepcopy(LLAMA2)
    extended(ALL[name])
    assert before == LLAMA2


@pytest.mark.parametrize("name", ALL)
def test_a_scaled_base_is_refused_unless_the_recipe_says_what_becomes_of_it(name: str):
    with pytest.raises(ValueError, match="already have rope_type=llama3") as error:
        extended(ALL[name], LLAMA31, 262144)
    assert str(error.value).startswith(
        "the base model's rope_parameters already have rope_type=llama3, 8 times its 8192 tokens; "
        "set rope.on_scaled_base=replace to drop that"
    )
    can_keep = name in ("adjusted_base", "ntk_aware", "progressive_base")
    assert ("keep to keep it and change rope_theta" in str(error.value)) == can_keep


def test_replaced_scalings_leave_nothing_behind_and_count_from_the_length_before_them():
    rope = extended(LinearInterpolation(on_scaled_base="replace"), LLAMA31, 262144)
    assert rope.rope_parameters == {"rope_type": "linear", "rope_theta": 5e5, "factor": 32.0}
    assert rope.total_factor == 32.0
    rope = extended(AdjustedBase(5e6, on_scaled_base="replace"), LLAMA31, 65536)
    assert rope == ExtendedRope({"rope_type": "default", "rope_theta": 5e6}, 65536, 65536, 8.0)
    rope = extended(YaRN(on_scaled_base="replace"), TOGETHER_32K, 65536)
    assert (rope.rope_parameters["factor"], rope.rope_parameters["original_max_position_embeddings"]) == (16.0, 4096)
    rope = extended(DynamicNTK(on_scaled_base="replace"), TOGETHER_32K, 65536)
    assert rope.max_position_embeddings == 4096
    assert rope.rope_parameters["factor"] == 16.0
    rope = extended(LongRoPE([3.0] * 48, on_scaled_base="replace"), PHI3_128K, 262144)
    assert rope.rope_parameters["long_factor"] == [3.0] * 48
    assert rope.rope_parameters["factor"] == 64.0


def test_kept_scalings_stay_and_theta_changes():
    """Untie the Knots on Llama-3.1: llama3 scaling as released, another base."""
    rope = extended(AdjustedBase(5e6, on_scaled_base="keep"), LLAMA31, 131072)
    assert rope == ExtendedRope({**LLAMA31.rope_parameters, "rope_theta": 5e6}, 131072, 131072, 16.0)
    rope = extended(NTKAware(on_scaled_base="keep"), LLAMA31, 262144)
    assert rope.rope_parameters == {**LLAMA31.rope_parameters, "rope_theta": 5e5 * 2 ** (128 / 126)}
    assert rope.total_factor == 32.0
    rope = extended(ProgressiveBase(GRADIENT, on_scaled_base="keep"), LLAMA31, 262144)
    assert rope.rope_parameters == {**LLAMA31.rope_parameters, "rope_theta": 207.1e6}


def test_a_kept_scaling_does_not_grow_with_max_position_embeddings():
    rope = extended(AdjustedBase(5e6, on_scaled_base="keep"), PHI3_128K, 262144)
    assert rope.max_position_embeddings == 262144
    assert rope.rope_parameters["factor"] == 32.0  # 131072 / 4096, which transformers would take for 64 from now on


def test_keep_is_for_methods_that_change_theta_alone():
    for method in SCALING:
        with pytest.raises(ValueError, match=r"keep is not allowed here .*; set it to refuse or replace"):
            method(on_scaled_base="keep")
    with pytest.raises(ValueError, match=r"rope\.on_scaled_base=drop is not allowed here; set it to refuse or replace"):
        AdjustedBase(5e5, on_scaled_base="drop")


@pytest.mark.parametrize("factor", [0.5, float("nan"), float("inf"), -2.0])
@pytest.mark.parametrize("method", [*SCALING, NTKAware])
def test_bad_factor_is_refused(method: Any, factor: float):
    with pytest.raises(ValueError, match=r"set rope\.factor"):
        method(factor=factor)


@pytest.mark.parametrize("theta", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_theta_is_refused(theta: float):
    with pytest.raises(ValueError, match=r"set rope\.rope_theta"):
        AdjustedBase(rope_theta=theta)
    with pytest.raises(ValueError, match=r"set rope\.rope_theta"):
        ProgressiveBase([[4096, theta]])


@pytest.mark.parametrize(
    "method", [LinearInterpolation(4), YaRN(4), Llama3(4), NTKAware(4), LongRoPE([2.0] * 64, factor=4)]
)
def test_a_factor_that_does_not_reach_is_refused(method: RopeMethod):
    with pytest.raises(ValueError, match=r"to 16384, less than .*; set rope\.factor to 8 or more, or null"):
        extended(method)


@pytest.mark.parametrize("method", [*SCALING, NTKAware])
def test_interpolating_to_a_shorter_context_is_refused(method: Any):
    with pytest.raises(ValueError, match=r"rope\.factor less than 1"):
        extended(method(), context_length=2048)


def test_unchanged_does_not_reach_beyond_the_base():
    with pytest.raises(ValueError, match="choose another rope or lower context_length"):
        extended(Unchanged())


@pytest.mark.parametrize("method", [NTKAware(), DynamicNTK()])
def test_a_base_cannot_grow_over_two_dimensions(method: RopeMethod):
    with pytest.raises(ValueError, match="needs 4 rotary dimensions or more, and this model has 2"):
        extended(method, BaseRope(DEFAULT, 4096, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: YaRN(beta_fast=1, beta_slow=32), r"set rope\.beta_slow above 0 and below rope\.beta_fast"),
        (lambda: YaRN(attention_factor=0.0), r"set rope\.attention_factor, or null"),
        (lambda: Llama3(low_freq_factor=4), r"set rope\.low_freq_factor above 0 and below rope\.high_freq_factor"),
        (lambda: LongRoPE([2.0, -1.0]), r"rope\.long_factor=\[2\.0, -1\.0\] is not a list of positive numbers"),
        (lambda: LongRoPE("all"), r"rope\.long_factor=all is not a list of positive numbers"),  # type: ignore[arg-type]
        (lambda: LongRoPE([1.0], [0]), r"rope\.short_factor=\[0\] is not a list of positive numbers"),
        (lambda: ProgressiveBase([]), r"set rope\.rope_theta to such as \[\[65536, 15\.3e6\]"),
        (lambda: ProgressiveBase([[8192, 1e6], [4096, 2e6]]), r"is not a list of context lengths, rising"),
        (lambda: ProgressiveBase([[8192, 1e6], [8192, 2e6]]), r"is not a list of context lengths, rising"),
        (lambda: ProgressiveBase([[8192]]), r"is not a list of context lengths, rising"),
        (lambda: ProgressiveBase(5e6), r"is not a list of context lengths, rising"),  # type: ignore[arg-type]
        (lambda: ProgressiveBase([["8192", 1e6]]), r"is not a list of context lengths"),  # type: ignore[list-item]
    ],
)
def test_other_faults_name_the_key(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_longrope_wants_a_number_for_every_pair_of_dimensions():
    with pytest.raises(ValueError, match=r"rope\.long_factor has 63 numbers, .*; give rope\.long_factor 64 numbers"):
        extended(LongRoPE([2.0] * 63))
    with pytest.raises(ValueError, match=r"give rope\.short_factor 64 numbers"):
        extended(LongRoPE([2.0] * 64, [1.0]))


def test_a_length_without_a_base_is_refused():
    with pytest.raises(ValueError, match=r"no base for context_length=262145, its longest is for 262144"):
        extended(ProgressiveBase(GRADIENT), context_length=262145)
