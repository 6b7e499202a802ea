from collections import Counter

import numpy as np
import pytest

from datamodules.evaluation import NeedleGrid, tail_windows, window_ends
from datamodules.tasks.recall import RecallFormat

# Token = its own position in the stream, so that where a window was cut can be read off it.
OFFSETS = np.array([0, 500, 550, 1550, 2050])
STREAM = np.arange(OFFSETS[-1], dtype=np.uint16)
LENGTHS = (64, 128, 256)


class ByteTokenizer:
    """One token a byte, from 10000 on: never a token of the haystack, and invertible."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [10_000 + byte for byte in text.encode()]


def read(ids) -> str:
    return bytes(int(i) - 10_000 for i in ids if i >= 10_000).decode()


def make_grid(**changes) -> NeedleGrid:
    options = {
        "tokenizer": ByteTokenizer(),
        "haystack_tokens": STREAM,
        "haystack_offsets": OFFSETS,
        "lengths": LENGTHS,
        "depths": (0.0, 0.3, 1.0),
        "num_samples": 5,
        "seed": 3,
    }
    return NeedleGrid(**(options | changes))


def test_windows_of_all_lengths_end_in_the_same_tail():
    windows = tail_windows(STREAM, OFFSETS, lengths=LENGTHS, num_windows=12, tail_tokens=32, seed=0)
    assert {length: (rows.shape, rows.dtype.name) for length, rows in windows.items()} == {
        length: ((12, length), "int64") for length in LENGTHS
    }
    for length in LENGTHS:
        np.testing.assert_array_equal(windows[length], windows[256][:, -length:])
        np.testing.assert_array_equal(np.diff(windows[length], axis=1), 1)


def test_windows_stay_inside_one_document_and_spread_evenly_over_the_long_ones():
    rows = tail_windows(STREAM, OFFSETS, lengths=LENGTHS, num_windows=12, tail_tokens=32, seed=0)[256]
    documents = np.searchsorted(OFFSETS, rows, side="right") - 1
    assert (documents == documents[:, :1]).all()
    assert Counter(documents[:, 0].tolist()) == {0: 4, 2: 4, 3: 4}
    last = np.sort(rows[documents[:, 0] == 2, -1])  # one in each quarter of the 745 places
    assert ((last - (550 + 255)) // (745 / 4)).astype(int).tolist() == [0, 1, 2, 3]


def test_a_document_of_exactly_the_longest_length_gives_its_one_window():
    windows = tail_windows(STREAM[:128], np.array([0, 128]), lengths=[64, 128], num_windows=1, tail_tokens=8, seed=0)
    np.testing.assert_array_equal(windows[128][0], STREAM[:128])
    ends = window_ends(np.array([0, 128, 300]), max_length=128, num_windows=5, seed=0)
    assert 128 in ends
    assert len(set(ends)) == 5, "the short document's only window came twice"


def test_too_short_documents_are_a_value_error_that_names_what_to_change():
    with pytest.raises(ValueError, match=r"hold 0 \(the longest has 1000 tokens\); lower the evaluation's lengths"):
        tail_windows(STREAM, OFFSETS, lengths=[64, 1001], num_windows=1, tail_tokens=8, seed=0)
    with pytest.raises(ValueError, match="hold 1 "):
        tail_windows(STREAM, OFFSETS, lengths=[64, 1000], num_windows=2, tail_tokens=8, seed=0)
    with pytest.raises(ValueError, match="lower tail_tokens"):
        tail_windows(STREAM, OFFSETS, lengths=[64], num_windows=2, tail_tokens=64, seed=0)


def test_windows_follow_the_seed():
    first, again, other = (window_ends(OFFSETS, max_length=256, num_windows=9, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_row_is_haystack_with_the_needle_verbatim_then_question_and_answer():
    grid = make_grid()
    for length in LENGTHS:
        for depth in grid.depths:
            rows, answers = grid.rows(length, depth)
            assert rows.shape == (5, length)
            assert rows.dtype == answers.dtype == np.int64
            for sample, (row, answer) in enumerate(zip(rows, answers, strict=True)):
                key, value = grid.fact(depth, sample)
                assert key != value
                assert read(row) == f"\nThe pair is {key} {value}.\nThe pair is {key} {value}"
                assert read(answer) == f" {value}"
                np.testing.assert_array_equal(row[-len(answer) :], answer)
                text = row[row < 10_000]
                np.testing.assert_array_equal(np.diff(text), 1)  # a slice of the stream,
                assert len(set(np.searchsorted(OFFSETS, text, side="right"))) <= 1  # of one document


def test_the_needle_stands_at_its_depth():
    grid = make_grid(depths=(0.0, 0.25, 0.5, 1.0))
    for depth in grid.depths:
        for row in grid.rows(256, depth).input_ids:
            filler = int((row < 10_000).sum())
            place = int(np.flatnonzero(row >= 10_000)[0])
            assert place == round(depth * filler)
    assert grid.rows(256, 0.0).input_ids[0, 0] >= 10_000
    at_end = grid.rows(256, 1.0).input_ids[0]
    assert (np.diff(np.flatnonzero(at_end >= 10_000)) == 1).all(), "something stands between needle and question"


def test_lengths_share_facts_and_the_end_of_the_text():
    grid = make_grid()
    for short, long in zip(grid.rows(128, 0.3).input_ids, grid.rows(256, 0.3).input_ids, strict=True):
        assert read(short) == read(long)
        text = short[short < 10_000]
        np.testing.assert_array_equal(text, long[long < 10_000][-len(text) :])


def test_cells_are_the_same_on_every_call_and_in_every_grid():
    np.testing.assert_array_equal(make_grid().rows(128, 0.3).input_ids, make_grid().rows(128, 0.3).input_ids)
    alone = make_grid(depths=(0.3,)).rows(128, 0.3)
    np.testing.assert_array_equal(alone.input_ids, make_grid().rows(128, 0.3).input_ids)
    assert make_grid(seed=4).fact(0.3, 0) != make_grid().fact(0.3, 0)
    facts = {make_grid().fact(depth, sample) for depth in (0.0, 0.3, 1.0) for sample in range(5)}
    assert len(facts) == 15


def test_answers_all_have_the_most_common_number_of_tokens():
    from datamodules.tasks.recall import load_words

    grid = make_grid()
    common, _ = Counter(map(len, load_words())).most_common(1)[0]
    assert grid.answer_tokens == common + 1
    assert {len(word) for word in grid.words} == {common}


def test_another_wording_is_used_throughout():
    wording = RecallFormat(statement=" {key}={value};", question=" {key}=", answer="{value}")
    grid = make_grid(format=wording)
    key, value = grid.fact(0.0, 0)
    assert read(grid.rows(64, 0.0).input_ids[0]) == f" {key}={value}; {key}={value}"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"lengths": (32, 128)}, "length=32 has no room"),
        ({"depths": (0.5, 50)}, "within 0..1"),
        ({"lengths": (128, 1001)}, "lower the evaluation's lengths"),
        ({"num_samples": 0}, "0 windows"),
    ],
)
def test_impossible_grids_are_refused_when_built(change, told):
    with pytest.raises(ValueError, match=told):
        make_grid(**change)
