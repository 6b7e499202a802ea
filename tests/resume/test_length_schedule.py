"""A run killed inside a stage of its length schedule goes on bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.grids import quick_where
from tests.resume.recipe_runs import MAX_STEPS, kill_after_step, losses, run_folders, tiny_words, train
from tests.resume.test_exact_resume import assert_continued_exactly

STAGES = "[{length: 8, until_step: 8}, {length: 32, until_step: 34}, {length: 64}]"


@pytest.mark.parametrize("mechanism", quick_where([("cut",), ("window",)], lambda mechanism: mechanism == "cut"))
def test_run_killed_inside_a_stage_goes_on_bit_for_bit(mechanism: str, folder: Path, tmp_path: Path) -> None:
    words = [
        *tiny_words(folder),
        "length_schedule=stages",
        f"length_schedule.mechanism={mechanism}",
        f"length_schedule.stages={STAGES}",
    ]
    uninterrupted = train(words, tmp_path / "uninterrupted")
    resumed_at = kill_after_step(words, tmp_path / "killed", 10)
    assert 8 < resumed_at < 34
    run = train(words, tmp_path / "killed")
    assert run_folders(tmp_path / "killed") == [run]
    assert_continued_exactly(run, uninterrupted, resumed_at=resumed_at)
    lengths = {step: set(values) for step, values in losses(run, "train/context_length").items()}
    assert lengths == {step: {8 if step <= 8 else 32 if step <= 34 else 64} for step in range(1, MAX_STEPS + 1)}
