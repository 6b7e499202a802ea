"""Preparation on one machine: shards one after the other, each on all threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datamodules.prepare.parts import Job, Unit, make_part
from datamodules.prepare.progress import Progress


@dataclass(frozen=True)
class LocalEngine:
    """Prepares on this machine.

    Args:
        num_threads: Threads that tokenise; None takes one for each core.
    """

    num_threads: int | None = None

    def __post_init__(self) -> None:
        if self.num_threads is not None and self.num_threads < 1:
            raise ValueError(f"num_threads={self.num_threads} must be at least 1; set prepare.engine.num_threads")

    def run(self, job: Job, units: Sequence[Unit], *, progress: Progress) -> None:
        """Make the parts of `units` that are not there yet."""
        maker = job.maker(num_threads=self.num_threads)
        for unit in units:
            make_part(job, unit, maker=maker, advance=progress.advance)
            progress.finish(unit)
