"""Whether a run fits its devices and hosts, the longest rows that would, and the fastest options that do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from recipes.planning.flops import pairs
from recipes.planning.hardware import GIB, Hardware
from recipes.planning.job import Job, MemoryOption
from recipes.planning.memory import fullest, host_bytes, loading_bytes
from recipes.planning.speed import Seconds, rank_flops, step_seconds

CONTEXT_GIB = 1.5
"""Of a GPU: CUDA's context, cuBLAS' and NCCL's buffers. Our choice; 0.5 to 2 are seen."""
SLACK = 0.04
"""Share of the tensors that the allocator holds and cannot use. Our choice; 0.02 to 0.1 are seen."""
PROCESS_GIB = 0.6
"""Of a process on a CPU: torch, transformers and lightning imported."""
MARGIN = 0.92
"""Share of a device that a recommendation fills at most."""
USABLE_HOST = 0.86
"""Share of the host's memory that can be pinned: 110 of 128 GiB."""
GRANULE = 1024
MOST_TOKENS = 1 << 26
MICRO_BATCHES = (1, 2, 4, 8, 16)


class Need(NamedTuple):
    """What a run needs of a device and of a host, and what there is, in GiB.

    Attributes:
        tensors: Peak of what the step holds.
        device: With context and slack.
        device_has: Of a device.
        host: Of a node, while training, or while it loads the weights if that is more.
        host_has: Of a node.
        moment: When the device is fullest.
        causes: What then is held, by cause.
    """

    tensors: float
    device: float
    device_has: float
    host: float
    host_has: float
    moment: str
    causes: Mapping[str, float]

    @property
    def short(self) -> float:
        """GiB that a device lacks; 0 where it fits."""
        return max(0.0, self.device - self.device_has)

    @property
    def host_short(self) -> float:
        return max(0.0, self.host - self.host_has)

    @property
    def fits(self) -> bool:
        return not self.short and not self.host_short


class Choice(NamedTuple):
    """A strategy, a way to hold activations and a size of micro-batches."""

    job: Job
    memory: str
    need: Need
    seconds: Seconds | None

    @property
    def words(self) -> str:
        """To paste behind a verb."""
        return f"strategy={self.job.strategy} memory={self.memory} data.micro_batch_size={self.job.rows}"


def need(job: Job, hardware: Hardware, *, factor: float = 1.0) -> Need:
    """What a run needs; `factor` corrects the tensors as a calibration found it."""
    moment = fullest(job)
    tensors = factor * moment.total / GIB
    device = tensors * (1 + SLACK) + CONTEXT_GIB if hardware.on_gpu else tensors + PROCESS_GIB
    ranks = min(job.ranks, hardware.devices_per_node)
    host, has = ranks * max(host_bytes(job), loading_bytes(job)) / GIB, hardware.host_memory_gib * USABLE_HOST
    if not hardware.on_gpu:  # one memory for both
        device, host = ranks * (device + host_bytes(job) / GIB), 0.0
    causes = {name: factor * value / GIB for name, value in moment.bytes_by_cause.items() if value}
    return Need(tensors, device, hardware.memory_gib, host, has, moment.name, causes)


def longest_rows(job: Job, hardware: Hardware, *, factor: float = 1.0, most: int = MOST_TOKENS) -> int:
    """Tokens of the longest rows that fit with these options, a multiple of 1024 (64 below 4096); 0 for none."""

    def fits(tokens: int) -> bool:
        return need(replace(job, row_tokens=tokens), hardware, factor=factor).fits

    granule = GRANULE if fits(4 * GRANULE) else 64
    low, high = 0, most // granule
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * granule) else (low, middle - 1)
    return low * granule


def choices(
    job: Job,
    hardware: Hardware,
    memory: Mapping[str, MemoryOption],
    *,
    rows_per_rank: int,
    seen: float | None = None,
    factor: float = 1.0,
) -> list[Choice]:
    """Every strategy, memory option and micro-batch size that goes together.

    Args:
        job: The run as it is configured.
        hardware: What it runs on.
        memory: Options by name.
        rows_per_rank: Rows of one rank and step.
        seen: `flops.pairs` of the documents of one rank in a step; None counts full rows.
        factor: Of a calibration.
    """
    seen = rows_per_rank * pairs([job.row_tokens]) if seen is None else seen
    found = []
    for strategy in _strategies(job):
        for name, option in memory.items():
            if strategy == "fsdp" and option.recompute == "every_n_layers":
                continue
            for rows in (size for size in MICRO_BATCHES if size == 1 or size <= rows_per_rank):
                made = replace(
                    job, strategy=strategy, memory=option, rows=rows, micro_batches=-(-rows_per_rank // rows)
                )
                times = step_seconds(made, hardware, seen=seen)
                found.append(Choice(made, name, need(made, hardware, factor=factor), times))
    return found


def fastest(found: Sequence[Choice]) -> Choice | None:
    """The fastest that fits with a margin, of equally fast ones the plainest that needs least; None where none does."""

    def cost(choice: Choice) -> tuple[float, bool, bool, bool, float]:
        option, seconds = choice.job.memory, choice.seconds
        # Where speed is not known, the least computing; the length of documents has no part in which that is.
        time = rank_flops(choice.job, seen=0.0).linear if seconds is None else float(f"{seconds.most:.2g}")
        plainest = (option.offload_to_host, option.mlp_tile_size is not None, choice.job.sharded)
        return time, *plainest, choice.need.device

    fitting = [
        choice
        for choice in found
        if choice.need.device <= MARGIN * choice.need.device_has and not choice.need.host_short
    ]
    return min(fitting, key=cost, default=None)


def _strategies(job: Job) -> list[str]:
    plain = "single" if job.ranks == 1 else "ddp"
    quantised = job.adapter is not None and job.adapter.four_bit
    alone = job.ranks == 1 and job.strategy != "fsdp"  # nothing to shard over; only its 16-bit stream would be new
    return [plain] if quantised or alone or not job.on_gpu or job.optimizer == "adamw_8bit" else [plain, "fsdp"]
