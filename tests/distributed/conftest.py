"""Two gloo ranks, started once for all tests of this folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from datamodules.tokens.store import locked
from tests.distributed.sampled_steps import LENGTHS_WITH_VALIDATION, conversations
from tests.processes import finished
from tests.resume.recipe_runs import tiny_words

STOP_AT, MAX_STEPS = 4, 8
"""Validation follows steps 3 and 6, checkpoints step 5 and the two."""
ACTIVATIONS = {"recompute": "keep_attention", "offload_to_host": True, "keep_on_device": 1, "mlp_tile_size": 10}


class TwoRanks(NamedTuple):
    """What the two ranks of `worker` return, by the name of the job.

    The jobs are `<strategy>`, that with `_muon`, `_stopped`, `_adapter`, `_gate` and so on, and `rope_by_step`.
    """

    folder: Path
    results: dict[str, dict[str, Any]]
    results_of_second: dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> TwoRanks:
    """Where several processes run tests, the first one starts the ranks, and the others wait for what they found."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "two_ranks"
    with locked(folder.with_suffix(".lock")):
        if not (folder / "finished").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            _start(folder)
            (folder / "finished").touch()
    jobs = json.loads((folder / "jobs.json").read_text(encoding="utf-8"))
    first, second = ({name: _read(folder / f"{name}.{rank}.pt") for name in jobs} for rank in range(2))
    return TwoRanks(folder, first, second)


def _start(folder: Path) -> None:
    jobs: dict[str, dict[str, Any]] = {}
    for strategy, optimizer in (("ddp", "adamw"), ("fsdp", "muon")):
        steps = {"kind": "steps", "ranks": 2, "strategy": strategy, "micro_batches": [1, 1]}
        jobs[strategy] = {**steps, "steps": 2}
        jobs[f"{strategy}_muon"] = {**steps, "steps": 4, "optimizer": "muon"}
        jobs[f"{strategy}_memory"] = {**steps, "steps": 2, "optimizer": "adamw_bf16", "activations": ACTIVATIONS}
        jobs[f"{strategy}_adapter"] = {**steps, "steps": 2, "adapter": ADAPTER}
        jobs[f"{strategy}_adapter_bf16"] = {**jobs[f"{strategy}_adapter"], "bf16": True}
        words = [
            *(word for word in tiny_words(folder, devices=2, progress_bar=False) if _key(word) not in CHANGED),
            f"strategy={strategy}",
            f"optimizer={optimizer}",
            f"data.max_steps={MAX_STEPS}",
            "trainer.validate_every_n_steps=3",
            "trainer.checkpoint_every_n_steps=5",
        ]
        jobs[f"{strategy}_stopped"] = {"kind": "stopped", "words": words, "stop_at": STOP_AT}
        with_adapter = [*(word for word in words if _key(word) != "optimizer"), "optimizer=adamw", "peft=lora_plus"]
        jobs[f"{strategy}_adapter_stopped"] = {"kind": "stopped", "words": with_adapter, "stop_at": STOP_AT}
    for strategy in ("ddp", "fsdp"):
        jobs[f"{strategy}_gate"] = {"kind": "gate", "strategy": strategy}
        jobs[f"{strategy}_conversations"] = {"kind": "conversations", "strategy": strategy}
        for name in LENGTHS_WITH_VALIDATION:  # before two ranks would write the same stores
            conversations(folder / f"{strategy}_conversations").prepare_store(name)
    jobs["fsdp_once_a_step"] = {**jobs["fsdp"], "reduce_gradients": "once_a_step"}
    jobs["rope_by_step"] = {"kind": "rope_by_step"}
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    done = finished("tests.distributed.worker", str(folder), second_rank=True)
    assert done.returncode == 0, done.stderr


ADAPTER = {"r": 2, "target_modules": ["q_proj", "up_proj"]}
CHANGED = {
    "optimizer",
    "data.max_steps",
    "trainer.validate_every_n_steps",
    "trainer.checkpoint_every_n_steps",
}


def _key(word: str) -> str:
    return word.split("=")[0]


def _read(file: Path) -> dict[str, Any]:
    return torch.load(file, weights_only=True)
