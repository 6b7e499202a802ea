"""What a length schedule makes of a run: who fills which row, and how long a sequence is at each step.

Rows hold `max_seqlen` tokens at every step, whatever the schedule. So the tokens of a step and the memory that it takes
stay constant, and only what a token can see changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from datamodules.mixture import Dealer, Mixture
from datamodules.packing.concat_chunk import ConcatChunk
from datamodules.packing.plan import PackingPlan


class Rows(NamedTuple):
    """The rows of a run."""

    mixture: Dealer
    plans: Mapping[str, PackingPlan]
    context_lengths: np.ndarray  # [num_steps] int64, tokens of the longest sequence that a step can hold
    cut: bool = False  # rows are cut into sequences of that length
    window: bool = False  # rows are whole, and attention is limited to fragments of that length
    notes: tuple[str, ...] = ()  # what the user should know, such as tokens that are dropped


class RowSchedule(Protocol):
    """How the rows of a run change with the step."""

    @property
    def keeps_phases(self) -> bool:
        """Whether `corpus.phases` still hold."""
        ...

    def rows(
        self,
        mixture: Mixture,
        *,
        lengths: Mapping[str, np.ndarray],
        packing: ConcatChunk,
        seed: int,
        sequences_per_step: int,
    ) -> Rows:
        """Plan a run.

        Args:
            mixture: Shares of the sources, and how many sequences the run has: whole steps.
            lengths: Source -> tokens of its documents, [num_documents] int64.
            packing: How documents fill a row.
            seed: Orders the documents of each source.
            sequences_per_step: Rows of one optimizer step, over all micro-batches and ranks.

        Raises:
            ValueError: The documents do not suit the schedule.
        """
        ...
