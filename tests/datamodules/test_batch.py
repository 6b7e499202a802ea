import numpy as np
import pytest
import torch

from datamodules.batch import IGNORE_INDEX, PADDING_DOCUMENT, Batch, num_targets, shifted_targets

X = IGNORE_INDEX
P = PADDING_DOCUMENT


def make_batch(labels: list[list[int]], document_ids: list[list[int]]) -> Batch:
    ids = torch.tensor(labels)
    return Batch(input_ids=ids, labels=ids, position_ids=ids, document_ids=torch.tensor(document_ids))


@pytest.mark.parametrize(
    ("labels", "document_ids", "targets"),
    [
        ([10, 11, 12, 13], [0, 0, 0, 0], [11, 12, 13, X]),
        ([10, 11, 12, 13], [0, 0, 1, 1], [11, X, 13, X]),
        ([10, 11, 12, 13], [5, 2, 2, 5], [X, 12, X, X]),
        ([10, 11, 12, 13], [0, 1, 0, 1], [X, X, X, X]),
        ([10, 11, 12, 13, 14, 15], [0, 0, 1, 1, 0, 0], [11, X, 13, X, 15, X]),
        ([10, X, 12, X], [0, 0, 0, 0], [X, 12, X, X]),
        ([10, 11, X, X], [0, 0, P, P], [11, X, X, X]),
        ([10], [0], [X]),
    ],
)
def test_target_is_the_next_label_of_the_same_document(labels, document_ids, targets):
    batch = make_batch([labels], [document_ids])
    assert shifted_targets(batch).tolist() == [targets]
    assert num_targets(batch) == sum(target != X for target in targets)


def test_targets_of_random_rows_match_a_loop():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 50, (6, 40))
    labels[rng.random((6, 40)) < 0.2] = X
    documents = rng.integers(0, 3, (6, 40))
    expected = [
        [int(labels[b, t + 1]) if t + 1 < 40 and documents[b, t] == documents[b, t + 1] else X for t in range(40)]
        for b in range(6)
    ]
    batch = make_batch(labels.tolist(), documents.tolist())
    assert shifted_targets(batch).tolist() == expected
    assert batch["labels"].tolist() == labels.tolist(), "labels must not be shifted in place"
