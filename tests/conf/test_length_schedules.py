"""Every length schedule is one word on the command line of a recipe, and trains at scale=toy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recipes.cli import run
from recipes.compose import options
from recipes.train import train

T = 1024
LENGTHS = {
    "constant": [T, T],
    "stages": [T // 8, T // 2],
    "linear": [T // 8, T],
    "geometric": [T // 8, T],
    "sort": [T, T],
    "decomposition": None,  # a bucket each
}
"""Context length of the two steps."""

WINDOWED = ("stages", "linear", "geometric")


def test_schedules_are_all_found() -> None:
    assert options("length_schedule") == sorted(LENGTHS)
    assert len(LENGTHS) == 6


@pytest.mark.usefixtures("small_bundle")
@pytest.mark.parametrize(
    ("option", "mechanism"),
    [*((option, None) for option in LENGTHS), *((option, "window") for option in WINDOWED)],
)
def test_one_word_ablates_demo_extend(option: str, mechanism: str | None, tmp_path: Path, cache_dir: Path) -> None:
    words = [
        "recipe=demo/extend",
        "scale=toy",
        f"context_length={T}",
        "rope.rope_theta=20000.0",
        f"evaluation.lengths=[512,{T}]",
        f"length_schedule={option}",
        *([f"length_schedule.mechanism={mechanism}"] if mechanism else []),
        "debug=two_steps",
        f"data.tokens_per_step={T}",
        "data.micro_batch_size=1",
        "data.validation_sequences=1",
        "trainer.progress_bar=false",
        "trainer.accelerator=cpu",
        f"output_dir={tmp_path}",
        f"cache_dir={cache_dir}",
    ]
    assert run(words, train) == 0
    folder = (tmp_path / "demo" / "extend" / "latest").resolve()
    info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert (info["status"], info["steps"]) == ("finished", 2)
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    found = [event.value for event in events.Scalars("train/context_length")]
    assert len(found) == 2
    if (expected := LENGTHS[option]) is None:
        assert set(found) <= {256, 512, 1024}
        assert "drops" in (folder / "log.txt").read_text(encoding="utf-8")
    else:
        assert found == expected
