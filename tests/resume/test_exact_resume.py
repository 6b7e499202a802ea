"""A killed run, started again by the same command, computes what it would have computed, bit for bit."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from lightning_modules.checkpointing import step_of
from tests.resume.recipe_runs import (
    MAX_STEPS,
    kill_after_step,
    latest,
    losses,
    run_folders,
    stop_after_step,
    tiny_words,
    train,
    weights,
)
from tests.shared import made_once


@pytest.fixture(scope="session")
def uninterrupted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return latest(made_once(tmp_path_factory, "uninterrupted", lambda output: train(tiny_words(folder), output)))


def assert_continued_exactly(run: Path, uninterrupted: Path, *, resumed_at: int) -> None:
    expected, found = losses(uninterrupted), losses(run)
    assert sorted(expected) == sorted(found) == list(range(1, MAX_STEPS + 1))
    for step, (loss,) in expected.items():
        assert set(found[step]) == {loss}, f"step {step}: {found[step]} instead of {loss}"
    assert len(found[resumed_at]) == 1
    assert {step: set(values) for step, values in losses(run, "val/loss").items()} == {
        step: set(values) for step, values in losses(uninterrupted, "val/loss").items()
    }
    ours, theirs = weights(run), weights(uninterrupted)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    lines = (run / "stderr").read_text().splitlines()
    assert [line.split("  ")[0] for line in lines if line] == ["train", "train"]  # no hints of third parties
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_run_goes_on_bit_for_bit(num_workers: int, folder: Path, uninterrupted: Path, tmp_path: Path) -> None:
    words = [*tiny_words(folder), f"data.num_workers={num_workers}"]
    resumed_at = kill_after_step(words, tmp_path, 10)
    # At once: loader workers of the killed process may still be there. Once in an interpreter of its own, which has
    # another hash seed and so another order of sets than the run that it goes on with, and imports everything itself.
    run = train(words, tmp_path, fresh=num_workers == 0)
    assert run_folders(tmp_path) == [run]
    assert_continued_exactly(run, uninterrupted, resumed_at=resumed_at)


def test_sigterm_to_all_processes_saves_the_step_at_hand_and_exits_75_to_go_on_bit_for_bit(
    folder: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """As a scheduler does it: to the whole process group, and so to the loader workers too."""
    words = [*tiny_words(folder, checkpoint_every_n_steps=13), "data.num_workers=2"]
    checkpoint, _ = stop_after_step(words, tmp_path, 13, lambda pid: os.killpg(pid, signal.SIGTERM))
    run = train(words, tmp_path)
    assert run_folders(tmp_path) == [run]
    assert_continued_exactly(run, uninterrupted, resumed_at=step_of(checkpoint))
    assert len(list((run / "checkpoints").iterdir())) == 2  # trainer.keep_checkpoints, over both processes


def test_run_prints_its_progress_and_no_hints_of_third_parties(uninterrupted: Path) -> None:
    assert (uninterrupted / "stdout").read_text().splitlines()[0] == f"trained: {uninterrupted}"
    lines = (uninterrupted / "stderr").read_text().splitlines()
    lines = [line for line in lines if line and not line.startswith("tokenise ")]
    assert [line.split("  ")[:2] for line in lines] == [["train", "1/40"], ["train", "40/40"]]
    assert all(part in lines[-1] for part in ("  loss ", "  lr ", " tok/s"))
