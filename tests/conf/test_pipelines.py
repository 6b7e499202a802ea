"""Every pipeline on disk: it says what a pipeline says, its stages follow one another, and it runs at scale=toy."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recipes import compose as composing
from recipes.compose import options
from recipes.pipelining.composing import compose_stages
from recipes.pipelining.pipeline import read_pipeline
from recipes.quick_compose import preset_values
from tests.grids import quick_where

FOLDER = composing.conf_folder() / "pipeline"
PIPELINES = (
    "chatqa2_llama3_8b_128k",
    "demo",
    "index_1p9b_32k",
    "longskywork_13b_200k",
    "prolong_llama3_8b",
    "together_llama2_7b_32k",
    "utk_llama3p1_8b_128k",
    "utk_qwen2_72b_128k",
    "utk_qwen2_7b_128k",
)
ENDS = {"together_llama2_7b_32k": ("booksum", "multi_document_qa", "instruct")}
"""Stages that no other one starts from, where that is not the last one alone."""

TWICE_EXTENDED = {"prolong_llama3_8b": [(512, 1024), (1024, 4096), (4096, 4096)]}
"""Lengths before and after each stage at scale=toy, where a second stage extends what the first one has extended."""

HEADER = ("Paper", "Source", "Run", "Expect", "Differs")


def test_pipelines_are_all_found() -> None:
    assert tuple(options("pipeline")) == PIPELINES


@pytest.mark.parametrize("name", PIPELINES)
def test_header_says_what_it_is_and_how_it_runs(name: str) -> None:
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert tuple(match[1] for line in lines if (match := re.match(r"# (\w+) +\S", line))) == HEADER
    run = next(line for line in lines if line.startswith("# Run"))
    assert f"python -m recipes.run pipeline={name}" in run
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("name", PIPELINES)
def test_stages_start_from_what_their_presets_continue(name: str) -> None:
    pipeline = read_pipeline([f"pipeline={name}"])
    recipes = {stage.name: stage.recipe for stage in pipeline.stages}
    for stage in pipeline.stages:
        continues = preset_values(stage.recipe).config.about.continues
        if continues is not None:  # demo/sft starts from a base model by itself
            assert recipes[str(stage.starts_from)] == continues
        if name != "demo":
            assert (stage.starts_from is None) == (continues is None)
    ends = [stage.name for stage in pipeline.stages if stage.name not in [s.starts_from for s in pipeline.stages]]
    assert tuple(ends) == ENDS.get(name, (pipeline.stages[-1].name,))


def test_every_stage_of_a_paper_is_in_a_pipeline() -> None:
    """A preset that continues another belongs to the pipeline of its paper, with the one that it continues."""
    found = {(name, stage.recipe) for name in PIPELINES for stage in read_pipeline([f"pipeline={name}"]).stages}
    for preset in options("recipe"):
        about = preset_values(preset).config.about
        if about.continues is not None:
            assert any({(name, preset), (name, about.continues)} <= found for name in PIPELINES), preset


QUICK = ("demo", "index_1p9b_32k", "together_llama2_7b_32k")


@pytest.mark.parametrize("name", quick_where([(name,) for name in PIPELINES], lambda name: name in QUICK))
def test_composes_and_validates_at_toy_scale(name: str, tmp_path: Path) -> None:
    pipeline = read_pipeline([f"pipeline={name}", "scale=toy"])
    planned = compose_stages(pipeline, tmp_path / "shells")
    assert [*planned] == [stage.name for stage in pipeline.stages]
    lengths = [(plan.config.model.original_context_length, plan.config.context_length) for plan in planned.values()]
    assert lengths == TWICE_EXTENDED.get(name, lengths)
    for plan in planned.values():
        config = plan.config
        assert config.packing.max_seqlen <= config.context_length <= 4096
        if plan.stage.starts_from is not None:
            before = planned[plan.stage.starts_from].config
            assert config.model.source.name_or_path == str(tmp_path / "shells" / plan.stage.starts_from)
            assert config.context_length >= before.context_length
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_runs_end_to_end_at_toy_scale(name: str, tmp_path: Path, cache_dir: Path) -> None:
    from recipes.cli import run
    from recipes.pipelining.running import run_pipeline
    from recipes.pipelining.stage import complete_stage

    words = [
        f"pipeline={name}",
        "scale=toy",
        "debug=two_steps",
        "evaluation.lengths=[512]",
        "evaluation.perplexity.num_windows=2",
        "evaluation.needle.num_samples=1",
        "evaluation.needle.depths=[0.5]",
        "evaluation.answers.lengths=[512]",
        "trainer.progress_bar=false",
        "trainer.accelerator=cpu",
        f"output_dir={tmp_path}",
        f"cache_dir={cache_dir}",
    ]
    pipeline = read_pipeline(words)
    outcome = run_pipeline(pipeline, start=lambda stage_words: run(stage_words, complete_stage))
    record = json.loads((outcome.folder / "pipeline.json").read_text(encoding="utf-8"))
    assert record["status"] == "finished"
    for stage in pipeline.stages:
        folder = outcome.runs[stage.name].path
        assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["steps"] == 2
        assert (folder / "export" / "config.json").is_file()
        if stage.starts_from is not None:
            source = OmegaConf.load(folder / "config.yaml").model.source.name_or_path
            assert source == str(outcome.runs[stage.starts_from].export)
    report = (outcome.folder / "report.md").read_text(encoding="utf-8")
    assert [f"| after {stage.name} " in report for stage in pipeline.stages] == [True] * len(pipeline.stages)
    card = (outcome.folder / "export" / "README.md").read_text(encoding="utf-8")
    assert ("## Lineage" in card) == (len(pipeline.stages) > 1)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token stores, shared by the pipelines."""
    return tmp_path_factory.mktemp("cache")
