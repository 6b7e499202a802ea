"""Settings of a data module that do not go together, each refused in a sentence that names the key to change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datamodules.packed_dataset import LOSS_WEIGHTINGS
from datamodules.packing.run import MIX_BY

if TYPE_CHECKING:
    from datamodules.base import PackedDataModule


def refuse_what_cannot_be(data: PackedDataModule) -> None:
    """Check a data module's arguments.

    Raises:
        ValueError: Two of them contradict one another, or one is of no known kind.
    """
    _refuse_lengths(data)
    _refuse_sources(data)
    _refuse_orders(data)


def _refuse_lengths(data: PackedDataModule) -> None:
    """How long a step and a run are."""
    if (data.tokens_per_step is None) == (data.samples_per_step is None):
        raise ValueError(
            f"data.tokens_per_step={data.tokens_per_step} and data.samples_per_step={data.samples_per_step}: a step"
            " is so many tokens or so many samples; set one of them and the other to null"
        )
    if data.tokens_per_step is not None and data.tokens_per_step % data.packing.max_seqlen:
        raise ValueError(
            f"tokens_per_step={data.tokens_per_step} is not a multiple of max_seqlen={data.packing.max_seqlen};"
            " set data.tokens_per_step or packing.max_seqlen"
        )
    if (data.max_steps is None) == (data.epochs is None):
        raise ValueError(
            f"data.max_steps={data.max_steps} and data.epochs={data.epochs}: a run is so many steps or so many"
            " epochs; set one of them and the other to null"
        )
    if data.epochs is not None and (data.ratios is not None or data.phases):
        raise ValueError(
            f"data.epochs={data.epochs} reads every source whole, which corpus.mixture and corpus.phases do not;"
            " set both to null, or data.max_steps instead"
        )


def _refuse_sources(data: PackedDataModule) -> None:
    """Names of sources."""
    mixed = {name for ratios in (data.ratios or {}, *(phase.ratios for phase in data.phases)) for name in ratios}
    if unknown := mixed - set(data.sources):
        raise ValueError(f"corpus.mixture names {sorted(unknown)}, but corpus.sources are {sorted(data.sources)}")
    if unknown := set(data.sampling) - set(data.sources):
        raise ValueError(f"corpus.sampling names {sorted(unknown)}, but corpus.sources are {sorted(data.sources)}")
    if "validation" in data.sources:
        raise ValueError("a source cannot be called 'validation', which is corpus.validation; rename the source")


def _refuse_orders(data: PackedDataModule) -> None:
    """Orders and weights that others undo."""
    if data.mix_by not in MIX_BY:
        raise ValueError(f"data.mix_by={data.mix_by} is not known; allowed are {', '.join(MIX_BY)}")
    if data.loss_weighting not in LOSS_WEIGHTINGS:
        raise ValueError(
            f"data.loss_weighting={data.loss_weighting} is not known; allowed are {', '.join(LOSS_WEIGHTINGS)}"
        )
    if data.augmentation is not None and data.loss_weighting != "token":
        raise ValueError(
            f"data.loss_weighting={data.loss_weighting} weighs documents, which an augmentation takes apart; set it"
            " to token, or augmentation=none"
        )
    if data.samples_per_step is not None and data.balance_window_steps:
        raise ValueError(
            "data.samples_per_step says which samples a step holds, which data.balance_window_steps would change; set"
            " it to 0"
        )
    if data.mix_by == "samples" and data.phases:
        raise ValueError("corpus.phases counts tokens, and data.mix_by=samples does not; set one of them otherwise")
    if data.phases and not data.length_schedule.keeps_phases:
        raise ValueError(
            "corpus.phases would be undone by the order of length_schedule; set corpus.phases=null or another"
            " length_schedule"
        )
    if data.balance_window_steps and not data.length_schedule.keeps_phases:
        raise ValueError(
            "data.balance_window_steps would undo the order of length_schedule; set it to 0 or another length_schedule"
        )
