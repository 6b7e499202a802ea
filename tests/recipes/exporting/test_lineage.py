"""The stages that a run comes from, found by the path of the model that each began with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from omegaconf import OmegaConf

from recipes.exporting.lineage import lineage, lineage_section
from recipes.run_folder import RunFolder


def make_run(folder: Path, *, base: str, lengths: tuple[int, int], recipe: str) -> RunFolder:
    (folder / "export").mkdir(parents=True)
    facts = {"recipe": recipe, "steps": 10, "tokens": 20480, "mechanism": {"model.source.name_or_path": base}}
    (folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    before, after = lengths
    config = {
        "model": {"original_context_length": before},
        "context_length": after,
        "about": {"paper": "a paper", "extends": "a base model"},
    }
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    return RunFolder(folder)


def test_stages_are_named_from_the_first_to_the_last(tmp_path: Path) -> None:
    first = make_run(tmp_path / "one", base="org/model", lengths=(4096, 32768), recipe="a/pretrain")
    second = make_run(tmp_path / "two", base=str(first.export), lengths=(32768, 32768), recipe="a/sft")
    third = make_run(tmp_path / "three", base=str(second.export), lengths=(32768, 65536), recipe="a/more")
    assert [run.path.name for run in lineage(third)] == ["one", "two", "three"]
    (section,) = lineage_section(third)
    assert section.splitlines() == [
        "## Lineage",
        "",
        "1. `a/pretrain` (a paper), from a base model: context 4,096 -> 32,768 tokens, 10 steps, 20,480 tokens",
        "2. `a/sft` (a paper), from stage 1: context 32,768 tokens, 10 steps, 20,480 tokens",
        "3. `a/more` (a paper), from stage 2: context 32,768 -> 65,536 tokens, 10 steps, 20,480 tokens",
    ]
    assert lineage_section(first) == ()
    shutil.rmtree(first.path)
    assert [run.path.name for run in lineage(third)] == ["two", "three"]
