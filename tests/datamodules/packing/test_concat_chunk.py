import pickle
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from datamodules.packing.concat_chunk import ConcatChunk, ConcatChunkPlan
from datamodules.packing.plan import Segment

# (document lengths, max_seqlen)
CASES = {
    "ordinary": ([7, 3, 12, 1, 9, 30, 2], 8),
    "with_empty_documents": ([0, 5, 0, 0, 3, 0, 11, 0], 4),
    "first_and_last_empty": ([0, 9, 0], 3),
    "documents_longer_than_many_rows": ([100, 1, 57], 5),
    "one_document": ([10], 4),
    "one_document_of_exactly_a_row": ([4], 4),
    "epoch_shorter_than_a_row": ([1, 2, 0, 1], 15),
    "single_tokens": ([1] * 23, 7),
    "rows_of_one_token": ([3, 2, 4], 1),
    "many": (np.random.default_rng(0).integers(0, 50, 200).tolist(), 64),
}


def make_plan(case: str, seed: int = 3) -> ConcatChunkPlan:
    lengths, max_seqlen = CASES[case]
    return ConcatChunk(max_seqlen=max_seqlen).plan(lengths=np.array(lengths), seed=seed)


def tokens_of(segments: list[Segment]) -> list[tuple[int, int]]:
    return [(document, place) for document, start, end in segments for place in range(start, end)]


def brute_force(case: str, num_sequences: int, seed: int = 3) -> list[list[tuple[int, int]]]:
    """Every epoch's permuted documents written out token by token, (document, place), and cut every max_seqlen."""
    lengths, max_seqlen = CASES[case]
    stream: list[tuple[int, int]] = []
    epoch = 0
    while len(stream) < num_sequences * max_seqlen:
        for document in np.random.default_rng((seed, epoch)).permutation(len(lengths)):
            stream += [(int(document), place) for place in range(lengths[document])]
        epoch += 1
    return [stream[i * max_seqlen : (i + 1) * max_seqlen] for i in range(num_sequences)]


def num_sequences_of(case: str, epochs: int) -> int:
    lengths, max_seqlen = CASES[case]
    return max(epochs * sum(lengths) // max_seqlen, 3)


@pytest.mark.parametrize("case", CASES)
def test_sequences_equal_the_permuted_stream_cut_every_row_over_epochs(case: str):
    plan, count = make_plan(case), num_sequences_of(case, epochs=4)
    assert [tokens_of(plan.segments(i)) for i in range(count)] == brute_force(case, count)


@pytest.mark.parametrize("case", CASES)
def test_every_token_comes_once_an_epoch_and_none_is_dropped(case: str):
    lengths, max_seqlen = CASES[case]
    plan, num_tokens = make_plan(case), sum(lengths)
    rows = [tokens_of(plan.segments(i)) for i in range(-(-3 * num_tokens // max_seqlen))]
    assert all(len(row) == max_seqlen for row in rows)
    stream = [token for row in rows for token in row]
    every_token = {(document, place) for document, length in enumerate(lengths) for place in range(length)}
    for epoch in range(3):
        counts = Counter(stream[epoch * num_tokens : (epoch + 1) * num_tokens])
        assert set(counts) == every_token
        assert set(counts.values()) == {1}


@pytest.mark.parametrize("case", CASES)
def test_segments_are_a_function_of_the_index(case: str):
    count = num_sequences_of(case, epochs=5)
    plan = make_plan(case)
    in_order = [plan.segments(i) for i in range(count)]
    used = pickle.loads(pickle.dumps(plan))
    for i in np.random.default_rng(1).permutation(count):
        assert used.segments(int(i)) == make_plan(case).segments(int(i)) == in_order[i]


@pytest.mark.parametrize("case", CASES)
def test_no_segment_is_empty_and_neighbours_do_not_continue_one_another(case: str):
    plan = make_plan(case)
    for i in range(num_sequences_of(case, epochs=2)):
        segments = plan.segments(i)
        assert all(segment.start < segment.end for segment in segments)
        for before, after in pairwise(segments):
            assert after.start == 0, "only the first piece of a row may begin inside a document"
            assert before.end == CASES[case][0][before.document], "only the last piece may end inside one"


def test_order_changes_with_epoch_and_seed():
    lengths = np.full(100, 4)
    orders = []
    for seed in (0, 1):
        plan = ConcatChunk(max_seqlen=4).plan(lengths=lengths, seed=seed)
        orders += [tuple(plan.segments(epoch * 100 + i)[0].document for i in range(100)) for epoch in range(3)]
    assert len(set(orders)) == 6
    assert all(sorted(order) == list(range(100)) for order in orders)


def test_index_beyond_32_bits_of_tokens_is_exact():
    lengths = np.array([3_000_000_000, 1])
    plan = ConcatChunk(max_seqlen=1 << 20).plan(lengths=lengths, seed=0)
    segments = plan.segments(40_000)
    assert sum(end - start for _, start, end in segments) == 1 << 20
    assert all(0 <= start < end <= lengths[document] for document, start, end in segments)


@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_nothing_to_pack_is_an_error(lengths: list[int]):
    with pytest.raises(ValueError, match=r"no tokens to pack; check corpus\.sources"):
        ConcatChunk(max_seqlen=8).plan(lengths=np.array(lengths, dtype=np.int64), seed=0)
