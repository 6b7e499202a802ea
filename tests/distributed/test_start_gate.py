"""The start gate on two ranks: nothing changes where all is well, and all ranks refuse what one of them finds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.resume.recipe_runs import tiny_words

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found; one start for both strategies."""
    folder = tmp_path_factory.mktemp("gate")
    command = [sys.executable, "-m", "tests.distributed.gate_worker", json.dumps({"folder": str(folder)})]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_weights_are_bit_identical_with_and_without_it(strategy: str, ranks: list[dict[str, Any]]) -> None:
    without, with_gate = ranks[0][f"{strategy} without"], ranks[0][f"{strategy} with"]
    assert len(without) == 21
    for name, weight in without.items():
        assert torch.equal(with_gate[name], weight)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_what_one_rank_finds_all_refuse_with_the_same_words(strategy: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (found[f"{strategy} refusal"] for found in ranks)
    assert first == second
    assert first.startswith("training is refused before its first step: documents of a row see one another")


def test_a_recipe_on_two_ranks_is_refused_in_one_sentence_with_status_2(tmp_path: Path) -> None:
    """A further rank that left with 2 would have the first one killed before it could say why."""
    words = [*tiny_words(tmp_path, devices=2), "strategy=ddp", f"output_dir={tmp_path / 'outputs'}"]
    words += ["packing.document_mask=true", "packing.reset_positions=true"]
    command = [sys.executable, "-m", "tests.distributed.refused_run", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "training is refused before its first step: documents of a row see one another" in errors[0]
    assert "Traceback" not in done.stderr
