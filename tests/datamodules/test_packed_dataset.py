import pickle
from collections import abc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datamodules.augmentations.base import Augmentation, TrainingSequence
from datamodules.batch import IGNORE_INDEX, Batch, shifted_targets
from datamodules.packed_dataset import PackedDataset, Sequence
from datamodules.packing.concat_chunk import ConcatChunk
from datamodules.packing.plan import RunPlan, Segment
from datamodules.step_batches import collate
from datamodules.tokens.store import TokenStore
from tests.datamodules.toy import make_plan, make_store

T = 16
LENGTHS = {"a": [5, 40, 3, 9, 0, 11, 2], "b": [7, 1, 64, 8]}
FIRST = {"a": 0, "b": 1000}


@pytest.fixture
def stores(tmp_path: Path) -> dict[str, TokenStore]:
    return {name: make_store(tmp_path / name, lengths, first=FIRST[name]) for name, lengths in LENGTHS.items()}


def make_data(stores: dict[str, TokenStore], *, num_sequences: int = 40, seed: int = 2, **packing) -> PackedDataset:
    policy = ConcatChunk(max_seqlen=T, **packing)
    lengths = {name: store.lengths for name, store in stores.items()}
    plan = make_plan(lengths, policy, ratios={"a": 0.6, "b": 0.4}, num_rows=num_sequences, seed=seed)
    return PackedDataset(stores, plan=plan, packing=policy, seed=seed)


def assert_equal(row: Sequence, other: Sequence) -> None:
    for name in Sequence._fields[:5]:
        np.testing.assert_array_equal(getattr(row, name), getattr(other, name))


def place_of(token: int) -> tuple[str, int, int]:
    """Source, document and place in it of a token, found by counting."""
    name = "b" if token >= FIRST["b"] else "a"
    rest = token - FIRST[name]
    for document, length in enumerate(LENGTHS[name]):
        if rest < length:
            return name, document, rest
        rest -= length
    raise AssertionError(f"no document holds token {token}")


@pytest.mark.parametrize("document_mask", [False, True])
@pytest.mark.parametrize("reset_positions", [False, True])
def test_mask_and_positions_are_two_keys(stores, document_mask: bool, reset_positions: bool):
    data = make_data(stores, document_mask=document_mask, reset_positions=reset_positions)
    pieces_seen = 0
    for i in range(len(data)):
        row = data[i]
        assert all(values.dtype == np.int64 and values.shape == (T,) for values in row[:5])
        assert row.loss_weights is None
        starts = [t for t, token in enumerate(row.input_ids) if t == 0 or place_of(token)[2] == 0]
        piece = np.searchsorted(starts, np.arange(T), side="right") - 1
        np.testing.assert_array_equal(row.labels, row.input_ids)
        np.testing.assert_array_equal(row.document_ids, piece if document_mask else np.zeros(T))
        restarted = np.arange(T) - np.array(starts)[piece]
        np.testing.assert_array_equal(row.position_ids, restarted if reset_positions else np.arange(T))
        pieces_seen = max(pieces_seen, len(starts))
    assert pieces_seen >= 3


@pytest.mark.parametrize("document_mask", [False, True])
def test_last_token_of_a_document_predicts_the_next_document_only_without_a_mask(stores, document_mask: bool):
    data = make_data(stores, document_mask=document_mask)
    edges = 0
    for i in range(len(data)):
        row = data[i]
        targets = shifted_targets(collate([row]))[0].tolist()
        for t in range(T - 1):
            here, following = place_of(row.input_ids[t]), place_of(row.input_ids[t + 1])
            is_edge = here[1] != following[1]
            edges += is_edge
            assert targets[t] == (IGNORE_INDEX if is_edge and document_mask else row.input_ids[t + 1])
        assert targets[-1] == IGNORE_INDEX
    assert edges > 20


def test_provenance_names_every_token(stores):
    data = make_data(stores)
    for i in range(len(data)):
        segments = data.provenance(i)
        named = [(source, document, place) for source, document, start, end in segments for place in range(start, end)]
        assert data[i].source_ids.tolist() == ["ab".index(source) for source, _, _ in named]
        assert [place_of(token) for token in data[i].input_ids] == named


def test_a_source_of_the_mixture_reads_its_documents_through_before_it_repeats_one(stores):
    data = make_data(stores)
    for source in "ab":
        tokens = np.concatenate([data[i].input_ids for i in range(40) if data.provenance(i)[0].source == source])
        num_tokens = stores[source].num_tokens
        assert len(tokens) > 2 * num_tokens
        for epoch in range(2):
            assert len(set(tokens[epoch * num_tokens : (epoch + 1) * num_tokens])) == num_tokens


def make_row(stores: dict[str, TokenStore], *segments: Segment, augmentation: Augmentation | None = None) -> Sequence:
    """The one row of a plan with the given segments."""
    columns = np.array([["ab".index(source), *rest] for source, *rest in segments]).T
    plan = RunPlan.of(
        ["a", "b"],
        offsets=np.array([0, len(segments)]),
        **dict(zip(("sources", "documents", "starts", "ends"), columns, strict=True)),
    )
    packing = ConcatChunk(T, document_mask=True)
    return PackedDataset(stores, plan=plan, packing=packing, augmentation=augmentation, seed=3)[0]


def test_row_that_its_segments_do_not_fill_is_as_long_as_they_are(stores):
    row = make_row(stores, Segment("a", 1, 4, 10), Segment("b", 0, 0, 5))
    assert row.input_ids.tolist() == row.labels.tolist() == [9, 10, 11, 12, 13, 14, *range(1000, 1005)]
    assert row.document_ids.tolist() == [*[0] * 6, *[1] * 5]
    assert row.position_ids.tolist() == [*range(11)]
    assert row.source_ids.tolist() == [0] * 6 + [1] * 5
    targets = shifted_targets(collate([row]))
    assert targets.tolist() == [[10, 11, 12, 13, 14, IGNORE_INDEX, *range(1001, 1005), IGNORE_INDEX]]


class Shuffled:
    """Puts the pieces of a row in random order, learns nothing of the first, and counts positions in tens."""

    def __call__(
        self, documents: abc.Sequence[np.ndarray], *, max_seqlen: int, generator: np.random.Generator
    ) -> TrainingSequence:
        order = generator.permutation(len(documents))
        tokens = np.concatenate([documents[k] for k in order])
        learned = np.arange(len(tokens)) >= len(documents[order[0]])
        places = np.arange(len(tokens))
        return TrainingSequence(tokens, learned, np.zeros_like(places), 10 * places)


def test_augmentation_makes_the_row_from_its_pieces_with_the_rows_own_generator(stores):
    segments = [Segment("a", 1, 0, 4), Segment("b", 0, 0, 5), Segment("b", 3, 2, 5)]
    row = make_row(stores, *segments, augmentation=Shuffled())
    pieces = [[5, 6, 7, 8], [1000, 1001, 1002, 1003, 1004], [1074, 1075, 1076]]
    order = np.random.default_rng((3, 0)).permutation(3)
    tokens = [token for k in order for token in pieces[k]]
    learned = len(tokens) - len(pieces[order[0]])
    assert row.input_ids.tolist() == tokens
    assert row.labels.tolist() == [IGNORE_INDEX] * (12 - learned) + tokens[12 - learned :]
    assert row.position_ids.tolist() == list(range(0, 120, 10))
    assert row.document_ids.tolist() == [0] * 12
    assert set(row.source_ids.tolist()) == {1}, "the source of most of it"


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12 on fork
def test_rows_are_the_same_from_any_number_of_loader_workers(stores):
    data = make_data(stores, num_sequences=24, document_mask=True)
    batches: list[list[Batch]] = [
        list(DataLoader(data, batch_size=4, collate_fn=collate, num_workers=workers)) for workers in (0, 2)
    ]
    assert [len(found) for found in batches] == [6, 6]
    for ours, theirs in zip(*batches, strict=True):
        for name in ours:
            assert torch.equal(ours[name], theirs[name])


def test_row_is_a_function_of_seed_and_index(stores):
    data = make_data(stores)
    in_order = [data[i] for i in range(len(data))]
    copy: PackedDataset = pickle.loads(pickle.dumps(data))
    for i in np.random.default_rng(0).permutation(len(data)):
        assert_equal(copy[int(i)], in_order[i])
    for i, row in enumerate(make_data(stores, num_sequences=4000)):  # type: ignore[arg-type]
        if i == 40:
            break
        assert_equal(row, in_order[i])
    other = make_data(stores, seed=3)
    assert any((other[i].input_ids != in_order[i].input_ids).any() for i in range(40))


def test_iteration_ends_with_the_run(stores):
    data = make_data(stores, num_sequences=10)
    assert len(list(data)) == len(data) == 10  # type: ignore[call-overload]
