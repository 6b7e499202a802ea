"""What a run reads of each source: shares asked and achieved, epochs, lengths, padding."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from datamodules.packed_dataset import PackedDataset
from datamodules.packing.plan import RunPlan
from datamodules.packing.run import RunRequest

COUNTED_ROWS = 64
"""Rows in which the ledger counts what an augmentation leaves no room for."""


class SourceLedger(NamedTuple):
    """What the run reads of one source."""

    source: str
    tokens: int
    share: float  # of the run's tokens, or of its samples where the mixture is of these
    asked: float  # the mixture's share over as many
    epochs: float  # of the source, by tokens and before its length rules
    pieces: int  # documents, and parts of documents, that rows hold
    lengths: dict[int, int]  # tokens in pieces of at least so many and fewer than twice as many tokens


class Ledger(NamedTuple):
    """What a run reads."""

    sources: list[SourceLedger]
    rows: int
    tokens: int
    padding: float  # share of the rows' places that hold no token
    counted: str = "tokens"  # what shares are of: tokens or samples
    pushed_out: float = 0.0  # share of the tokens that inserted ones push out of their rows, of some rows of the run

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**self._asdict(), "sources": [entry._asdict() for entry in self.sources]}


def ledger(plan: RunPlan, request: RunRequest) -> Ledger:
    """Count what the rows of a run hold."""
    lengths = plan.lengths
    total = int(lengths.sum())
    by_samples = request.mix_by == "samples"
    counted = len(lengths) if by_samples else total
    asked = request.mixture.given(float(counted)) / max(counted, 1)
    entries = []
    for number, name in enumerate(plan.names):
        own = lengths[plan.sources == number]
        tokens = int(own.sum())
        octaves = np.bincount(np.log2(own).astype(np.int64), weights=own) if len(own) else np.zeros(0)
        entries.append(
            SourceLedger(
                source=name,
                tokens=tokens,
                share=(len(own) if by_samples else tokens) / max(counted, 1),
                asked=float(asked[number]),
                epochs=tokens / max(int(request.lengths[name].sum()), 1),
                pieces=len(own),
                lengths={1 << octave: int(held) for octave, held in enumerate(octaves) if held},
            )
        )
    rows = int(np.count_nonzero(np.diff(plan.offsets)))  # an empty one takes no place
    places = rows * request.packing.max_seqlen
    padding = 1 - total / max(places, 1)
    return Ledger(sources=entries, rows=rows, tokens=total, padding=padding, counted=request.mix_by)


def pushed_out(data: PackedDataset) -> float:
    """Share of the tokens that the augmentation leaves no room for, over rows that are spread over the run."""
    if data.augmentation is None:
        return 0.0
    rows = np.unique(np.linspace(0, len(data) - 1, num=COUNTED_ROWS).astype(int))
    held = int(data.plan.row_tokens[rows].sum())
    return sum(data.num_pushed_out(int(i)) for i in rows) / held


def ledger_table(found: Ledger) -> str:
    """The ledger as a Markdown table."""
    share = "share" if found.counted == "tokens" else f"share of {found.counted}"
    lines = [
        f"| source | tokens | {share} | asked | epochs | pieces | median token's piece |",
        "|:-------|-------:|------:|------:|-------:|-------:|---------------------:|",
    ]
    for entry in found.sources:
        lines.append(
            f"| {entry.source} | {entry.tokens:,} | {entry.share:.3f} | {entry.asked:.3f} | {entry.epochs:.2f}"
            f" | {entry.pieces:,} | {_median_octave(entry.lengths)} |"
        )
    lines += ["", f"{found.rows:,} rows, {found.tokens:,} tokens, {found.padding:.2%} padding"]
    if found.pushed_out:
        lines[-1] += f", {found.pushed_out:.2%} of the tokens pushed out of their rows by inserted ones"
    return "\n".join(lines)


def _median_octave(lengths: dict[int, int]) -> str:
    """The octave of lengths that half of the tokens stand in or below."""
    half, seen = sum(lengths.values()) / 2, 0
    for low, tokens in sorted(lengths.items()):
        seen += tokens
        if seen >= half:
            return f"{low:,} to {2 * low - 1:,}"
    return ""
