"""`pipeline=…` and the words beside it: stages in order, words of one stage, and what is refused."""

from __future__ import annotations

import pytest

from recipes.pipelining.pipeline import is_pipeline, merged
from tests.recipes.pipelining.conftest import Write, faults, mine

STAGES = """
paper: three stages
stages:
  - {name: one, recipe: demo/extend, words: [seed=1]}
  - {name: two, recipe: demo/sft}
  - {name: three, recipe: demo/sft, starts_from: one}
  - {name: four, recipe: demo/extend, starts_from: null}
"""


def test_a_stage_starts_from_the_one_before_unless_the_file_says_another(write: Write) -> None:
    write(STAGES)
    found = mine().stages
    assert [(stage.name, stage.recipe, stage.starts_from) for stage in found] == [
        ("one", "demo/extend", None),
        ("two", "demo/sft", "one"),
        ("three", "demo/sft", "one"),
        ("four", "demo/extend", None),
    ]
    assert found[0].words == ("seed=1",)


def test_words_of_one_stage_begin_with_its_name(write: Write) -> None:
    write(STAGES)
    found = mine("seed=3", "two.optimizer=adamw", "+two.model.x=1", "three.optimizer.lr=1e-5", "resume=never")
    assert found.general == ("seed=3",)
    assert found.resume == "never"
    assert [stage.own for stage in found.stages] == [
        (),
        ("optimizer=adamw", "+model.x=1"),
        ("optimizer.lr=1e-5",),
        (),
    ]


def test_words_of_a_scale_are_those_of_the_stage_at_that_scale(write: Write) -> None:
    write("paper: a\nstages: [{name: one, recipe: demo/extend, words: [seed=1, a=1], at_scale: {toy: [seed=2]}}]")
    for words, expected in (
        ([], ("seed=1", "a=1")),
        (["scale=paper"], ("seed=1", "a=1")),
        (["scale=toy"], ("seed=2", "a=1")),
        (["scale=paper", "one.scale=toy"], ("seed=2", "a=1")),
    ):
        assert mine(*words).stages[0].words == expected


def test_the_last_word_of_a_key_stays_in_its_group() -> None:
    assert merged(["a=1", "b=1"], ["a=2"], ["+c=3", "b=4"]) == ("a=2", "b=4", "+c=3")


def test_a_pipeline_is_told_from_a_recipe() -> None:
    assert is_pipeline(["seed=1", "pipeline=demo"])
    assert not is_pipeline(["recipe=demo/extend", "stage=supervised_finetuning"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["pipeline=mime"], "pipeline=mime does not exist; nearest: mine"),
        (["pipeline=mine", "pipeline=mine"], "pipeline is given twice; keep one"),
        (["pipeline=mine", "fast"], "'fast' is not of the form key=value; see python -m recipes.run --help"),
        (["pipeline=mine", "recipe=demo/extend"], "recipe cannot be set here, as the pipeline says which preset"),
        (["pipeline=mine", "two.recipe=demo/extend"], "recipe cannot be set here, as the pipeline says which preset"),
        (["pipeline=mine", "run_folder=x"], "run_folder cannot be set here, as every stage has a folder of its own"),
        (["pipeline=mine", "two.checkpoint=x"], "checkpoint cannot be set here, as every stage starts from the export"),
        (["pipeline=mine", "two.output_dir=x"], "output_dir is the same for all stages; give output_dir=x instead of"),
        (["pipeline=mine", "variant=utk/abf"], "variant=utk/abf changes one stage; say which, such as one.variant"),
        (["pipeline=mine", "seed=1", "seed=2"], "seed is given twice; keep one"),
        (["pipeline=mine", "two.seed=1", "two.seed=2"], "two.seed is given twice; keep one"),
        (["pipeline=mine", "two.model=demo"], "two.model=demo cannot be set, as two starts from the export of one"),
        (["pipeline=mine", "three.model.source.name_or_path=x"], "three starts from the export of one; remove it"),
    ],
)
def test_words_that_do_not_fit(write: Write, words: list[str], sentence: str) -> None:
    write(STAGES)
    (found,) = faults(*words)
    assert sentence in found


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("paper: a", "the file must have paper, and stages as a list of {name, recipe}"),
        ("stages: [{name: a, recipe: demo/sft}]", "the file must have paper"),
        ("paper: a\nstages: [{name: a, recipe: demo/sft}]\nrecipe: x", "recipe is not a key of a pipeline"),
        ("paper: a\nstages: [{name: a}]", "stages[0]={'name': 'a'} must have name and recipe, and may"),
        ("paper: a\nstages: [{name: a, recipe: demo/sfft}]", "stages[0].recipe=demo/sfft does not exist; nearest: dem"),
        ("paper: a\nstages: [{name: rope, recipe: demo/sft}]", "stages[0].name=rope must be a name of letters, digits"),
        ("paper: a\nstages: [{name: seed, recipe: demo/sft}]", "stages[0].name=seed must be a name of letters, digits"),
        ("paper: a\nstages: [{name: a b, recipe: demo/sft}]", "stages[0].name=a b must be a name of letters, digits"),
        ("paper: a\nstages: [{name: a, recipe: demo/sft, words: [seed]}]", "stages[0].words=['seed'] must be a list"),
        (
            "paper: a\nstages: [{name: a, recipe: demo/sft}, {name: a, recipe: demo/sft}]",
            "stages[1].name=a must be a name of letters, digits and _, and of nothing else",
        ),
        (
            "paper: a\nstages: [{name: a, recipe: demo/sft, starts_from: b}, {name: b, recipe: demo/sft}]",
            "stages[0].starts_from=b must be null or a stage before it",
        ),
        (
            "paper: a\nstages: [{name: a, recipe: demo/sft, at_scale: [seed=1]}]",
            "stages[0].at_scale=['seed=1'] must",
        ),
        ("paper: a\nstages: [{name: a, recipe: demo/sft, at_scale: {toy: [b]}}]", "stages[0].at_scale.toy=['b'] must"),
        ("paper: a\nstages: [", "line 3"),
        ("- a", "the file must hold the keys paper and stages"),
    ],
)
def test_files_that_do_not_fit(write: Write, text: str, sentence: str) -> None:
    write(f"{text}\n")
    assert any(sentence in fault and fault.startswith("pipeline=mine: ") for fault in faults("pipeline=mine"))
