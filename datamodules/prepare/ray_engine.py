"""Preparation on a cluster: one Ray Data job, a shard a block, wherever there is a free core.

Workers read shards and leave finished parts in `cache_dir`, which all machines must see; only names and counts travel
through Ray. A worker that dies has left nothing under a final name, and Ray gives its shard to another one. When the
job itself is killed, the same command goes on with the parts that are finished.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from datamodules.prepare.parts import Job, Part, Unit, make_part
from datamodules.prepare.progress import Progress
from datamodules.prepare.samples import SampleMaker

MARK = "driver"
"""A file in the folder of the parts, by which a worker knows that it sees the folder of the driver."""


@dataclass(frozen=True)
class RayEngine:
    """Prepares on a Ray cluster.

    Args:
        address: Of the cluster, as `ray.init` takes it: `auto`, `ray://…`; None uses this machine alone, or the cluster
            that the environment names.
        num_cpus_per_shard: Cores that one shard takes; it is tokenised on as many threads.
        max_retries: How often a shard is given to another worker because its worker died.
    """

    address: str | None = None
    num_cpus_per_shard: int = 1
    max_retries: int = 5

    def __post_init__(self) -> None:
        for key, least in (("num_cpus_per_shard", 1), ("max_retries", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"{key}={getattr(self, key)} must be at least {least}; set prepare.engine.{key}")

    def run(self, job: Job, units: Sequence[Unit], *, progress: Progress) -> None:
        """Make the parts of `units` that are not there yet.

        Raises:
            ValueError: ray is missing, a worker does not see `cache_dir`, or a shard cannot be read.
        """
        waiting = [unit for unit in units if not job.part(unit).is_dir()]
        for unit in units:
            if job.part(unit).is_dir():
                progress.finish(unit)
        if not waiting:
            return
        job = replace(job, folder=job.folder.resolve())  # workers stand in other folders
        (job.folder / MARK).touch()
        with _cluster(self.address) as ray:
            for index, fault in self._results(ray, job, waiting):
                if fault:
                    raise ValueError(fault)
                documents = Part(job.part(units[index])).documents
                progress.advance(int(documents["num_tokens"].sum()), 0, len(documents))
                progress.finish(units[index])

    def _results(self, ray: Any, job: Job, waiting: Sequence[Unit]) -> Iterator[tuple[int, str]]:
        """Index and fault of every part, as they are made; no fault is ''."""
        work = ray.put((job, list(waiting)))  # once to every machine, instead of with every shard

        def make(block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            made = [_make(self, work, int(position)) for position in block["id"]]
            return {"index": np.array([index for index, _ in made]), "fault": np.array([fault for _, fault in made])}

        blocks = ray.data.range(len(waiting), override_num_blocks=len(waiting))
        parts = blocks.map_batches(make, batch_size=1, num_cpus=self.num_cpus_per_shard)
        try:
            for row in parts.iter_rows():
                yield int(row["index"]), str(row["fault"])
        except ray.exceptions.RayError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise ValueError(
                f"the Ray job stopped ({reason}); run the same command again to go on with the finished parts"
            ) from error


def _make(engine: RayEngine, work: Any, position: int) -> tuple[int, str]:
    """In a worker: make one part; what is wrong with the data comes back as a sentence, not as a traceback of Ray's."""
    job, waiting, maker = _received(work, engine.num_cpus_per_shard)
    unit = waiting[position]
    try:
        if not (job.folder / MARK).exists():
            raise ValueError(
                f"{job.folder} is not the same folder on all machines of the cluster; set cache_dir to a shared one"
            )
        # Ray Data gives a shard to new workers without end; each that died has left its unfinished folder.
        died = len(list(job.folder.glob(f"{job.part(unit).name}.*.partial")))
        if died > engine.max_retries:
            raise ValueError(
                f"{unit.shard.name}: {died} workers died of it, one after the other; give a shard more memory with"
                " prepare.engine.num_cpus_per_shard, or raise prepare.engine.max_retries"
            )
        make_part(job, unit, maker=maker)
    except (ValueError, OSError) as error:
        where = f" (on machine {socket.gethostname()})" if isinstance(error, OSError) else ""
        return unit.index, f"{error or type(error).__name__}{where}"
    return unit.index, ""


_last: dict[str, tuple[Job, list[Unit], SampleMaker]] = {}
"""In a worker: what it received last. Unpacking a tokenizer takes longer than a small shard."""


def _received(work: Any, num_threads: int) -> tuple[Job, list[Unit], SampleMaker]:
    import ray  # pyright: ignore[reportMissingImports]

    key = f"{work.hex()} {num_threads}"
    if key not in _last:
        job, waiting = ray.get(work)
        _last.clear()
        _last[key] = (job, waiting, job.maker(num_threads=num_threads))
    return _last[key]


@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """Ray, connected; a connection that was there before stays."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            "prepare/engine=ray needs a package that is missing; run pip install 'ray[data]>=2.50', or set"
            " prepare/engine=local"
        ) from error
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(address=address, include_dashboard=False if address is None else None, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"no Ray cluster answers at {address or 'this machine'} ({reason}); set prepare.engine.address"
            ) from error
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    shown, context.enable_progress_bars = context.enable_progress_bars, False  # we show one of our own
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        context.enable_progress_bars = shown
        logger.setLevel(level)
        if ours:
            ray.shutdown()
