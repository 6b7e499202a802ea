"""strategy=ddp and strategy=fsdp on two devices, stopped and resumed, against strategy=single on one."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from lightning_modules.checkpointing import load_weights, newest_checkpoint, step_of
from lightning_modules.loading import ModelFromScratch
from tests.resume.recipe_runs import (
    MAX_STEPS,
    kill_after_step,
    latest,
    losses,
    run_folders,
    started,
    tiny_words,
    train,
    wait_for_step,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


@pytest.fixture(scope="module")
def single(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One device, never interrupted."""
    return train(tiny_words(folder, dropout=0.0), tmp_path_factory.mktemp("single"))


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
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    model = ModelFromScratch(settings, seed=999).load()
    assert step_of(newest(run)) == MAX_STEPS
    load_weights(newest(run), model)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def newest(run: Path) -> Path:
    path = newest_checkpoint(run / "checkpoints")
    assert path is not None
    return path


def test_ddp_whose_first_rank_got_sigterm_resumed_on_one_device_equals_one_device(
    folder: Path, single: Path, tmp_path: Path
) -> None:
    with started([*tiny_words(folder, dropout=0.0, devices=2), "strategy=ddp"], tmp_path) as process:
        wait_for_step(process, tmp_path, 20)
        time.sleep(0.05)
        os.kill(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 75, out + err
    assert "Traceback" not in err
    run = latest(tmp_path)
    assert newest(run).is_file()
    assert sorted(losses(run))[-1] == step_of(newest(run)) < MAX_STEPS
    train(tiny_words(folder, dropout=0.0), tmp_path)
    assert run_folders(tmp_path) == [run]
    assert_same_run(run, single)


def test_fsdp_killed_on_two_devices_and_resumed_on_one_equals_one_device(
    folder: Path, single: Path, tmp_path: Path
) -> None:
    kill_after_step([*tiny_words(folder, dropout=0.0, devices=2), "strategy=fsdp"], tmp_path, 20)
    run = latest(tmp_path)
    assert newest(run).is_dir()
    train([*tiny_words(folder, dropout=0.0, devices=1), "strategy=fsdp"], tmp_path)
    assert run_folders(tmp_path) == [run]
    assert newest(run).is_dir()
    assert_same_run(run, single)
