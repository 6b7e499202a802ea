"""`python -m recipes.train` in processes of its own, on a tiny model and a text of a few kilobytes."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_modules.checkpointing import newest_checkpoint, step_of
from tests import processes
from tests.processes import PATIENCE_SECONDS

RECIPE = "demo/base"
MAX_STEPS = 40


def tiny_words(folder: Path, *, dropout: float = 0.2, **trainer: object) -> list[str]:
    """A recipe of seconds whose text and token stores live in `folder`; it has dropout and validates on the way."""
    trainer = {"checkpoint_every_n_steps": 10, "devices": 1, **trainer}
    text = folder / "text.jsonl"
    if not text.exists():
        rng = random.Random(7)
        words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(300)]
        documents = [" ".join(rng.choices(words, k=rng.randint(10, 200))) for _ in range(60)]
        text.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents), encoding="utf-8")
    return [
        f"recipe={RECIPE}",
        "corpus=local",
        f"corpus.sources.documents.path={text}",
        "corpus.mixture={documents: 1.0}",
        f"corpus.validation={{_target_: datamodules.corpora.files.FileCorpus, path: {text}, text_field: text}}",
        f"model.tokenizer.corpus.path={text}",
        "model.tokenizer.vocab_size=300",
        "model.source.settings.vocab_size=300",
        "model.source.settings.hidden_size=32",
        "model.source.settings.intermediate_size=64",
        "model.source.settings.num_hidden_layers=2",
        f"+model.source.settings.attention_dropout={dropout}",
        "optimizer=adamw",
        "optimizer.lr=1.0e-3",
        "optimizer.weight_decay=0.1",
        "context_length=64",
        "data.tokens_per_step=256",
        "data.micro_batch_size=1",
        f"data.max_steps={MAX_STEPS}",
        "data.validation_sequences=2",
        "precision=fp32",
        "lr_schedule.warmup_steps=5",
        "evaluation.lengths=[64]",
        "evaluation.perplexity.tail_tokens=16",
        "trainer.accelerator=cpu",
        "trainer.num_threads=1",
        "trainer.log_every_n_steps=1",
        "trainer.validate_every_n_steps=25",
        *(f"trainer.{key}={value}" for key, value in trainer.items()),
        f"cache_dir={folder / 'cache'}",
    ]


def started(
    words: list[str], output_dir: Path, *, fresh: bool = False, second_rank: bool = True
) -> AbstractContextManager[processes.Process]:
    """Training started in a process group of its own, of which nothing is left at the end."""
    forks = second_rank and "trainer.devices=2" in words
    return processes.started("recipes.train", *words, f"output_dir={output_dir}", fresh=fresh, second_rank=forks)


def train(words: list[str], output_dir: Path, *, fresh: bool = False) -> Path:
    """Train to the end; returns the run's folder, with what was printed beside it in `stdout` and `stderr`."""
    with started(words, output_dir, fresh=fresh) as process:
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, out + err
    run = latest(output_dir)
    (run / "stdout").write_text(out)
    (run / "stderr").write_text(err)
    return run


def stop_after_step(words: list[str], output_dir: Path, step: int, stop: Callable[[int], None]) -> tuple[Path, str]:
    """Train, `stop` the process of this id soon after a checkpoint, and expect a run that says it can go on.

    Returns:
        The run's newest checkpoint, and what was printed on standard error.
    """
    with started(words, output_dir) as process:
        wait_for_step(process, output_dir, step)
        time.sleep(0.05)
        stop(process.pid)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 75, out + err
    assert "Traceback" not in err
    checkpoint = newest(latest(output_dir))
    assert step <= step_of(checkpoint) < MAX_STEPS
    assert f"stopped by SIGTERM after step {step_of(checkpoint)}, which is saved" in err
    assert max(losses(latest(output_dir))) == step_of(checkpoint)
    return checkpoint, err


def latest(output_dir: Path) -> Path:
    return (output_dir / RECIPE / "latest").resolve()


def run_folders(output_dir: Path) -> list[Path]:
    return sorted(path.parent for path in (output_dir / RECIPE).glob("2*/run.json"))


def wait_for_step(process: processes.Process, output_dir: Path, step: int) -> None:
    """Until a checkpoint of at least this step is complete."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        link = output_dir / RECIPE / "latest"
        newest = newest_checkpoint(link / "checkpoints") if link.exists() else None
        if newest is not None and step_of(newest) >= step:
            return
        time.sleep(0.005)
    raise TimeoutError(f"no checkpoint of step {step} in {output_dir}")


def kill_after_step(words: list[str], output_dir: Path, step: int) -> int:
    """Train, kill the whole process group at some moment after a checkpoint; returns the newest checkpoint's step."""
    delay = random.uniform(0.0, 0.12)
    print(f"to be killed {delay:.3f} s after the checkpoint of step {step}")
    with started(words, output_dir) as process:
        wait_for_step(process, output_dir, step)
        time.sleep(delay)
        assert process.poll() is None, "the run was over before it could be killed; give it more steps"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=20)
    reached = step_of(newest(latest(output_dir)))
    assert step <= reached < MAX_STEPS
    return reached


def newest(run: Path) -> Path:
    """The newest complete checkpoint of a run that has one."""
    path = newest_checkpoint(run / "checkpoints")
    assert path is not None
    return path


def losses(run: Path, tag: str = "train/loss") -> dict[int, list[float]]:
    """Step -> the losses written for it, in the order of writing; a step trained again has two."""
    found: dict[int, list[float]] = {}
    files = sorted((run / "tensorboard").glob("events.*"), key=lambda file: file.stat().st_mtime_ns)
    for file in files:
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        for event in events.Scalars(tag) if tag in events.Tags()["scalars"] else []:
            found.setdefault(event.step, []).append(event.value)
    return found


def weights(run: Path) -> dict[str, torch.Tensor]:
    assert step_of(newest(run)) == MAX_STEPS
    return torch.load(newest(run), map_location="cpu", weights_only=True)["state_dict"]
