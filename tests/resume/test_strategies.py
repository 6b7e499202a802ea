"""strategy=ddp and strategy=fsdp on two devices, stopped and resumed, against strategy=single on one."""

from __future__ import annotations

import os
import re
import resource
import signal
from pathlib import Path

import pytest
import torch

from lightning_modules.checkpointing import is_complete, load_weights, step_of
from lightning_modules.loading import ModelFromScratch
from tests.processes import PATIENCE_SECONDS
from tests.resume.recipe_runs import (
    MAX_STEPS,
    kill_after_step,
    latest,
    losses,
    newest,
    run_folders,
    started,
    stop_after_step,
    tiny_words,
    train,
    wait_for_step,
)
from tests.shared import made_once


@pytest.fixture(scope="session")
def single(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One device, never interrupted."""
    words = tiny_words(folder, dropout=0.0)
    return latest(made_once(tmp_path_factory, "single", lambda output: train(words, output)))


def assert_same_run(run: Path, single: Path) -> None:
    expected, found = losses(single), losses(run)
    assert sorted(found) == sorted(expected) == list(range(1, MAX_STEPS + 1))
    for step, (loss,) in expected.items():
        assert found[step] == pytest.approx([loss] * len(found[step]), rel=1e-5), f"step {step}"
    assert {step: values[-1] for step, values in losses(run, "val/loss").items()} == pytest.approx(
        {step: values[-1] for step, values in losses(single, "val/loss").items()}, rel=1e-5
    )
    ours, theirs = loaded(run), loaded(single)
    assert len(theirs) == 20
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-5, atol=1e-5)


def loaded(run: Path) -> dict[str, torch.Tensor]:
    """The last weights through the function that evaluation uses, over a model of other weights."""
    settings = {
        "model_type": "llama",
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    model = ModelFromScratch(settings, seed=999).load()
    assert step_of(newest(run)) == MAX_STEPS
    load_weights(newest(run), model)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_ddp_whose_first_rank_got_sigterm_resumed_on_one_device_equals_one_device(
    folder: Path, single: Path, tmp_path: Path
) -> None:
    words = [*tiny_words(folder, dropout=0.0, devices=2), "strategy=ddp"]
    checkpoint, _ = stop_after_step(words, tmp_path, 10, lambda pid: os.kill(pid, signal.SIGTERM))
    assert checkpoint.is_file()
    run = train(tiny_words(folder, dropout=0.0), tmp_path)
    assert run_folders(tmp_path) == [run]
    assert_same_run(run, single)


@pytest.mark.parametrize(
    "second_rank", [pytest.param(True, id="fork"), pytest.param(False, id="interpreter", marks=pytest.mark.slow)]
)
def test_fsdp_that_met_a_full_disk_and_a_kill_on_two_devices_resumed_on_one_equals_one_device(
    second_rank: bool, folder: Path, single: Path, tmp_path: Path
) -> None:
    words = [*tiny_words(folder, dropout=0.0, devices=2), "strategy=fsdp"]
    fill_the_disk_of_the_last_rank(words, tmp_path, 10, second_rank=second_rank)
    kill_after_step(words, tmp_path, 20)
    assert newest(latest(tmp_path)).is_dir()
    run = train([*tiny_words(folder, dropout=0.0, devices=1), "strategy=fsdp"], tmp_path)
    assert run_folders(tmp_path) == [run]
    assert newest(run).is_dir()
    assert_same_run(run, single)


def fill_the_disk_of_the_last_rank(words: list[str], output_dir: Path, step: int, *, second_rank: bool) -> None:
    """Train until the second rank may not write another checkpoint, which the first one says in one sentence."""
    with started(words, output_dir, second_rank=second_rank) as process:
        wait_for_step(process, output_dir, step)
        (rank,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        resource.prlimit(int(rank), resource.RLIMIT_FSIZE, (1000, 1000))  # the kernel refuses what is beyond
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2, err
    (said,) = (line for line in err.splitlines() if not line.startswith(("train  ", "tokenise ")) and line)
    assert re.fullmatch(
        r"error: checkpoint \S+/step-00000\d0.ckpt could not be written \(.+\); the previous one is intact", said
    )
    run = latest(output_dir)
    assert step <= step_of(newest(run)) < MAX_STEPS
    assert all(is_complete(path) for path in (run / "checkpoints").iterdir())
    assert "Traceback (most recent call last)" in (run / "log.txt").read_text()
