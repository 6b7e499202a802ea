"""What a length schedule cannot do is said in one sentence before a model is built."""

from __future__ import annotations

import pytest

from recipes.compose import ConfigError, compose
from recipes.validate import validate
from tests.recipes.words import replaced

STAGES = "length_schedule=stages"


def faults(words: list[str]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        validate(compose(words))
    return str(error.value).splitlines()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            [STAGES, "length_schedule.stages=[{length: 2048}]"],
            "length_schedule.stages[0].length=2048 is longer than packing.max_seqlen=1024; lower it, or raise",
        ),
        (
            [STAGES, "length_schedule.stages=[{length: 384, until_step: 1}, {length: 1024}]"],
            "length_schedule.stages[0].length=384 does not divide packing.max_seqlen=1024, and",
        ),
        (
            [
                STAGES,
                "length_schedule.stages=[{length: 256, until_step: 2}, {length: 512, until_step: 1}, {length: 1024}]",
            ],
            "length_schedule.stages[1].until_step=1 is not after step 2, where it begins; put them in order",
        ),
        (
            [STAGES, "length_schedule.stages=[{length: 512, until_step: 1}, {length: 256}]"],
            "length_schedule.stages[1].length=256 is below the 512 before it; lengths of a warm-up grow",
        ),
        (
            [STAGES, "length_schedule.stages=[{length: 512, until_step: 1}]"],
            "length_schedule.stages end at step 1 of data.max_steps=2; set until_step of the last stage to null",
        ),
        (
            [STAGES, "data.tokens_per_step=2560"],
            "data.tokens_per_step=2560 is not a multiple of packing.max_seqlen=1024; the nearest is 2048",
        ),
        ([STAGES, "length_schedule.mechanism=slide"], "length_schedule.mechanism=slide is not known; allowed are cut"),
        ([STAGES, "length_schedule.rope_follows=often"], "length_schedule.rope_follows=often must be true or false"),
        (["length_schedule=linear", "length_schedule.end=2048"], "length_schedule.end=2048 is longer than packing.max"),
        (["length_schedule=linear", "length_schedule.start=x"], "length_schedule.start=x must be a whole number or nu"),
        (["length_schedule=geometric", "+length_schedule.stages=[]"], "length_schedule.stages is not an argument of"),
        (["length_schedule=sort", "length_schedule.remix=2"], "length_schedule.remix=2 must be true or false"),
        (
            ["length_schedule=sort", "corpus.phases=[{tokens: 1024, mixture: {classics: 1}}]"],
            "corpus.phases would be undone by the order of length_schedule; set corpus.phases=null or another",
        ),
        (
            ["length_schedule=decomposition", "length_schedule.smallest=100"],
            "packing.max_seqlen=1024 is not length_schedule.smallest=100 times a power of two; change one of them",
        ),
        (
            ["length_schedule=decomposition", "length_schedule.odds=[2, 1]"],
            "length_schedule.odds has 2 numbers for the 3 buckets 256, 512, 1024; give one for each, or null",
        ),
    ],
)
def test_one_fault_is_one_sentence(tiny: list[str], changes: list[str], sentence: str) -> None:
    (found,) = faults(replaced(tiny, *changes))
    assert sentence in found


@pytest.mark.parametrize(
    "changes",
    [
        [STAGES, "length_schedule.stages=[{length: 256, until_step: 1}, {length: 1024, until_step: null}]"],
        ["length_schedule=linear", "length_schedule.mechanism=window", "length_schedule.rope_follows=true"],
        ["length_schedule=sort", "length_schedule.remix=true", "corpus.phases=[{tokens: 9, mixture: {classics: 1}}]"],
    ],
)
def test_what_is_right_is_accepted(tiny: list[str], changes: list[str]) -> None:
    validate(compose(replaced(tiny, *changes)))
