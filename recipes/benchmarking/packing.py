"""How fast documents are packed and how full the rows get, ours beside the packers that others use.

Everything is timed in the same process in CPU seconds, on the same lengths, after a first call that compiles.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from os import environ
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.packing.best_fit import Bins, best_fit
from datamodules.packing.plan import Packing
from datamodules.packing.run import MIX_AT
from recipes.benchmarking import peer_packers
from recipes.benchmarking.balance import balance_table
from recipes.benchmarking.length_profile import length_profile
from recipes.benchmarking.table import markdown_table

NOT_RUN = "not run"
ENOUGH_SECONDS, MOST_RUNS = 0.5, 9
STATUS = Path("/proc/self/status")


class Packer(NamedTuple):
    name: str
    pack: Callable[[np.ndarray, int], Bins | list[list[int]]]
    most_documents: int = 1_000_000  # beyond these it takes minutes


def best_fit_of_ours(lengths: np.ndarray, capacity: int) -> Bins:
    return best_fit(lengths, capacity=capacity)


PACKERS = (
    Packer("ours, best fit decreasing", best_fit_of_ours, 10_000_000),
    Packer("TRL, best fit decreasing", peer_packers.trl),
    Packer("LLaMA-Factory, greedy knapsack", peer_packers.llama_factory, 200_000),  # quadratic
    Packer("axolotl, first fit", peer_packers.axolotl),
    Packer("torchtune, next fit", peer_packers.next_fit),
)


class Packed(NamedTuple):
    """What a packer made of some lengths."""

    seconds: float  # of CPU, the fastest run
    num_rows: int
    fill: float  # share of the rows that holds tokens
    above_bound: int  # rows over tokens / capacity, rounded up


def measure(packer: Packer, lengths: np.ndarray, *, capacity: int) -> Packed:
    """Time a packer, and prove that it packed every document once and no row too full."""
    packer.pack(lengths[:2], capacity)
    seconds: list[float] = []
    while len(seconds) < MOST_RUNS and sum(seconds) < ENOUGH_SECONDS:
        begun = time.process_time()
        bins = packer.pack(lengths, capacity)
        seconds.append(time.process_time() - begun)
    held = row_tokens(lengths, bins)
    assert held.max() <= capacity
    num_tokens = int(lengths.sum(dtype=np.int64))
    return Packed(
        min(seconds), len(held), num_tokens / (len(held) * capacity), len(held) - lower_bound(num_tokens, capacity)
    )


def row_tokens(lengths: np.ndarray, bins: Bins | list[list[int]]) -> np.ndarray:
    """Tokens of each row, [num_rows] int64; every document stands in exactly one."""
    if isinstance(bins, Bins):
        order, sizes = bins.order, np.diff(bins.offsets)
    else:
        order, sizes = np.concatenate(bins), np.array([len(documents) for documents in bins])
    assert np.array_equal(np.sort(order), np.arange(len(lengths)))
    row_of = np.repeat(np.arange(len(sizes)), sizes)
    return np.bincount(row_of, lengths[order]).astype(np.int64)


def lower_bound(num_tokens: int, capacity: int) -> int:
    return -(-num_tokens // capacity)


class PlanCost(NamedTuple):
    """What the plan of a run takes in a process of its own."""

    first_call_seconds: float  # compile, or load what was compiled
    seconds: float  # of CPU, from document lengths to the plan's files
    peak_mib: float  # of the whole process, with the interpreter, its libraries and the lengths
    above_start_mib: float  # of it, what was not there before the lengths were
    num_pieces: int
    num_rows: int
    fill: float  # share of the rows that holds tokens


def plan_cost(num_documents: int, *, packing: str, mix_at: str, capacity: int) -> PlanCost:
    """Plan a run that reads documents of any length once, and keep the plan as a run does, in this process.

    Args:
        num_documents: Of two sources together, half of them of each.
        packing: A name in `packings`.
        mix_at: `sequence` or `document`.
        capacity: Tokens of a row.
    """
    from datamodules.length_schedules.shapes import constant
    from datamodules.mixture import Mixture
    from datamodules.packing.run import RunRequest
    from datamodules.packing.stream import Sampling
    from datamodules.row_planning import RowPlanner

    begun = time.process_time()
    best_fit(np.ones(1, np.int32), capacity=1)
    first_call_seconds = time.process_time() - begun
    start_mib = status_mib("VmRSS") if STATUS.exists() else peak_mib()
    drawn = length_profile(num_documents).astype(np.int64)
    lengths = {"first": drawn[: -(-num_documents // 2)], "second": drawn[-(-num_documents // 2) :]}
    num_tokens, num_pieces = int(drawn.sum()), sum(int(np.ceil(own / capacity).sum()) for own in lengths.values())
    policy = packings(capacity)[packing]
    request = RunRequest(
        mixture=Mixture({name: float(own.sum()) for name, own in lengths.items()}),
        lengths=lengths,
        packing=policy,
        num_rows=num_pieces if policy.one_piece_a_row else num_tokens // capacity * 2 + 2,  # more than there are
        mix_at=mix_at,
        at_exhaustion="renormalise",
        sampling={name: Sampling(max_epochs=1, name=name) for name in lengths},
        may_end=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        planner = RowPlanner(packing=policy, length_schedule=constant(max_seqlen=capacity), cache_dir=Path(folder))
        begun = time.process_time()
        plan = planner.rows(request, {}).plan
        seconds = time.process_time() - begun
        peak = peak_mib()
        assert plan.num_tokens == num_tokens
    num_rows = len(plan)
    fill = num_tokens / (num_rows * capacity)
    return PlanCost(first_call_seconds, seconds, peak, peak - start_mib, len(plan.documents), num_rows, fill)


def packings(capacity: int) -> dict[str, Packing]:
    """Every packing of `conf/packing`, by its name there."""
    from datamodules.packing.best_fit_packing import BestFitPacking
    from datamodules.packing.concat_chunk import ConcatChunk
    from datamodules.packing.length_buckets import LengthBuckets
    from datamodules.packing.padded import Padded

    return {
        "concat_chunk": ConcatChunk(capacity),
        "best_fit": BestFitPacking(capacity),
        "padded": Padded(capacity),
        "length_buckets": LengthBuckets(capacity, rows_per_group=4),
    }


def peak_mib() -> float:
    """The most memory that this process ever held."""
    if STATUS.exists():  # ru_maxrss would count the parent's memory too, where a child is started by vfork
        return status_mib("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def status_mib(field: str) -> float:
    """What Linux says of this process's memory."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def plan_cost_apart(
    num_documents: int, *, packing: str, mix_at: str, capacity: int, cache: str | None = None
) -> PlanCost:
    """`plan_cost` in a process of its own; `cache` is a folder for compiled code instead of the usual one."""
    options = {"packing": packing, "mix_at": mix_at, "capacity": capacity}
    call = f"from recipes.benchmarking.packing import print_plan_cost as p; p({num_documents}, **{options})"
    env = {**environ, "NUMBA_CACHE_DIR": cache} if cache else None
    done = subprocess.run([sys.executable, "-c", call], check=True, capture_output=True, text=True, env=env)
    return PlanCost(*json.loads(done.stdout))


def print_plan_cost(num_documents: int, *, packing: str, mix_at: str, capacity: int) -> None:
    print(json.dumps(plan_cost(num_documents, packing=packing, mix_at=mix_at, capacity=capacity)))


def packers_table(num_documents: Sequence[int], capacities: Sequence[int]) -> str:
    header = ["packer", "documents"]
    for capacity in capacities:
        header += [f"docs/s at {capacity}", "fill", "rows over bound"]
    rows = []
    for number in num_documents:
        for packer in PACKERS:
            row = [packer.name, f"{number:,}"]
            for capacity in capacities:
                if number > packer.most_documents:
                    row += [NOT_RUN, "", ""]
                    continue
                packed = measure(packer, length_profile(number, longest=capacity), capacity=capacity)
                row += [f"{number / packed.seconds:,.0f}", f"{packed.fill:.5f}", f"+{packed.above_bound}"]
            rows.append(row)
    return markdown_table(header, rows)


def plan_table(num_documents: int, capacities: Sequence[int]) -> str:
    rows = []
    for capacity in capacities:
        for packing in packings(capacity):
            for mix_at in MIX_AT:
                cost = plan_cost_apart(num_documents, packing=packing, mix_at=mix_at, capacity=capacity)
                rows.append(
                    [
                        *(packing, mix_at, str(capacity)),
                        *(f"{count:,}" for count in (num_documents, cost.num_pieces, cost.num_rows)),
                        *(f"{cost.fill:.5f}", f"{cost.seconds:.2f}"),
                        *(f"{cost.above_start_mib:.0f}", f"{cost.peak_mib:.0f}"),
                    ]
                )
    header = ["plan of", "mix_at", "row", "documents", "pieces", "rows", "fill", "CPU seconds"]
    return markdown_table([*header, "peak MiB above start", "of the process"], rows)


def first_call_text() -> str:
    """What the first call in a process takes, before and after the compiled code is on disk."""
    with tempfile.TemporaryDirectory() as cache:
        options = {"packing": "best_fit", "mix_at": "sequence", "capacity": 16, "cache": cache}
        compiled, loaded = (plan_cost_apart(2, **options).first_call_seconds for _ in range(2))
    return f"First call in a process: {compiled:.2f} CPU seconds to compile, {loaded:.2f} once that is on disk.\n"


def packing_table(
    *,
    num_documents: Sequence[int] = (20_000, 100_000, 1_000_000),
    capacities: Sequence[int] = (32_768, 131_072),
    plan_documents: int = 10_000_000,
    balance_documents: int = 1_000_000,
) -> str:
    """The tables of `python -m recipes.benchmark target=packing`: packers, the plan of many documents, rank balance.

    Args:
        num_documents: Sizes at which the packers are compared, on documents that fit into a row.
        capacities: Tokens of a row.
        plan_documents: Documents of any length of the run that is planned, in a process of its own for each packing.
        balance_documents: Documents whose rows are shared out over ranks.
    """
    return "\n".join(
        [
            "Packing documents of the 70/30 long-context mix into rows. CPU seconds of one core; the bound is tokens /"
            f" row,\nrounded up; “{NOT_RUN}”: would take minutes, being quadratic in the documents.\n",
            packers_table(num_documents, capacities),
            "The plan of a run that reads the documents of two sources once, from their lengths to its files, in a"
            " process\nof its own. Peak: the most that it ever held, lengths and all; its start is the interpreter with"
            " its libraries.\n",
            plan_table(plan_documents, capacities),
            first_call_text(),
            balance_table(balance_documents),
        ]
    )
