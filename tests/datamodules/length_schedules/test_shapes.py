from __future__ import annotations

from typing import Any

import pytest

from datamodules.length_schedules.context_length_warmup import ContextLengthWarmup
from datamodules.length_schedules.shapes import constant, growing, stages

T, N = 4096, 100


def make_stages(given: Any, **options: Any) -> ContextLengthWarmup:
    return stages(**{"max_seqlen": T, "max_steps": N, "stages": given, **options})


def make_growing(shape: str = "linear", **options: Any) -> ContextLengthWarmup:
    return growing(**{"shape": shape, "max_seqlen": T, "max_steps": N, "growth_steps": 70, **options})


def lengths(schedule: ContextLengthWarmup, num_steps: int = N) -> list[int]:
    return [schedule.context_length(step) for step in range(num_steps)]


def test_constant_is_the_whole_row():
    assert set(lengths(constant(max_seqlen=T))) == {T}


def test_stages_begin_and_end_where_they_say():
    schedule = make_stages([{"length": 512, "until_step": 3}, {"length": 2048, "until_step": 5}, {"length": 4096}])
    assert lengths(schedule, 8) == [512, 512, 512, 2048, 2048, 4096, 4096, 4096]


@pytest.mark.parametrize(
    ("max_steps", "expected"),
    [(8, [512, 512, 1024, 1024, 2048, 2048, 4096, 4096]), (4, [512, 1024, 2048, 4096]), (2, [512, 2048]), (1, [512])],
)
def test_stages_of_nobodys_choice_double_three_times_over_the_run(max_steps: int, expected: list[int]):
    assert lengths(make_stages(None, max_steps=max_steps), max_steps) == expected


@pytest.mark.parametrize("step", [0, 1, 9, 10, 35, 69, 70, 99])
def test_linear_growth_is_skyladders_formula(step: int):
    """As many tokens every step, whole ones; every length is allowed under `window`."""
    schedule = make_growing(start=32, multiple_of=1, mechanism="window")
    expected = T if step >= 70 else 32 + int((T - 32) * (step / 70))
    assert schedule.context_length(step) == expected


def test_skyladders_rate_is_one_token_in_eight_steps():
    schedule = make_growing(
        start=32, end=64, growth_steps=8 * (64 - 32), max_steps=300, multiple_of=1, mechanism="window"
    )
    assert lengths(schedule, 300) == [32 + min(step // 8, 32) for step in range(300)]


def test_geometric_growth_doubles_in_equal_times():
    schedule = make_growing("geometric", start=512, growth_steps=60)
    assert lengths(schedule) == [512] * 20 + [1024] * 20 + [2048] * 20 + [4096] * 40


def test_linear_growth_doubles_later_and_later():
    assert lengths(make_growing(start=512)) == [512] * 10 + [1024] * 20 + [2048] * 40 + [4096] * 30


@pytest.mark.parametrize("shape", ["linear", "geometric"])
@pytest.mark.parametrize(("max_seqlen", "multiple_of"), [(4096, 64), (6144, 256), (1000, 1), (4096, 4096)])
def test_lengths_under_cut_divide_the_row_and_never_fall(shape: str, max_seqlen: int, multiple_of: int):
    found = lengths(make_growing(shape, max_seqlen=max_seqlen, multiple_of=multiple_of))
    assert found == sorted(found)
    assert found[-1] == max_seqlen
    assert not any(max_seqlen % length or length % multiple_of for length in found)


def test_lengths_under_window_are_multiples():
    found = lengths(make_growing(mechanism="window", multiple_of=256))
    assert found == sorted(found)
    assert set(found) == set(range(512, 4096 + 1, 256))


@pytest.mark.parametrize(("share", "reached"), [(0.5, 50), (0.01, 1), (1.0, 99)])
def test_growth_takes_its_share_of_the_run_and_ends_in_it(share: float, reached: int):
    found = lengths(make_growing(growth_steps=None, growth_share=share, multiple_of=1, mechanism="window"))
    assert found.index(T) == reached


@pytest.mark.parametrize("shape", ["linear", "geometric"])
@pytest.mark.parametrize("max_steps", [1, 2, 3])
def test_run_of_a_step_or_two_has_a_schedule(shape: str, max_steps: int):
    found = lengths(make_growing(shape, growth_steps=None, max_steps=max_steps), max_steps)
    assert found[0] == T // 8
    assert max_steps == 1 or found[-1] == T


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{"length": 8192}], r"stages\[0\]\.length=8192 is longer than packing\.max_seqlen=4096"),
        ([{"length": 1000}], r"stages\[0\]\.length=1000 does not divide packing\.max_seqlen=4096.* below is 512"),
        (
            [{"length": 512, "until_step": 9}, {"length": 1024, "until_step": 9}, {"length": 4096}],
            r"stages\[1\]\.until_step=9 is not after step 9, where it begins; put them in order",
        ),
        (
            [{"length": 1024, "until_step": 9}, {"length": 512}],
            r"stages\[1\]\.length=512 is below the 1024 before it; lengths of a warm-up grow",
        ),
        ([{"length": 512, "until_step": 9}], r"stages end at step 9 of data\.max_steps=100; set until_step of the la"),
        ([{"length": 512}, {"length": 4096}], r"stages\[0\]\.until_step=null must be a whole number of at least 1"),
        ([{"length": "long"}], r"stages\[0\]\.length=long must be a whole number of at least 1"),
        ([{"length": 512, "steps": 3}], r"stages\[0\]=.* must have the keys length and until_step, and no other"),
        ([512, 4096], r"stages\[0\]=512 must have the keys length and until_step"),
        ([], r"stages=\[\] must be a list such as"),
        (4096, r"stages=4096 must be a list such as \[\{length: 4096, until_step: 100\}\]"),
    ],
)
def test_wrong_stages_are_refused(given: Any, message: str):
    with pytest.raises(ValueError, match=rf"^length_schedule\.{message}"):
        make_stages(given)


def test_stage_that_does_not_divide_the_row_is_fine_for_a_window():
    assert make_stages([{"length": 1000}], mechanism="window").attention_window(0) == 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"end": 8192}, r"end=8192 is longer than packing\.max_seqlen=4096"),
        ({"start": 2048, "end": 1024}, r"start=2048 is above the end, 1024"),
        ({"start": 32}, r"start=32 is below the shortest length of length_schedule\.mechanism=cut .* 64; raise it"),
        ({"end": 3000}, r"end=3000 is no length of .*mechanism=cut and multiple_of=64; the nearest below is 2048"),
        ({"end": 3000, "mechanism": "window"}, r"end=3000 is no length of .* the nearest below is 2944"),
        ({"start": 0}, r"start=0 must be a whole number of at least 1"),
        ({"multiple_of": 0}, r"multiple_of=0 must be a whole number of at least 1"),
        ({"growth_steps": -1}, r"growth_steps=-1 must be a whole number of at least 1"),
        ({"growth_share": 0.0}, r"growth_share=0\.0 must be above 0 and at most 1"),
        ({"growth_share": 70.0}, r"growth_share=70\.0 must be above 0 and at most 1"),
        ({"shape": "square"}, r"shape=square is not known; allowed are linear, geometric"),
        ({"mechanism": "slide"}, r"mechanism=slide is not known; allowed are cut, window"),
    ],
)
def test_wrong_growth_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=rf"^length_schedule\.{message}"):
        make_growing(**options)


def test_mechanism_says_what_the_model_sees():
    cut, window = (
        make_stages([{"length": 512, "until_step": 3}, {"length": T}], mechanism=m) for m in ("cut", "window")
    )
    assert [cut.attention_window(step) for step in (2, 3)] == [None, None]
    assert [window.attention_window(step) for step in (2, 3)] == [512, None]
