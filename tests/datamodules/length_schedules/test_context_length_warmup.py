"""Rows under a warm-up, against the rows that there are without one."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.batch import IGNORE_INDEX, num_targets, shifted_targets
from datamodules.length_schedules.shapes import constant, stages
from datamodules.packed_dataset import PackedDataset, Sequence
from datamodules.packing.concat_chunk import ConcatChunk
from datamodules.step_batches import collate
from tests.datamodules.length_schedules.runs import make_stores, plan

T, STEPS, PER_STEP = 16, 8, 3
LENGTHS = {"a": [5, 40, 3, 9, 11, 2], "b": [7, 1, 64, 8]}
LENGTH_AT = [2, 2, 4, 4, 8, 8, 16, 16]


def make_data(folder: Path, *, mechanism: str | None, **packing: bool) -> PackedDataset:
    schedule = (
        constant(max_seqlen=T) if mechanism is None else stages(max_seqlen=T, max_steps=STEPS, mechanism=mechanism)
    )
    stores = make_stores(folder / str(mechanism), LENGTHS)
    rows, data = plan(
        schedule,
        stores,
        ConcatChunk(T, **packing),
        ratios={"a": 0.6, "b": 0.4},
        num_steps=STEPS,
        sequences_per_step=PER_STEP,
    )
    assert rows.context_lengths.tolist() == (LENGTH_AT if mechanism else [T] * STEPS)
    return data


@pytest.mark.parametrize("document_mask", [False, True])
@pytest.mark.parametrize("reset_positions", [False, True])
def test_cut_row_is_what_rows_of_that_length_would_be(tmp_path: Path, document_mask: bool, reset_positions: bool):
    options = {"document_mask": document_mask, "reset_positions": reset_positions}
    cut, whole = make_data(tmp_path, mechanism="cut", **options), make_data(tmp_path, mechanism=None, **options)
    for i in range(STEPS * PER_STEP):
        ours, theirs, length = cut[i], whole[i], LENGTH_AT[i // PER_STEP]
        np.testing.assert_array_equal(ours.input_ids, theirs.input_ids)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert all(values.dtype == np.int64 and values.shape == (T,) for values in ours[:5])
        seen: set[int] = set()
        for start in range(0, T, length):
            documents, before = (row.document_ids[start : start + length] for row in (ours, theirs))
            # Within a piece documents are told apart as before, and no piece shares one with an earlier piece.
            np.testing.assert_array_equal(documents[:, None] == documents, before[:, None] == before)
            assert not seen & set(documents.tolist())
            seen |= set(documents.tolist())
            positions = np.arange(length)
            if reset_positions:
                edges = [k for k in range(1, length) if theirs.position_ids[start + k] == 0]
                positions = np.concatenate([np.arange(len(part)) for part in np.split(positions, edges)])
            np.testing.assert_array_equal(ours.position_ids[start : start + length], positions)


def test_cut_takes_the_target_across_each_cut_and_no_other(tmp_path: Path):
    cut, whole = (make_data(tmp_path, mechanism=mechanism, document_mask=True) for mechanism in ("cut", None))
    for i in range(STEPS * PER_STEP):
        ours, theirs = (shifted_targets(collate([data[i]]))[0] for data in (cut, whole))
        is_cut = (torch.arange(T) + 1) % LENGTH_AT[i // PER_STEP] == 0
        assert torch.equal(ours, torch.where(is_cut, IGNORE_INDEX, theirs))


@pytest.mark.parametrize("mechanism", ["cut", "window"])
def test_every_step_has_as_many_tokens(tmp_path: Path, mechanism: str):
    data = make_data(tmp_path, mechanism=mechanism)
    for step in range(STEPS):
        batch = collate([data[i] for i in range(step * PER_STEP, (step + 1) * PER_STEP)])
        assert batch["input_ids"].shape == (PER_STEP, T)
        pieces = T // LENGTH_AT[step] if mechanism == "cut" else 1
        assert num_targets(batch) == PER_STEP * (T - pieces)


def test_window_leaves_rows_as_they_are(tmp_path: Path):
    ours, theirs = (make_data(tmp_path, mechanism=mechanism, document_mask=True) for mechanism in ("window", None))
    for i in range(STEPS * PER_STEP):
        for name in Sequence._fields:
            np.testing.assert_array_equal(getattr(ours[i], name), getattr(theirs[i], name))


def test_row_is_a_function_of_its_number(tmp_path: Path):
    data = make_data(tmp_path, mechanism="cut", document_mask=True)
    in_order = [data[i] for i in range(len(data))]
    copy: PackedDataset = pickle.loads(pickle.dumps(data))  # as loader workers get it
    for i in np.random.default_rng(0).permutation(len(data)):
        for name in Sequence._fields:
            np.testing.assert_array_equal(getattr(copy[int(i)], name), getattr(in_order[i], name))


def test_run_that_ends_short_is_told(tmp_path: Path):
    stores = make_stores(tmp_path, LENGTHS)
    schedule = stages(max_seqlen=T, max_steps=4, stages=[{"length": 4}])
    rows, _ = plan(schedule, stores, ConcatChunk(T), ratios={"a": 1, "b": 1}, num_steps=4, sequences_per_step=1)
    assert rows.notes == ("the run ends at context length 4 of 16",)
