import pickle
from collections import Counter
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest

from datamodules.ledger import ledger, ledger_table
from datamodules.mixture import Mixture, Phase
from datamodules.packing import run
from datamodules.packing.best_fit import best_fit
from datamodules.packing.best_fit_packing import WINDOW_ROWS, BestFitPacking, window_edges
from datamodules.packing.concat_chunk import ConcatChunk
from datamodules.packing.length_buckets import LengthBuckets
from datamodules.packing.padded import Padded
from datamodules.packing.plan import ARRAYS, Packing, RunPlan
from datamodules.packing.run import RunRequest, plan_run
from datamodules.packing.stream import DocumentStream, Sampling
from tests.datamodules.toy import make_plan

L = 64
RNG = np.random.default_rng(0)
LENGTHS = {"short": RNG.integers(1, 12, 4000), "long": RNG.integers(100, 1200, 60)}  # means differ 100 times
PACKINGS = [ConcatChunk(L), BestFitPacking(L), Padded(L), LengthBuckets(L, rows_per_group=4)]


def name_of(packing: Packing) -> str:
    return type(packing).__name__


def tokens_by_source(plan: RunPlan) -> np.ndarray:
    return np.bincount(plan.sources, weights=plan.lengths, minlength=len(plan.names))


@pytest.mark.parametrize("mix_at", ["sequence", "document"])
@pytest.mark.parametrize("packing", PACKINGS, ids=name_of)
@pytest.mark.parametrize("ratios", [{"short": 0.5, "long": 0.5}, {"short": 0.9, "long": 0.1}, {"short": 1, "long": 99}])
def test_share_of_the_tokens_after_packing_is_the_ratio(mix_at: str, packing: Packing, ratios: dict[str, float]):
    """Within 0.5 % over a run of 1,000 rows; rows that are not full weigh what they hold."""
    plan = make_plan(LENGTHS, packing, ratios=ratios, num_rows=1000, mix_at=mix_at, seed=2)
    assert len(plan) == 1000
    shares = tokens_by_source(plan) / plan.lengths.sum()
    wanted = np.array(list(ratios.values())) / sum(ratios.values())
    assert np.abs(shares - wanted).max() < 0.005


@pytest.mark.parametrize("num_rows", [1000, 1029, 1500, 3000])
@pytest.mark.parametrize("seed", range(3))
def test_shares_of_documents_hold_where_best_fit_leaves_rows_of_one_source_half_empty(num_rows: int, seed: int):
    """Of 40 and 60 tokens no two fit into a row of 64: whatever is left out at the run's end is of the shorter."""
    lengths = {"a": [40] * 9000, "b": [60] * 9000}
    plan = make_plan(lengths, BestFitPacking(L), num_rows=num_rows, mix_at="document", seed=seed)
    assert len(plan) == num_rows
    assert tokens_by_source(plan)[0] / plan.num_tokens == pytest.approx(0.5, abs=0.001)


@pytest.mark.parametrize("mix_at", ["sequence", "document"])
@pytest.mark.parametrize("packing", PACKINGS, ids=name_of)
@pytest.mark.parametrize("num_rows", [37, 400])
def test_plan_does_not_depend_on_the_blocks_that_it_is_made_in(
    num_rows: int, packing: Packing, mix_at: str, monkeypatch: pytest.MonkeyPatch
):
    whole = make_plan(LENGTHS, packing, num_rows=num_rows, mix_at=mix_at, seed=1)
    monkeypatch.setattr("datamodules.packing.plan.BLOCK", 7)
    monkeypatch.setattr("datamodules.mixture.BLOCK", 5)
    in_blocks = make_plan(LENGTHS, packing, num_rows=num_rows, mix_at=mix_at, seed=1)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(in_blocks, name), getattr(whole, name))


@pytest.mark.parametrize("packing", PACKINGS, ids=name_of)
def test_sampled_runs_take_one_round_however_the_lengths_fall(packing: Packing, monkeypatch: pytest.MonkeyPatch):
    """A second round draws and packs half of the run again, and takes half as much memory again."""
    rounds = []
    for name in ("by_sequence", "by_document"):
        made = getattr(run, name)
        monkeypatch.setattr(run, name, lambda *given, made=made: rounds.append(0) or made(*given))
    for seed, mix_at in product(range(10), ("sequence", "document")):
        make_plan(LENGTHS, packing, ratios={"short": 0.7, "long": 0.3}, num_rows=2000, mix_at=mix_at, seed=seed)
    assert len(rounds) == 20
    if packing.one_piece_a_row:  # where chance moves the sum of many lengths by more than a few rows
        lengths = np.random.default_rng(0).choice([1, L], 600_000)
        for seed in range(8):
            make_plan({"a": lengths}, packing, num_rows=200_000, seed=seed)
        assert len(rounds) == 28


@pytest.mark.parametrize("mix_at", ["sequence", "document"])
@pytest.mark.parametrize("packing", PACKINGS, ids=name_of)
def test_no_token_is_dropped_or_read_twice_in_one_epoch(mix_at: str, packing: Packing):
    """All rows of one epoch hold every token of every document exactly once, and no row holds more than it can."""
    sampling = {name: Sampling(max_epochs=1, name=name) for name in LENGTHS}
    request = RunRequest(
        mixture=Mixture({"short": 0.3, "long": 0.7}),
        lengths=LENGTHS,
        packing=packing,
        num_rows=10**6,
        mix_at=mix_at,
        at_exhaustion="renormalise",
        sampling=sampling,
    )
    plan = plan_run(request, may_end=True)
    assert plan.row_tokens.max() <= L
    assert plan.row_tokens.min() > 0
    for number, lengths in enumerate(LENGTHS.values()):
        own = plan.sources == number
        pieces = sorted(zip(plan.documents[own], plan.starts[own], plan.ends[own], strict=True))
        assert all(start < end for _, start, end in pieces)
        reached = np.zeros(len(lengths), dtype=np.int64)
        for document, start, end in pieces:
            assert start == reached[document]
            reached[document] = end
        np.testing.assert_array_equal(reached, lengths)


@pytest.mark.parametrize("packing", PACKINGS, ids=name_of)
def test_row_is_of_one_source_when_sequences_are_mixed_and_of_several_when_documents_are(packing: Packing):
    by_sequence = make_plan(LENGTHS, packing, num_rows=300)
    by_document = make_plan(LENGTHS, packing, num_rows=300, mix_at="document")
    kinds = [
        Counter(len({segment.source for segment in plan.segments(i)}) for i in range(300))
        for plan in (by_sequence, by_document)
    ]
    assert set(kinds[0]) == {1}
    if isinstance(packing, ConcatChunk | BestFitPacking):
        assert kinds[1][2] > (5 if isinstance(packing, BestFitPacking) else 30)  # there, long pieces fill rows alone


def test_best_fit_cuts_only_documents_that_are_longer_than_a_row_and_rows_are_full():
    plan = make_plan(LENGTHS, BestFitPacking(L), num_rows=2000, ratios={"short": 0.5, "long": 0.5}, seed=1)
    whole = {name: set() for name in LENGTHS}
    for i in range(len(plan)):
        for source, document, start, end in plan.segments(i):
            length = LENGTHS[source][document]
            assert start % L == 0
            assert end == min(start + L, length), "a piece is a whole row, or the rest of its document"
            whole[source].add(length <= L)
    assert whole == {"short": {True}, "long": {False}}
    assert plan.row_tokens.mean() > 0.995 * L


def test_best_fit_of_documents_that_never_fit_together_still_ends():
    plan = make_plan({"a": [40] * 50}, BestFitPacking(64), num_rows=3000)
    assert plan.row_tokens.tolist() == [40] * 3000


def test_rows_of_a_window_come_in_random_order():
    lengths = np.sort(RNG.integers(1, 60, 5000))
    plan = make_plan({"a": lengths}, BestFitPacking(L), num_rows=1000)
    longest = np.maximum.reduceat(plan.lengths, plan.offsets[:-1])
    assert abs(np.corrcoef(np.arange(1000), longest)[0, 1]) < 0.1


def test_length_buckets_put_rows_of_like_length_together_and_keep_the_order_random_beyond():
    padded, buckets = (
        make_plan(LENGTHS, packing, num_rows=1024, seed=4)
        for packing in (Padded(L), LengthBuckets(L, rows_per_group=4))
    )
    assert Counter(padded.row_tokens.tolist()) == Counter(buckets.row_tokens.tolist()), "the same rows"

    def padding(plan: RunPlan) -> float:
        groups = plan.row_tokens.reshape(-1, 4)
        return 1 - groups.sum() / (4 * groups.max(axis=1)).sum()

    assert padding(buckets) < 0.02 < 0.2 < padding(padded)
    assert abs(np.corrcoef(np.arange(1024), buckets.row_tokens)[0, 1]) < 0.1


def test_phases_are_counted_in_tokens():
    plan = make_plan(
        LENGTHS,
        BestFitPacking(L),
        ratios={"short": 0.2, "long": 0.8},
        phases=[Phase(100 * L, {"long": 1.0})],
        num_rows=1000,
    )
    first = plan.take(np.arange(95))
    assert tokens_by_source(first)[plan.names.index("short")] == 0
    rest = plan.take(np.arange(105, 1000))
    share = tokens_by_source(rest)[plan.names.index("short")] / rest.lengths.sum()
    assert share == pytest.approx(0.2, abs=0.005)


def test_length_rules_keep_the_share_of_their_source():
    sampling = {"long": Sampling(upsample={"min_length": 1000, "times": 5}, name="long")}
    plain = make_plan(LENGTHS, ConcatChunk(L), num_rows=2000)
    ruled = make_plan(LENGTHS, ConcatChunk(L), num_rows=2000, sampling=sampling)
    shares = [tokens_by_source(plan)[1] / plan.lengths.sum() for plan in (plain, ruled)]
    assert shares == pytest.approx([0.5, 0.5], abs=0.001)
    of_long = []
    for plan in (plain, ruled):
        own = plan.sources == 1
        of_long.append(plan.lengths[own][LENGTHS["long"][plan.documents[own]] >= 1000].sum() / plan.lengths[own].sum())
    assert of_long[1] == pytest.approx(5 * of_long[0] / (1 + 4 * of_long[0]), abs=0.02)


def test_exhausted_source_is_an_error_that_says_when():
    rows = int(2 * LENGTHS["short"].sum() / L * 1.05)
    sampling = {"short": Sampling(max_epochs=1, name="short")}
    with pytest.raises(
        ValueError, match=r"corpus\.sampling\.short\.max_epochs=1 ends the source after 9\d% of the run"
    ):
        make_plan(LENGTHS, ConcatChunk(L), num_rows=rows, sampling=sampling)


def test_exhausted_source_leaves_the_rest_of_the_run_to_the_others():
    tokens = int(LENGTHS["short"].sum())
    plan = make_plan(
        LENGTHS,
        ConcatChunk(L),
        num_rows=4 * tokens // L,
        sampling={"short": Sampling(max_epochs=1, name="short")},
        at_exhaustion="renormalise",
    )
    assert tokens_by_source(plan)[0] == tokens
    last = plan.take(np.arange(len(plan) // 2 + 5, len(plan)))
    assert tokens_by_source(last)[0] == 0


def test_run_that_outlasts_all_its_sources_is_refused():
    sampling = {name: Sampling(max_epochs=2, name=name) for name in LENGTHS}
    with pytest.raises(ValueError, match=r"for 2,\d+ rows, but the run takes 90,000; raise max_epochs or lower data"):
        make_plan(LENGTHS, ConcatChunk(L), num_rows=90_000, sampling=sampling, at_exhaustion="renormalise")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix_at": "token"}, r"corpus\.mix_at=token is not known; allowed are sequence, document"),
        ({"at_exhaustion": "stop"}, r"corpus\.at_exhaustion=stop is not known; allowed are error, renormalise"),
    ],
)
def test_unknown_name_is_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        make_plan(LENGTHS, ConcatChunk(L), num_rows=1, **options)


def test_source_of_fewer_tokens_than_a_row_is_read_again_and_again():
    plan = make_plan({"tiny": [3, 2], "long": LENGTHS["long"]}, ConcatChunk(L), num_rows=100)
    assert plan.row_tokens.tolist() == [L] * 100
    assert tokens_by_source(plan).tolist() == [50 * L, 50 * L]


@pytest.mark.parametrize("packing", PACKINGS, ids=name_of)
def test_plan_is_a_function_of_its_request_and_survives_disk_and_pickle(packing: Packing, tmp_path: Path):
    plan, again, other = (make_plan(LENGTHS, packing, num_rows=200, seed=seed) for seed in (1, 1, 2))
    plan.save(tmp_path / "plan")
    opened = RunPlan.open(tmp_path / "plan")
    copy = pickle.loads(pickle.dumps(opened))
    assert isinstance(opened.documents, np.memmap)
    assert len(pickle.dumps(opened)) < 1000, "a loader worker gets the folder, not the arrays"
    for i in range(200):
        assert plan.segments(i) == again.segments(i) == opened.segments(i) == copy.segments(i)
    assert [plan.segments(i) for i in range(200)] != [other.segments(i) for i in range(200)]


def test_ledger_counts_what_the_rows_hold():
    request = RunRequest(
        mixture=Mixture({"short": 0.25, "long": 0.75}), lengths=LENGTHS, packing=Padded(L), num_rows=1500, seed=1
    )
    plan = plan_run(request)
    found = ledger(plan, request)
    held = {"short": Counter(), "long": Counter()}
    for i in range(len(plan)):
        for source, _, start, end in plan.segments(i):
            held[source][1 << (end - start).bit_length() - 1] += end - start
    assert {entry.source: entry.lengths for entry in found.sources} == held
    assert found.tokens == sum(sum(counts.values()) for counts in held.values())
    assert found.padding == pytest.approx(1 - found.tokens / (1500 * L))
    short = found.sources[0]
    assert (short.asked, short.epochs) == pytest.approx((0.25, short.tokens / LENGTHS["short"].sum()))
    assert short.share == pytest.approx(0.25, abs=0.01)
    assert "| short | " in ledger_table(found)


@pytest.mark.parametrize("at_exhaustion", ["error", "renormalise"])
def test_one_document_read_once_ends_the_plan(at_exhaustion: str):
    lengths = {"a": [6982], "b": LENGTHS["long"]}
    options: dict = {
        "ratios": {"a": 0.3, "b": 0.7},
        "num_rows": 64,
        "sampling": {"a": Sampling(max_epochs=1, name="a")},
    }
    if at_exhaustion == "error":
        with pytest.raises(ValueError, match=r"corpus\.sampling\.a\.max_epochs=1 ends the source after"):
            make_plan(lengths, ConcatChunk(512), **options)
    else:
        plan = make_plan(lengths, ConcatChunk(512), at_exhaustion=at_exhaustion, **options)
        assert tokens_by_source(plan)[0] == 6982


def test_sources_of_equal_documents_have_orders_of_their_own():
    plan = make_plan({"a": [L] * 50, "b": [L] * 50}, ConcatChunk(L), num_rows=100)
    orders = [plan.documents[plan.sources == number].tolist() for number in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))
    assert orders[0] != orders[1]


def test_carried_documents_fill_rows_better_than_windows_alone():
    """Rows of 64 tokens, whose windows are of few documents: what does not fill a row waits for the next window."""
    lengths = np.random.default_rng(3).integers(20, 64, 40_000)
    rows = BestFitPacking(L).rows(lengths, seed=0, complete=True)
    alone = sum(
        best_fit(lengths[first:last], capacity=L).num_bins
        for first, last in pairwise(window_edges(lengths, tokens=WINDOW_ROWS * L))
    )
    assert len(rows.offsets) - 1 < alone


def test_unlimited_epochs_by_a_large_number_cost_nothing():
    stream = DocumentStream(np.full(1000, 7), seed=0, sampling=Sampling(max_epochs=10**9))
    assert stream.available == 7000 * 10**9
    assert DocumentStream(np.full(1000, 7), seed=0, sampling=Sampling(max_epochs=2.5)).available == 2.5 * 7000
