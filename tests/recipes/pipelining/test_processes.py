"""`python -m recipes.run pipeline=index_1p9b_32k scale=toy` as a user starts it, each stage a process of its own."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_modules.checkpointing import newest_checkpoint
from tests import processes
from tests.recipes.pipelining.test_killed import results

PATIENCE_SECONDS = 300

WORDS = (
    "pipeline=index_1p9b_32k",
    "scale=toy",
    "data.tokens_per_step=4096",
    "data.micro_batch_size=1",
    "data.max_steps=4",
    "data.validation_sequences=1",
    "lr_schedule.warmup_steps=1",
    "evaluation.lengths=[512,1024]",
    "evaluation.perplexity.num_windows=2",
    "evaluation.needle.num_samples=1",
    "evaluation.needle.depths=[0.0,1.0]",
    "trainer.checkpoint_every_n_steps=1",
    "trainer.num_threads=1",
    "trainer.progress_bar=false",
)

Ready = Callable[[Path], bool]


def trained(stage: str, step: int) -> Ready:
    """Whether a stage has a checkpoint of a step."""
    return lambda folder: (
        newest_checkpoint(folder / stage / "checkpoints") == (folder / stage / "checkpoints" / f"step-{step:07d}.ckpt")
    )


MOMENTS: dict[str, Ready] = {
    "training": trained("1-pretrain", 1),
    "export": lambda folder: (folder / "1-pretrain" / ".export.partial").exists(),
    "between": lambda folder: '"status": "finished"' in read(folder / "1-pretrain" / "run.json"),
    "second training": trained("2-sft", 2),
    "evaluation": lambda folder: (folder / "2-sft" / "certificate.md").exists(),
}


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.exists() else ""


def latest(output_dir: Path) -> Path:
    return (output_dir / "pipelines" / "index_1p9b_32k" / "latest").resolve()


def wait_for(moment: str, process: processes.Process, output_dir: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not MOMENTS[moment](latest(output_dir)):
        assert process.poll() is None, (moment, process.communicate())
        assert time.monotonic() < deadline, moment
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_at_five_moments_it_ends_as_one_that_was_not(tmp_path: Path) -> None:
    cache = f"cache_dir={tmp_path}/cache"
    whole = processes.finished("recipes.run", *WORDS, cache, f"output_dir={tmp_path}/whole")
    assert whole.returncode == 0, whole.stderr
    for line in ("| before pretrain", "| after pretrain", "| after sft", "exported model", "recipes.chat model="):
        assert line in whole.stdout
    folder = tmp_path / "killed"
    for moment in MOMENTS:
        with processes.started("recipes.run", *WORDS, cache, f"output_dir={folder}") as process:
            wait_for(moment, process, folder)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=60)
        assert json.loads(read(latest(folder) / "pipeline.json"))["status"] == "started"
    again = processes.finished("recipes.run", *WORDS, cache, f"output_dir={folder}")
    assert again.returncode == 0, again.stderr
    assert "stage 1 of 2, pretrain: done before" in again.stderr
    assert results(latest(folder), "1-pretrain", "2-sft") == results(latest(tmp_path / "whole"), "1-pretrain", "2-sft")


@pytest.mark.slow
def test_a_pipeline_killed_alone_leaves_a_stage_that_saves_and_is_gone_on_with(tmp_path: Path) -> None:
    words = [*WORDS, f"cache_dir={tmp_path}/cache", f"output_dir={tmp_path}"]
    with processes.started("recipes.run", *words) as process:
        wait_for("training", process, tmp_path)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
        again = processes.finished("recipes.run", *words)
    assert again.returncode == 0, again.stderr
    assert [path.name for path in latest(tmp_path).glob("1-pretrain*")] == ["1-pretrain"]
    assert "going on with" in again.stdout
