"""Two ranks with unequal shares of a step's conversations have the gradient of one process, and neither waits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from datamodules.batch import IGNORE_INDEX
from tests.datamodules.test_supervised_finetuning import LENGTHS, one_by_one, samples_of_step
from tests.distributed.conftest import TwoRanks
from tests.distributed.sampled_steps import conversations, sampled_steps
from tests.distributed.test_step_gradient import assert_same_gradient
from tests.lightning_modules.tiny_models import tiny_model


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_steps_that_do_not_divide_over_the_ranks(strategy: str, two_ranks: TwoRanks) -> None:
    folder = two_ranks.folder / f"{strategy}_conversations"
    first, second = (results[folder.name] for results in (two_ranks.results, two_ranks.results_of_second))
    assert (first["rows"], second["rows"]) == ([3, 3, 1], [3, 3, 1])
    data = conversations(folder)
    data.prepare_data()
    data.setup()
    samples = [samples_of_step(data, step) for step in range(3)]
    assert [len(own) for own in samples] == [5, 5, 1]
    held = [sum(LENGTHS[source][document] for source, document in own) for own in samples]
    assert [a + b for a, b in zip(first["tokens"], second["tokens"], strict=True)] == held
    assert 0 in (first["tokens"][2], second["tokens"][2])
    for step, own in enumerate(samples):
        expected = one_by_one(data, own, "sqrt")
        for found in (first, second):
            assert_same_gradient(found["gradients"][step], expected)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_validation_of_fewer_rows_than_ranks(strategy: str, two_ranks: TwoRanks) -> None:
    folder = two_ranks.folder / f"{strategy}_conversations"
    store = conversations(folder).prepare_store("validation")
    ids = torch.from_numpy(store.slice(0, 0, store.num_tokens))
    labels = torch.where(torch.from_numpy(store.mask_slice(0, 0, len(ids))), ids, IGNORE_INDEX)
    with torch.no_grad():
        logits = tiny_model("llama", attention="sdpa")(input_ids=ids[None]).logits[0, :-1]
    expected = float(F.cross_entropy(logits, labels[1:], ignore_index=IGNORE_INDEX))
    for results in (two_ranks.results, two_ranks.results_of_second):
        assert results[folder.name]["val_loss"] == pytest.approx(expected, rel=1e-5)


def test_one_process_computes_the_same(tmp_path: Path, two_ranks: TwoRanks) -> None:
    alone = sampled_steps(tmp_path)
    assert alone["rows"] == [5, 5, 1]
    for step, expected in enumerate(alone["gradients"]):
        assert_same_gradient(two_ranks.results["ddp_conversations"]["gradients"][step], expected)
