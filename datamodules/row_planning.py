"""The rows of a run, planned once and kept; and who computes which row of a step.

A plan lies under `<cache_dir>/plans/<key>`; the key changes with the token stores and with whatever decides the order
of the rows. Every rank, and a later run of the same settings, opens the same files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datamodules.length_schedules.rows import Rows, RowSchedule, open_rows, save_rows
from datamodules.mixture import Mixture
from datamodules.packing.balance import balanced_steps, row_cost, rows_of_ranks
from datamodules.packing.plan import EMPTY_ROW, Packing, RunPlan
from datamodules.packing.run import RunRequest, exhaustions
from datamodules.packing.sample_steps import ends_of_sources
from datamodules.tokens.store import TokenStore, locked

PLAN_VERSION = 2
"""Changes with the order of the rows that one configuration gives."""


class DocumentLengths(Mapping[str, np.ndarray]):
    """The document lengths of some stores, worked out from their memory-mapped offsets whenever they are asked for.

    Only who plans rows, or counts them, needs lengths, and needs those of one source after the other; ten million of
    them are 80 MB, which no rank has to keep.

    Args:
        stores: Source -> its tokens.
    """

    def __init__(self, stores: Mapping[str, TokenStore]) -> None:
        self._stores = dict(stores)

    def __getitem__(self, source: str) -> np.ndarray:
        return self._stores[source].lengths

    def __iter__(self) -> Iterator[str]:
        return iter(self._stores)

    def __len__(self) -> int:
        return len(self._stores)


def phases_note(mixture: Mixture, *, num_tokens: int) -> list[str]:
    """A note where a run ends before the phases of its mixture do.

    Args:
        mixture: Of the run.
        num_tokens: Tokens of the run.
    """
    ends = mixture.phase_ends
    if not len(ends) or num_tokens > ends[-1]:
        return []
    last = int(np.searchsorted(ends, num_tokens)) + 1
    return [
        f"corpus.phases last for {ends[-1]:,.0f} tokens and the run for {num_tokens:,}: it ends in phase {last} of"
        f" {len(ends)}, and corpus.mixture is never reached; shorten corpus.phases or raise data.max_steps"
    ]


def ends_notes(plan: RunPlan, request: RunRequest) -> list[str]:
    """A note for every source that is read as often as it may before the last step."""
    if request.by_samples:
        counted = len(plan.documents) if request.mix_by == "samples" else plan.num_tokens
        ended = [name for name, end in ends_of_sources(request) if end < counted]
    else:
        ended = [name for name, _ in exhaustions(request, num_tokens=plan.num_tokens)]
    steps = {name: plan.last_row(name) * request.num_steps // len(plan) + 1 for name in ended}
    return [
        f"{name} is read out after {step:,} step{'' if step == 1 else 's'} (corpus.sampling.{name}.max_epochs); the"
        " other sources share the rest of the run"
        for name, step in steps.items()
        if step < request.num_steps
    ]


def unread_notes(plan: RunPlan, request: RunRequest) -> list[str]:
    """A note for every source whose share is too small for the run to read one of its documents."""
    if request.mixture.phase_ends:  # there, that is for what comes beyond the run's end to say
        return []
    shares = zip(plan.names, request.mixture.given(1.0), strict=True)
    return [
        f"{name} has a share of {share:.2g} and is not read once in this run of {len(plan.documents):,} documents;"
        f" raise corpus.mixture.{name}, or data.max_steps for a longer run"
        for number, (name, share) in enumerate(shares)
        if share > 0 and not (plan.sources == number).any()
    ]


def validation_note(num_rows: int, *, asked: int) -> list[str]:
    """A note where the validation corpus does not fill the rows that were asked for."""
    if num_rows >= asked:
        return []
    return [
        f"validation reads {num_rows:,} sequences and not the {asked:,} of data.validation_sequences: corpus.validation"
        " holds no more, and its documents are read once"
    ]


@dataclass(frozen=True)
class RowPlanner:
    """Plans rows and shares them out.

    Args:
        packing: How documents fill a row.
        length_schedule: How sequences change in length with the step.
        cache_dir: Where plans are kept.
        balance_window_steps: Rows are exchanged between the steps of windows of so many steps; 0 leaves them.
        quadratic_cost: What attention costs beside the linear layers (`packing.balance.quadratic_cost`).
        one_document: Every token of a row sees all earlier ones, whatever the packing says of documents.
    """

    packing: Packing
    length_schedule: RowSchedule
    cache_dir: Path
    balance_window_steps: int = 0
    quadratic_cost: float = 0.0
    one_document: bool = False

    def rows(self, request: RunRequest, stores: Mapping[str, TokenStore]) -> Rows:
        """The rows of a run.

        Raises:
            ValueError: The sources do not suffice, or do not suit the schedule.
        """
        key = self._key(request, stores)
        folder = self.cache_dir / "plans" / key
        with locked(folder.with_name(f"{key}.lock")):
            if not folder.is_dir():
                save_rows(self._planned(request), folder)
        return open_rows(folder)

    def _key(self, request: RunRequest, stores: Mapping[str, TokenStore]) -> str:
        parts = [
            *(PLAN_VERSION, {name: store.folder.name for name, store in stores.items()}, request.mixture.describe()),
            *(repr(self.packing), repr(self.length_schedule), request.num_rows, request.rows_per_step, request.seed),
            *(request.mix_at, request.at_exhaustion, repr(sorted(request.sampling.items()))),
            *([request.by_samples, request.mix_by, request.may_end] if request.by_samples or request.may_end else []),
            # What rows cost decides which of them change places.
            self.balance_window_steps and [self.balance_window_steps, self.quadratic_cost, self.one_document],
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def _planned(self, request: RunRequest) -> Rows:
        rows = self.length_schedule.rows(request)
        if self.balance_window_steps:
            order = balanced_steps(
                self.costs(rows.plan),
                rows_per_step=request.rows_per_step,
                window_steps=self.balance_window_steps,
                seed=request.seed,
            )
            rows = rows._replace(plan=rows.plan.take(order))
        notes = [*ends_notes(rows.plan, request), *unread_notes(rows.plan, request)]
        notes += phases_note(request.mixture, num_tokens=rows.plan.num_tokens)
        return rows._replace(notes=(*rows.notes, *notes))

    def share(self, plan: RunPlan, rows: np.ndarray, rank: int, *, world_size: int) -> np.ndarray:
        """The rows of a step that a rank computes, so that all ranks take about as long.

        Args:
            plan: Of the run.
            rows: Of one step, [n] int64; empty ones go, and where the others do not divide by `world_size`,
                `EMPTY_ROW` takes the missing places.
            rank: This rank.
            world_size: Number of data-parallel ranks.
        """
        rows = rows[plan.offsets[rows + 1] > plan.offsets[rows]]
        costs = np.zeros(-(-len(rows) // world_size) * world_size, dtype=np.int64)
        costs[: len(rows)] = self.costs(plan.take(rows))
        rows = np.concatenate([rows, np.full(len(costs) - len(rows), EMPTY_ROW)])
        if (costs == costs[0]).all():
            return rows[rank::world_size]
        size = getattr(self.packing, "rows_per_group", 1)
        if len(rows) % (size * world_size):
            size = 1
        groups = np.argsort(-costs, kind="stable").reshape(-1, size)  # rows of like length stay together
        longest = costs[groups].max(axis=1)
        return rows[groups[rows_of_ranks(longest, num_ranks=world_size)[rank]].reshape(-1)]

    def costs(self, plan: RunPlan) -> np.ndarray:
        """What each row costs to compute, [num_rows] int64."""
        if self.one_document or not self.packing.document_mask:
            return row_cost(plan.row_tokens, offsets=np.arange(len(plan) + 1), quadratic=self.quadratic_cost)
        return row_cost(plan.lengths, offsets=plan.offsets, quadratic=self.quadratic_cost)
