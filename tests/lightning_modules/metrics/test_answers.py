from __future__ import annotations

import math
from collections import defaultdict

import pytest
import torch

from datamodules.batch import PADDING_DOCUMENT
from lightning_modules.metrics.answers import AnswerScores, document_lengths

EDGES = {"00001-00256": (1, 256), "00257-00512": (257, 512), "00513-01024": (513, 1024)}
Answers = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def brute_force(batches: list[Answers]) -> dict[str, float]:
    tokens = []
    for losses, correct, targets, documents in batches:
        for row in range(len(losses)):
            for token in range(losses.shape[1]):
                if targets[row, token]:
                    length = sum(1 for other in documents[row].tolist() if other == documents[row, token])
                    tokens.append((length, float(losses[row, token]), bool(correct[row, token])))
    groups = defaultdict(list)
    for length, loss, right in tokens:
        groups[""].append((loss, right))
        for name, (start, end) in EDGES.items():
            if start <= length <= end:
                groups[f"_of_length/{name}"].append((loss, right))
    result = {}
    for name, members in groups.items():
        result[f"loss{name}"] = math.fsum(loss for loss, _ in members) / len(members)
        result[f"accuracy{name}"] = sum(right for _, right in members) / len(members)
    return result


def random_batch(seed: int, lengths: tuple[int, ...] = (300, 100, 600, 24)) -> Answers:
    generator = torch.Generator().manual_seed(seed)
    documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    documents = torch.stack([documents, documents[torch.randperm(len(documents), generator=generator)]])
    documents[documents == 3] = PADDING_DOCUMENT
    targets = (torch.rand(documents.shape, generator=generator) < 0.1) & (documents != PADDING_DOCUMENT)
    return (
        torch.rand(documents.shape, generator=generator) * 5,
        torch.rand(documents.shape, generator=generator) < 0.7,
        targets,
        documents,
    )


def test_equals_brute_force_also_where_documents_interleave() -> None:
    batches = [random_batch(seed) for seed in range(2)]
    metric = AnswerScores(max_seqlen=1024)
    for batch in batches:
        metric.update(*batch)
    expected = brute_force(batches)
    assert len(expected) == 8
    assert metric.compute() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("length", "bucket"), [(256, "00001-00256"), (257, "00257-00512"), (512, "00257-00512")])
def test_length_of_a_power_of_two_closes_its_bucket(length: int, bucket: str) -> None:
    documents = torch.zeros(1, length, dtype=torch.long)
    everywhere = torch.ones_like(documents, dtype=torch.bool)
    metric = AnswerScores(max_seqlen=512)
    metric.update(torch.full((1, length), 2.0), everywhere, everywhere, documents)
    named = {"loss": 2.0, "accuracy": 1.0, f"loss_of_length/{bucket}": 2.0, f"accuracy_of_length/{bucket}": 1.0}
    assert metric.compute() == named


def test_absent_bucket_is_absent_and_no_label_gives_nothing() -> None:
    losses, correct, targets, documents = random_batch(0)
    metric = AnswerScores(max_seqlen=1024)
    metric.update(losses, correct, torch.zeros_like(targets), documents)
    assert metric.compute() == {}
    metric.update(losses, correct, targets & (documents == 2), documents)
    found = metric.compute()
    assert {*found} == {"loss", "accuracy", "loss_of_length/00513-01024", "accuracy_of_length/00513-01024"}
    assert not any(math.isnan(value) for value in found.values())


def test_lengths_are_those_of_the_row_alone() -> None:
    documents = torch.tensor([[5, 5, 9, 5], [5, 5, PADDING_DOCUMENT, PADDING_DOCUMENT]])
    assert document_lengths(documents).tolist() == [[3, 3, 1, 3], [2, 2, 0, 0]]
    huge = torch.tensor([[2**62, 2**62, -(2**62)]])
    assert document_lengths(huge).tolist() == [[2, 2, 1]]
