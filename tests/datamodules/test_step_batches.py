from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.batch import IGNORE_INDEX, PADDING_DOCUMENT, num_targets
from datamodules.packed_dataset import PackedDataset, Sequence
from datamodules.packing.concat_chunk import ConcatChunk
from datamodules.step_batches import RankRows, StepSampler, collate, step_collator
from tests.datamodules.toy import make_plan, make_store


def make_sampler(
    *, rank: int = 0, world_size: int = 1, consumed: int = 0, num_steps: int = 6, sequences_per_step: int = 8
) -> StepSampler:
    return StepSampler(
        num_steps=num_steps,
        sequences_per_step=sequences_per_step,
        consumed=lambda: consumed,
        rank=rank,
        world_size=world_size,
    )


def make_row(number: int) -> Sequence:
    return Sequence(*(np.arange(4) + 100 * number + 10_000 * field for field in range(5)))


def make_data(folder: Path, num_sequences: int) -> PackedDataset:
    stores = {"a": make_store(folder, [50, 30, 20])}
    plan = make_plan({"a": stores["a"].lengths}, ConcatChunk(8), num_rows=num_sequences)
    return PackedDataset(stores, plan=plan, packing=ConcatChunk(8))


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_each_step_is_the_same_stretch_of_the_global_order_for_any_number_of_ranks(world_size: int):
    ranks = [list(make_sampler(rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert all(len(steps) == 6 for steps in ranks)
    for step in range(6):
        shares = [steps[step] for steps in ranks]
        assert {len(share) for share in shares} == {8 // world_size}
        assert sorted(i for share in shares for i in share) == list(range(8 * step, 8 * step + 8))
        assert all(share == sorted(share) for share in shares)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("step", [0, 1, 5, 6])
def test_resumed_run_continues_with_the_next_sequence_even_on_other_ranks(step: int, world_size: int):
    whole = list(make_sampler())
    resumed = [list(make_sampler(rank=r, world_size=world_size, consumed=8 * step)) for r in range(world_size)]
    merged = [sorted(i for share in shares for i in share) for shares in zip(*resumed, strict=True)]
    assert merged == whole[step:]


def test_consumed_is_read_when_iteration_begins():
    consumed = 0
    sampler = StepSampler(num_steps=3, sequences_per_step=2, consumed=lambda: consumed)
    consumed = 4
    assert list(sampler) == [[4, 5]]
    assert len(sampler) == 3


def test_sequences_that_do_not_divide_over_the_ranks_are_refused():
    with pytest.raises(ValueError, match=r"8 sequences per step do not divide over 3 ranks; set data\.tokens_per_step"):
        make_sampler(world_size=3)


@pytest.mark.parametrize(("micro_batch_size", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (8, [5])])
def test_step_is_cut_into_micro_batches_the_last_one_may_be_smaller(micro_batch_size: int, sizes: list[int]):
    rows = [make_row(number) for number in range(5)]
    batches = step_collator(micro_batch_size)(rows)
    assert [len(batch["input_ids"]) for batch in batches] == sizes
    for name in batches[0]:
        stacked = torch.cat([batch[name] for batch in batches])  # type: ignore[literal-required]
        np.testing.assert_array_equal(stacked.numpy(), np.stack([getattr(row, name) for row in rows]))


def test_collated_batch_carries_the_fields_of_the_contract():
    batch = collate([make_row(0), make_row(1)])
    assert list(batch) == ["input_ids", "labels", "position_ids", "document_ids", "source_ids"]
    assert all(isinstance(values, torch.Tensor) and values.shape == (2, 4) for values in batch.values())


@pytest.mark.parametrize("num_rows", [1, 2, 5, 8, 9])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_rank_has_as_many_rows_and_together_they_score_each_token_once(
    tmp_path: Path, num_rows: int, world_size: int
):
    data = make_data(tmp_path / "s", num_rows)
    ranks = [list(RankRows(data, rank=r, world_size=world_size)) for r in range(world_size)]  # type: ignore[arg-type]
    assert {len(rows) for rows in ranks} == {-(-num_rows // world_size)}
    assert all(row.input_ids.shape == (8,) for rows in ranks for row in rows)
    real = [row for rows in ranks for row in rows if num_targets(collate([row]))]
    assert sorted(tuple(row.labels) for row in real) == sorted(tuple(data[i].labels) for i in range(num_rows))


def test_shorter_rows_are_padded_to_the_longest():
    rows = [make_row(0), Sequence(*(values[:2] for values in make_row(1)[:5]))]
    batch = collate(rows)
    assert batch["input_ids"].tolist() == [[0, 1, 2, 3], [100, 101, 0, 0]]
    assert batch["labels"].tolist()[1] == [10_100, 10_101, IGNORE_INDEX, IGNORE_INDEX]
    assert batch["position_ids"].tolist()[1] == [20_100, 20_101, 0, 1]
    assert batch["document_ids"].tolist()[1] == [30_100, 30_101, PADDING_DOCUMENT, PADDING_DOCUMENT]
    assert num_targets(collate([rows[1]])) == num_targets(collate([rows[1]], max_seqlen=100)) == 0


@pytest.mark.parametrize(
    ("longest", "max_seqlen", "padded"), [(4, 100, 64), (65, 100, 100), (64, 200, 64), (4, 16, 16)]
)
def test_batch_is_padded_to_a_multiple_of_64_and_never_beyond_a_row(longest: int, max_seqlen: int, padded: int):
    row = Sequence(*(np.arange(longest) for _ in range(5)))
    assert collate([row], max_seqlen=max_seqlen)["input_ids"].shape == (1, padded)
