"""Two gloo ranks, started once for all tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.processes import PATIENCE_SECONDS, started
from tests.resume.recipe_runs import tiny_words

STOP_AT, MAX_STEPS = 7, 12


class TwoRanks(NamedTuple):
    folder: Path
    results: dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> TwoRanks:
    """What the ranks of `worker` return: `<strategy>`, `<strategy>_muon` and `<strategy>_stopped`."""
    folder = tmp_path_factory.mktemp("two_ranks")
    jobs: dict[str, dict[str, Any]] = {}
    for strategy, optimizer in (("ddp", "adamw"), ("fsdp", "muon")):
        steps = {"kind": "steps", "ranks": 2, "strategy": strategy, "micro_batches": [1, 1]}
        jobs[strategy] = {**steps, "steps": 2}
        jobs[f"{strategy}_muon"] = {**steps, "steps": 4, "optimizer": "muon"}
        words = [
            *(word for word in tiny_words(folder, devices=2, progress_bar=False) if _key(word) not in CHANGED),
            f"strategy={strategy}",
            f"optimizer={optimizer}",
            f"data.max_steps={MAX_STEPS}",
            "trainer.validate_every_n_steps=5",
        ]
        jobs[f"{strategy}_stopped"] = {"kind": "stopped", "words": words, "stop_at": STOP_AT}
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    with started("tests.distributed.worker", str(folder)) as process:
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, err
    return TwoRanks(folder, {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in jobs})


CHANGED = {"optimizer", "data.max_steps", "trainer.validate_every_n_steps"}


def _key(word: str) -> str:
    return word.split("=")[0]
