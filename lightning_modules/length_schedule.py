"""What a training module asks about the sequences of its steps; `datamodules` decides it."""

from __future__ import annotations

from typing import Protocol


class LengthSchedule(Protocol):
    """Lengths by optimizer step, counted from 0."""

    def context_length(self, step: int) -> int:
        """Tokens of the longest sequence of the step."""
        ...

    def attention_window(self, step: int) -> int | None:
        """Tokens of the fragments of a row that attention stays within; None for the whole row."""
        ...

    def tokens_read(self, step: int) -> int:
        """Tokens of all ranks from the run's first step to the end of this one, padding not among them."""
        ...
