import math
import pickle
from collections import Counter, defaultdict

import numpy as np
import pytest

from datamodules.mixture import WINDOW, Mixture, Phase, normalised

RATIOS = [
    {"a": 1.0},
    {"a": 0.5, "b": 0.5},
    {"a": 1.0, "b": 1.0, "c": 1.0},
    {"book": 0.25, "arxiv": 0.35, "redpajama": 0.25, "ul2_oscar": 0.15},
    {"a": 0.001, "b": 0.999},
    {"a": 0.001, "b": 0.002, "c": 0.003, "d": 0.994},
    {"a": 3, "b": 0, "c": 7},
    {"a": 123_456_789, "b": 1_000, "c": 98_765},
    {f"s{k}": 1.0 for k in range(300)},  # more sources than a window has sequences
]


@pytest.mark.parametrize("ratios", RATIOS, ids=str)
@pytest.mark.parametrize("seed", [0, 5])
def test_share_of_the_sequences_is_the_ratio_at_any_length(ratios: dict[str, float], seed: int):
    mixture = Mixture(ratios, num_sequences=2000, seed=seed)
    sources = np.array([list(ratios).index(mixture.locate(i)[0]) for i in range(2000)])
    counts = np.cumsum(sources[:, None] == np.arange(len(ratios)), axis=0)  # [2000, num_sources]
    n = np.arange(1, 2001)[:, None]
    shares = np.array(list(ratios.values())) / sum(ratios.values())
    assert np.abs(counts - n * shares).max() < 3, "in sequences, at every n"
    assert np.abs(counts / n - shares)[999:].max() < 0.005
    assert (counts[-1][shares == 0] == 0).all()


@pytest.mark.parametrize("ratios", RATIOS, ids=str)
def test_share_after_whole_windows_is_exact_to_one_sequence(ratios: dict[str, float]):
    mixture = Mixture(ratios, num_sequences=50 * 256, seed=5)
    dealt = mixture._before
    for window in range(1, 51):
        for source, ratio in enumerate(mixture.ratios.values()):
            assert abs(dealt[window, source] - ratio * window * 256) < 1 + 1e-6
        assert dealt[window].sum() == window * 256


@pytest.mark.parametrize("ratios", RATIOS, ids=str)
@pytest.mark.parametrize("num_sequences", [1, 255, 256, 257, 1000])
def test_every_source_deals_its_sequences_in_a_row(ratios: dict[str, float], num_sequences: int):
    """(source, j) comes once, and the j of a source count 0, 1, 2, …: nothing is repeated, nothing skipped."""
    mixture = Mixture(ratios, num_sequences=num_sequences, seed=0)
    dealt = defaultdict(list)
    for i in range(num_sequences):
        source, j = mixture.locate(i)
        dealt[source].append(j)
    assert all(numbers == list(range(len(numbers))) for numbers in dealt.values())


def test_place_of_a_sequence_is_a_function_of_ratios_seed_and_index():
    ratios = {"a": 2, "b": 1, "c": 0.1}
    mixture = Mixture(ratios, num_sequences=1000, seed=3)
    in_order = [mixture.locate(i) for i in range(1000)]
    assert [mixture.locate(i) for i in reversed(range(1000))] == in_order[::-1]
    assert [pickle.loads(pickle.dumps(mixture)).locate(i) for i in range(1000)] == in_order
    scaled = {name: 10 * ratio for name, ratio in ratios.items()}
    longer = Mixture(scaled, num_sequences=5000, seed=3)
    assert [longer.locate(i) for i in range(1000)] == in_order
    other = Mixture(ratios, num_sequences=1000, seed=4)
    assert [other.locate(i) for i in range(1000)] != in_order


def test_sources_are_spread_over_a_window():
    mixture = Mixture({"a": 1, "b": 1}, num_sequences=256, seed=0)
    sources = [mixture.locate(i)[0] for i in range(256)]
    for start in range(0, 256, 32):
        assert 4 <= sources[start : start + 32].count("a") <= 28


@pytest.mark.parametrize("i", [-1, 100, 255, 1000])
def test_sequence_outside_the_run_is_an_index_error(i: int):
    with pytest.raises(IndexError):
        Mixture({"a": 1}, num_sequences=100, seed=0).locate(i)


def test_ratios_are_normalised():
    assert normalised({"a": 1, "b": 3}) == {"a": 0.25, "b": 0.75}


@pytest.mark.parametrize("ratio", [-0.1, math.nan, math.inf])
def test_ratio_that_is_no_share_is_refused(ratio: float):
    with pytest.raises(ValueError, match=r"corpus\.mixture\.b=.* is not a share"):
        Mixture({"a": 1.0, "b": ratio}, num_sequences=10, seed=0)


@pytest.mark.parametrize("ratios", [{}, {"a": 0.0, "b": 0.0}])
def test_ratios_that_are_all_zero_are_refused(ratios: dict[str, float]):
    with pytest.raises(ValueError, match="gives no source a share"):
        Mixture(ratios, num_sequences=10, seed=0)


def test_phases_hold_their_own_ratios_and_then_the_main_ones_do():
    phases = [Phase(4 * WINDOW, {"short": 1.0}), Phase(2 * WINDOW, {"short": 0.5, "text": 0.5})]
    mixture = Mixture({"text": 0.25, "long": 0.75}, num_sequences=10 * WINDOW, seed=3, phases=phases)
    dealt = [mixture.locate(i) for i in range(10 * WINDOW)]
    parts = {"first": dealt[: 4 * WINDOW], "second": dealt[4 * WINDOW : 6 * WINDOW], "rest": dealt[6 * WINDOW :]}
    shares = {
        part: {name: share / len(rows) for name, share in Counter(n for n, _ in rows).items()}
        for part, rows in parts.items()
    }
    assert shares == {
        "first": {"short": 1.0},
        "second": {"short": 0.5, "text": 0.5},
        "rest": {"text": 0.25, "long": 0.75},
    }
    for source in ("short", "text", "long"):  # no sequence of a source is skipped or repeated at an edge
        numbers = [j for name, j in dealt if name == source]
        assert numbers == list(range(len(numbers)))
