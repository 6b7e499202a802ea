import os
import time

import numpy as np
import pytest

from datamodules.packing.best_fit import best_fit
from recipes.benchmarking import packing, peer_packers
from recipes.benchmarking.length_profile import length_profile
from recipes.benchmarking.packing import PACKERS, measure, packing_table, plan_cost, plan_cost_apart, row_tokens
from recipes.benchmarking.table import markdown_table

SIZES, CAPACITIES = (500, 4_000), (4_096, 65_536)


@pytest.fixture(scope="module")
def table() -> str:
    smaller = [p._replace(most_documents=1_000) if "LLaMA" in p.name else p for p in PACKERS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "MOST_RUNS", 1)
        patch.setattr(packing, "PACKERS", smaller)
        patch.setattr(packing, "plan_cost_apart", lambda number, cache=None, **how: plan_cost(number, **how))
        return packing_table(num_documents=SIZES, capacities=CAPACITIES, plan_documents=2_000, balance_documents=30_000)


def cells(table: str, name: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if f"| {name}" in line]


def test_lengths_have_the_stated_profile():
    lengths = length_profile(300_000)
    short, long = np.exp(6.8), np.exp(9.4)
    assert np.mean(lengths) == pytest.approx(0.7 * short * np.exp(0.405) + 0.3 * long * np.exp(0.405), rel=0.01)
    # half of the short and nearly none of the long documents lie below the median of the short ones, and so on
    assert np.mean(lengths < short) == pytest.approx(0.35, abs=0.005)
    assert np.mean(lengths > long) == pytest.approx(0.15, abs=0.005)
    assert lengths.min() >= 16
    assert length_profile(1000, longest=4096).max() == 4096
    np.testing.assert_array_equal(length_profile(10), length_profile(100_000)[:10])
    assert (length_profile(10, seed=1) != length_profile(10)).any()


def test_peers_that_search_by_best_fit_fill_rows_as_we_do():
    lengths = length_profile(3_000, longest=8_192)
    bins = best_fit(lengths, capacity=8_192)
    ours = np.sort(np.bincount(bins.bin_of, lengths))
    np.testing.assert_array_equal(np.sort(row_tokens(lengths, peer_packers.trl(lengths, 8_192))), ours)
    knapsack = row_tokens(lengths, peer_packers.llama_factory(lengths, 8_192))
    assert len(knapsack) == len(ours)


def test_fit_of_each_peer_on_an_example_by_hand():
    lengths = np.array([4, 7, 3, 6, 2, 5, 1], np.int32)

    def sizes(bins: list[list[int]]) -> list[list[int]]:
        return [lengths[documents].tolist() for documents in bins]

    assert sizes(peer_packers.trl(lengths, 10)) == [[7, 3], [6, 4], [5, 2, 1]]
    assert sizes(peer_packers.llama_factory(lengths, 10)) == [[7, 3], [6, 4], [5, 2, 1]]
    assert sizes(peer_packers.axolotl(lengths, 10)) == [[4, 3, 2, 1], [7], [6], [5]]
    assert sizes(peer_packers.next_fit(lengths, 10)) == [[4], [7, 3], [6, 2], [5, 1]]
    assert peer_packers.next_fit(lengths[:0], 10) == []


def test_axolotl_opens_a_bin_for_the_201st_document():
    sizes = [len(documents) for documents in peer_packers.axolotl(np.ones(450, np.int32), 1000)]
    assert sizes == [200, 200, 50]


def test_table_has_every_packer_at_every_size_and_says_what_was_not_run(table: str):
    assert len(PACKERS) == 5
    for packer in PACKERS:
        rows = cells(table, packer.name)
        assert [row[1] for row in rows] == ["500", "4,000"]
        assert all(len(row) == 8 for row in rows)
    (small, large) = cells(table, "LLaMA-Factory")
    assert "not run" not in small
    assert large[2] == large[5] == "not run"
    assert "being quadratic" in table


def test_fills_of_the_table_are_those_of_the_rows(table: str):
    for name, pack in (("ours", lambda n, c: best_fit(n, capacity=c).num_bins), ("torchtune", None)):
        for row, number in zip(cells(table, name), SIZES, strict=True):
            for column, capacity in zip((2, 5), CAPACITIES, strict=True):
                lengths = length_profile(number, longest=capacity)
                num_tokens = int(lengths.sum(dtype=np.int64))
                num_rows = pack(lengths, capacity) if pack else len(peer_packers.next_fit(lengths, capacity))
                assert row[column + 1] == f"{num_tokens / num_rows / capacity:.5f}"
                assert row[column + 2] == f"+{num_rows + -num_tokens // capacity}"
                assert int(row[column].replace(",", "")) > 0


def test_table_has_the_plan_and_the_balance(table: str):
    kinds = ["sequence", "document"]
    for name in ("concat_chunk", "best_fit", "padded", "length_buckets"):
        rows = cells(table, name)
        assert [row[1:4] for row in rows] == [[kind, str(row), "2,000"] for row in CAPACITIES for kind in kinds]
        for row in rows:
            assert int(row[4].replace(",", "")) >= 2_000, "pieces"
            assert 0 < float(row[6]) <= 1, "fill"
            assert 0 <= float(row[8]) < float(row[9]), "what was there before is not counted"
    assert [row[1] for row in cells(table, "8 ranks")] == ["1", "2", "4", "8"]
    assert [row[1] for row in cells(table, "32 ranks")] == ["1", "2", "4", "8"]
    for row in cells(table, "8 ranks") + cells(table, "32 ranks"):
        in_turn, by_cost, windows, *_ = (float(value) for value in row[2:])
        assert 1 <= by_cost <= in_turn
        assert 1 <= windows <= in_turn
    assert "to compile" in table


def test_packer_that_loses_or_overfills_is_not_measured():
    lengths = np.array([5, 5, 5], np.int32)
    for bins in ([[0, 1]], [[0, 1], [1, 2]], [[0, 1, 2]]):
        packer = PACKERS[0]._replace(pack=lambda *_, bins=bins: bins)
        with pytest.raises(AssertionError):
            measure(packer, lengths, capacity=10)


def test_peak_of_a_child_is_its_own():
    ballast = np.ones(600 << 20, np.uint8)  # this process is larger than the child will be
    cost = plan_cost_apart(1_000, packing="best_fit", mix_at="document", capacity=1_024)
    assert 20 < cost.peak_mib < 500 < ballast.nbytes / (1 << 20)
    assert 0 < cost.above_start_mib < cost.peak_mib / 2
    assert cost.fill <= 1
    assert cost.num_pieces > 1_000


@pytest.mark.parametrize(
    ("packing", "mix_at"),
    [("concat_chunk", "document"), ("best_fit", "document"), ("best_fit", "sequence"), ("length_buckets", "sequence")],
)
def test_plan_of_a_million_documents_takes_a_tenth_of_what_ten_million_may(packing: str, mix_at: str):
    """Ten million documents may take 10 s and 1 GiB; what the interpreter and its libraries take is not a tenth too."""
    cost = plan_cost_apart(1_000_000, packing=packing, mix_at=mix_at, capacity=32_768)
    assert cost.seconds < 1, f"{os.cpu_count()} cores"
    assert cost.above_start_mib < 1024 / 10 + 20, "20 MiB for the blocks, which do not grow with the documents"


def test_hundred_thousand_documents_take_a_tenth_of_a_second_at_most():
    lengths = length_profile(100_000, longest=131_072)
    best_fit(lengths[:2], capacity=131_072)
    begun = time.process_time()
    best_fit(lengths, capacity=131_072)
    assert time.process_time() - begun < 0.1, f"{os.cpu_count()} cores"  # 2 ms where this was written


def test_markdown_table_is_aligned():
    assert markdown_table(["a", "bb"], [["long", "1"]]) == "| a    | bb |\n|:-----|---:|\n| long |  1 |\n"
