"""The last rows of a run of rows of very unequal size: shares of tokens, and which rows they are."""

from collections import Counter
from itertools import product

import numpy as np
import pytest

from datamodules.mixture import Mixture, Phase
from datamodules.packing.padded import Padded
from datamodules.packing.plan import RunPlan
from datamodules.packing.run_end import last_rows
from datamodules.packing.stream import Sampling
from tests.datamodules.toy import make_plan

L = 4096
RNG = np.random.default_rng(0)


def lognormal(number: int, mean: float) -> np.ndarray:
    drawn = np.exp(0.9 * RNG.standard_normal(number))
    return np.maximum(1, np.rint(drawn / drawn.mean() * mean)).astype(np.int64)


HUNDREDFOLD = [
    {"short": lognormal(60_000, 60), "long": lognormal(3_000, 6_000)},  # mostly longer than a row
    {"short": lognormal(200_000, 15), "long": np.minimum(lognormal(9_000, 1_500), L)},
]


def shares(plan: RunPlan) -> np.ndarray:
    return np.bincount(plan.sources, weights=plan.lengths, minlength=len(plan.names)) / plan.num_tokens


@pytest.mark.parametrize("mix_at", ["sequence", "document"])
@pytest.mark.parametrize("lengths", HUNDREDFOLD, ids=["longer than a row", "within a row"])
def test_thousand_padded_rows_have_their_shares_though_one_row_may_be_a_tenth_of_the_run(
    lengths: dict[str, np.ndarray], mix_at: str
):
    longest = []
    for num_rows, seed, ratio in product((1000, 1500, 3000), range(5), (0.5, 0.9, 0.1)):
        plan = make_plan(
            lengths,
            Padded(L),
            ratios={"short": ratio, "long": 1 - ratio},
            num_rows=num_rows,
            seed=seed,
            mix_at=mix_at,
        )
        assert len(plan) == num_rows
        assert abs(shares(plan)[0] - ratio) < 0.005, (num_rows, seed, ratio)
        longest.append(plan.row_tokens.max() / plan.num_tokens)
    assert max(longest) > 0.04, "where one row is that much, whole rows alone do not reach it"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.77, 0.98])
def test_share_is_the_nearest_that_there_is_where_all_rows_of_a_source_are_alike(ratio: float, seed: int):
    """Rows of 10 and of 4,096 tokens: no exchange helps, and the best of all counts is found by trying them all."""
    plan = make_plan(
        {"a": [10] * 5_000, "b": [L] * 5_000},
        Padded(L),
        ratios={"a": ratio, "b": 1 - ratio},
        num_rows=1000,
        seed=seed,
    )
    error = abs(shares(plan)[1] - (1 - ratio))
    of_b = np.arange(1001)
    possible = np.abs(of_b * L / (of_b * L + (1000 - of_b) * 10) - (1 - ratio))
    assert error <= L / 2 / plan.num_tokens
    assert error == pytest.approx(possible.min())


@pytest.mark.parametrize("seed", range(40))
def test_no_source_is_farther_from_its_share_than_the_bound(seed: int):
    """Any number of sources, rows of few sizes so that exchanges seldom help, phases: the bound of the header."""
    rng = np.random.default_rng(seed)
    sizes = [np.full(4000, rng.integers(1, 3000)) for _ in range(rng.integers(2, 6))]
    ratios = {f"s{k}": float(share) for k, share in enumerate(rng.random(len(sizes)) + 0.05)}
    phases = [Phase(int(rng.integers(1, 10_000)), {"s0": 1.0, "s1": 2.0})] if seed % 2 else []
    mixture = Mixture(ratios, phases=phases)
    places, times, _ = mixture.places(sizes, seed=seed)
    num_rows = int(rng.integers(500, 1500))
    assert len(places) > num_rows
    found = last_rows(
        mixture,
        sizes,
        places=places,
        times=times,
        num_rows=num_rows,
        epoch_end=lambda source, row: len(sizes[source]),
    )
    assert len(np.unique(found)) == num_rows
    source = found // 4000
    tokens = np.bincount(source, weights=np.concatenate(sizes)[found], minlength=len(sizes))
    total = tokens.sum()
    longest = np.array([size.max() for size in sizes])
    # In a phase the ratios at the run's end are those that count; they are the last ones here.
    rates = mixture.given(total + 1) - mixture.given(total)
    bound = ((1 - rates) * longest + rates * (longest.sum() - longest)) / 2
    assert np.abs(tokens - mixture.given(total)).max() <= bound.max() + 1e-6
    assert bound.max() <= longest.max() * (len(sizes) - 1) / 2


def test_only_the_last_row_of_a_source_is_another_one_and_the_order_stays():
    rng = np.random.default_rng(1)
    sizes = [rng.integers(1, 100, 5000), rng.integers(100, 10_000, 500)]
    mixture = Mixture({"a": 0.5, "b": 0.5})
    places, times, _ = mixture.places(sizes, seed=3)
    end = {"epoch_end": lambda source, row: len(sizes[source])}
    found = last_rows(mixture, sizes, places=places, times=times, num_rows=1000, **end)
    for source in range(2):
        rows = found[(found >= 5000) == bool(source)] - 5000 * source
        assert rows[:-1].tolist() == list(range(len(rows) - 1)), "all but the last come as the source gives them"
        assert len(rows) - 1 <= rows[-1] < len(rows) - 1 + 64
    alike = np.flatnonzero(found != places[:1000])
    assert len(alike) < 100, "whatever is read is read where it was, but for rows that move up by one or two"


@pytest.mark.parametrize("sampling", [None, {"upsample": {"min_length": 3_000, "times": 1.5}}])
@pytest.mark.parametrize("seed", range(8))
def test_exchange_stays_in_the_epoch(seed: int, sampling: dict | None):
    """Six long documents, read again and again: none comes a third time before all have come twice."""
    lengths = {"short": lognormal(50_000, 30), "long": np.array([900, 1_800, 2_500, 3_100, 3_800, 4_000])}
    rules = {} if sampling is None else {"long": Sampling(**sampling, name="long")}
    plan = make_plan(lengths, Padded(L), num_rows=1000 + 37 * seed, seed=seed, sampling=rules)
    read = Counter(plan.documents[plan.sources == 1].tolist())
    assert sum(read.values()) > 6
    if sampling is None:
        assert max(read.values()) - min(read.get(document, 0) for document in range(6)) <= 1


@pytest.mark.parametrize("num_rows", [0, 1, 2, 5])
def test_runs_of_few_rows_have_as_many(num_rows: int):
    plan = make_plan(HUNDREDFOLD[0], Padded(L), num_rows=num_rows)
    assert len(plan) == num_rows
