"""The start gate on two ranks: nothing changes where all is well, and all ranks refuse what one of them finds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed.conftest import TwoRanks
from tests.processes import finished
from tests.resume.recipe_runs import tiny_words


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_weights_are_bit_identical_with_and_without_it(strategy: str, two_ranks: TwoRanks) -> None:
    found = two_ranks.results[f"{strategy}_gate"]
    assert len(found["without"]) == 21
    for name, weight in found["without"].items():
        assert torch.equal(found["with"][name], weight)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_what_one_rank_finds_all_refuse_with_the_same_words(strategy: str, two_ranks: TwoRanks) -> None:
    job = f"{strategy}_gate"
    first, second = (results[job]["refusal"] for results in (two_ranks.results, two_ranks.results_of_second))
    assert first == second
    assert first.startswith("training is refused before its first step: documents of a row see one another")


def test_a_recipe_on_two_ranks_is_refused_in_one_sentence_with_status_2(tmp_path: Path) -> None:
    """A further rank that left with 2 would have the first one killed before it could say why."""
    words = [*tiny_words(tmp_path, devices=2), "strategy=ddp", f"output_dir={tmp_path / 'outputs'}"]
    words += ["packing.document_mask=true", "packing.reset_positions=true"]
    done = finished("tests.distributed.refused_run", *words, second_rank=True)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "training is refused before its first step: documents of a row see one another" in errors[0]
    assert "Traceback" not in done.stderr
