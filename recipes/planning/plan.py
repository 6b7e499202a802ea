"""All that a plan says of one run, as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from recipes.compose import Composed
from recipes.planning.calibration import Calibration
from recipes.planning.disk import Disk, disk_of
from recipes.planning.fitting import Choice, Need, choices, fastest, longest_rows, need
from recipes.planning.flops import model_flops, pairs
from recipes.planning.hardware import Hardware
from recipes.planning.prepared import PreparedRun, prepared_run
from recipes.planning.reading import Run, memory_options, read_run
from recipes.planning.speed import Seconds, rank_flops, step_seconds

MOST_DEVICES = 1024


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run takes.

    Attributes:
        recipe: Name of the preset.
        hardware: What it would run on.
        run: Its numbers, as configured.
        memory_name: Option of conf/memory.
        prepared: What prepared data says; None where it is not prepared.
        need: Memory of a device and of a host.
        longest_context: Tokens of the longest rows that fit with these options.
        best: The fastest options that fit with a margin; None where none do.
        best_devices: The least number of devices for which some options fit; None where no number does.
        seconds: Of a step; None where the speed is not known.
        steps: Of the run; None where it is not known before the data is prepared.
        tokens: Of the run, likewise.
        tokens_are_exact: Padding and empty rows are known, or there are none.
        step_flops: Model FLOPs of a step over all devices.
        disk: Bytes by purpose.
        calibration: What corrected the memory and the time; None for none.
    """

    recipe: str
    hardware: Hardware
    run: Run
    memory_name: str
    prepared: PreparedRun | None
    need: Need
    longest_context: int
    best: Choice | None
    best_devices: int | None
    seconds: Seconds | None
    steps: int | None
    tokens: int | None
    tokens_are_exact: bool
    step_flops: float
    disk: Disk
    calibration: Calibration | None

    @property
    def devices(self) -> int:
        return self.run.job.ranks

    @property
    def tokens_per_step(self) -> float:
        if self.prepared is not None:
            return self.prepared.num_tokens / self.prepared.num_steps
        return float(self.run.tokens_per_step)

    @property
    def tokens_per_second(self) -> Seconds | None:
        """Of all devices, from the longest step and from the shortest."""
        if self.seconds is None:
            return None
        return Seconds(self.tokens_per_step / self.seconds.most, self.tokens_per_step / self.seconds.least)

    @property
    def hours(self) -> Seconds | None:
        if self.seconds is None or self.steps is None:
            return None
        return Seconds(*(self.steps * seconds / 3600 for seconds in self.seconds))

    @property
    def device_hours(self) -> Seconds | None:
        return None if self.hours is None else Seconds(*(self.devices * hours for hours in self.hours))

    @property
    def cost(self) -> Seconds | None:
        """At the price of a device and hour."""
        price = self.hardware.price_per_hour
        if price is None or self.device_hours is None:
            return None
        return Seconds(*(price * hours for hours in self.device_hours))

    @property
    def words(self) -> str:
        """The recommended options, to paste behind a verb."""
        if self.best is None:
            return ""
        nodes = -(-self.best.job.ranks // self.hardware.devices_per_node)
        return f"{self.best.words} trainer.devices={self.best.job.ranks // nodes} trainer.num_nodes={nodes}"

    def as_dict(self) -> dict[str, Any]:
        """For `format=json`: times in seconds, memory in GiB, disk in bytes."""
        job = self.run.job
        ranges = {
            "step_seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "hours": self.hours,
            "device_hours": self.device_hours,
            "cost": self.cost,
        }
        return {
            "recipe": self.recipe,
            "hardware": self.hardware.name,
            "measured_on_a_gpu": False,
            "devices": self.devices,
            "strategy": job.strategy,
            "memory": self.memory_name,
            "row_tokens": job.row_tokens,
            "rows_per_step": self.run.rows_per_step,
            "micro_batch_size": job.rows,
            "micro_batches": job.micro_batches,
            "parameters": job.model.num_parameters,
            "trained": job.trained,
            "fits": self.need.fits,
            "need": {**self.need._asdict(), "short": self.need.short, "host_short": self.need.host_short},
            "longest_context": self.longest_context,
            "recommended": self.words or None,
            "least_devices": self.best_devices,
            "steps": self.steps,
            "tokens": self.tokens,
            "tokens_are_exact": self.tokens_are_exact,
            "model_flops_per_step": self.step_flops,
            **{name: None if value is None else list(value) for name, value in ranges.items()},
            "disk": self.disk._asdict(),
            "prepared": self.prepared is not None,
            "calibration": None if self.calibration is None else asdict(self.calibration),
            "notes": list(self.run.notes),
        }


def plan_run(
    composed: Composed, hardware: Hardware, *, calibration: Calibration | None = None, look_at_data: bool = True
) -> Plan:
    """Plan one stage.

    Args:
        composed: Its configuration, with the devices that it is planned for.
        hardware: What it would run on.
        calibration: Corrects memory and time.
        look_at_data: Ask prepared data, where there is some.

    Raises:
        ConfigError: Something that a plan needs is missing or cannot be.
    """
    run = read_run(composed, on_gpu=hardware.on_gpu)
    prepared = prepared_run(composed.config) if look_at_data else None
    run = run if prepared is None else _with_planned_rows(run, prepared)
    job, factor = run.job, 1.0 if calibration is None else calibration.memory_factor
    steps = run.max_steps if prepared is None else prepared.num_steps
    whole = None if steps is None else steps * run.tokens_per_step
    seen = _seen_per_step(run, prepared)
    found = choices(
        job,
        hardware,
        memory_options(),
        rows_per_rank=run.rows_per_rank,
        seen=seen / job.ranks,
        factor=factor,
    )
    tokens = whole if prepared is None else prepared.num_tokens
    best = fastest(found)
    return Plan(
        recipe=composed.choices["recipe"],
        hardware=hardware,
        run=run,
        memory_name=composed.choices["memory"],
        prepared=prepared,
        need=need(job, hardware, factor=factor),
        longest_context=longest_rows(job, hardware, factor=factor),
        best=best,
        best_devices=job.ranks if best else _least_devices(run, hardware, factor=factor),
        seconds=_seconds(run, hardware, seen=seen, calibration=calibration),
        steps=steps,
        tokens=tokens,
        tokens_are_exact=prepared is not None or run.filled,
        step_flops=_model_flops(run, prepared, seen=seen),
        disk=disk_of(run, prepared, steps=steps, tokens=tokens),
        calibration=calibration,
    )


def _with_planned_rows(run: Run, prepared: PreparedRun) -> Run:
    """The run with the rows that its data gives."""
    per_rank = -(-prepared.rows_per_step // run.job.ranks)
    rows = min(run.job.rows, per_rank) if run.rows_are_most else run.job.rows
    longest = min(-(-prepared.longest_row // 64) * 64, run.job.row_tokens)
    job = replace(run.job, row_tokens=longest, rows=rows, micro_batches=-(-per_rank // rows))
    return replace(run, job=job, rows_per_step=prepared.rows_per_step, rows_are_most=False)


def _seen_per_step(run: Run, prepared: PreparedRun | None) -> float:
    """`flops.pairs` of the documents of a step over all ranks."""
    if prepared is not None:
        return prepared.seen / prepared.num_steps
    return run.rows_per_step * pairs([run.job.row_tokens])


def _model_flops(run: Run, prepared: PreparedRun | None, *, seen: float) -> float:
    job = run.job
    tokens = run.tokens_per_step if prepared is None else prepared.num_tokens / prepared.num_steps
    adapters = None if job.adapter is None else job.adapter_weights
    return model_flops(job.model, tokens=tokens, seen=seen, adapter_weights=adapters)


def _seconds(run: Run, hardware: Hardware, *, seen: float, calibration: Calibration | None) -> Seconds | None:
    if calibration is not None:
        work = _hardware_flops(run, seen=seen)
        return Seconds(*(work / speed for speed in (calibration.most_flops, calibration.least_flops)))
    return step_seconds(run.job, hardware, seen=seen / run.job.ranks)


def hardware_flops(plan: Plan) -> float:
    """FLOPs of one rank in a step of a plan, recomputation included."""
    return _hardware_flops(plan.run, seen=_seen_per_step(plan.run, plan.prepared))


def _hardware_flops(run: Run, *, seen: float) -> float:
    return sum(rank_flops(run.job, seen=seen / run.job.ranks))


def _least_devices(run: Run, hardware: Hardware, *, factor: float) -> int | None:
    """The least power of two of devices for which some options fit."""
    memory, ranks = memory_options(), 2 * run.job.ranks
    while ranks <= min(MOST_DEVICES, run.rows_per_step):
        job = replace(run.job, ranks=ranks)
        if fastest(choices(job, hardware, memory, rows_per_rank=-(-run.rows_per_step // ranks), factor=factor)):
            return ranks
        ranks *= 2
    return None
