"""The index-addressable data set: sequence i is a pure function of (stores, configuration, seed, i)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from datamodules.batch import IGNORE_INDEX, PADDING_DOCUMENT
from datamodules.mixture import Dealer
from datamodules.packing.concat_chunk import ConcatChunk
from datamodules.packing.plan import PackingPlan, Segment, source_plans
from datamodules.tokens.store import TokenStore


class Sequence(NamedTuple):
    """One row before batching; the fields of `Batch`, each [T] int64."""

    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray
    document_ids: np.ndarray


class PackedDataset(Dataset[Sequence]):
    """Packed sequences of a mixture of token stores.

    Args:
        stores: Source -> its tokens.
        mixture: Deals sequence i to a source.
        packing: How documents fill a row.
        seed: Orders the documents of each source.
        pad_token_id: Fills a row that its segments do not.
        plans: Source -> the segments of its rows; None asks `packing`.
        sequence_lengths: [num_steps], for each step the length of the sequences that its rows are cut into; None cuts
            no row. A length divides `max_seqlen`.
        sequences_per_step: Rows of one optimizer step.
    """

    def __init__(
        self,
        stores: Mapping[str, TokenStore],
        *,
        mixture: Dealer,
        packing: ConcatChunk,
        seed: int,
        pad_token_id: int = 0,
        plans: Mapping[str, PackingPlan] | None = None,
        sequence_lengths: np.ndarray | None = None,
        sequences_per_step: int = 1,
    ) -> None:
        self.stores = stores
        self.mixture = mixture
        self.packing = packing
        self.pad_token_id = pad_token_id
        self.sequence_lengths = sequence_lengths
        self.sequences_per_step = sequences_per_step
        if plans is None:
            lengths = {name: stores[name].lengths for name in mixture.sources}
            plans = source_plans(packing, lengths, sources=mixture.sources, seed=seed)
        self.plans = plans

    def __len__(self) -> int:
        return self.mixture.num_sequences

    def provenance(self, i: int) -> tuple[str, list[Segment]]:
        """Where sequence i comes from: its source and its pieces of documents."""
        source, j = self.mixture.locate(i)
        return source, self.plans[source].segments(j)

    def sequence_length(self, i: int) -> int:
        """Tokens of the sequences that row i is cut into; the whole row's where it is not."""
        if self.sequence_lengths is None:
            return self.packing.max_seqlen
        return int(self.sequence_lengths[i // self.sequences_per_step])

    def __getitem__(self, i: int) -> Sequence:
        source, segments = self.provenance(i)
        store, packing = self.stores[source], self.packing
        pieces = [store.slice(*segment) for segment in segments]
        lengths = [len(piece) for piece in pieces]
        used = sum(lengths)
        padding = packing.max_seqlen - used
        tokens = np.concatenate([*pieces, np.full(padding, self.pad_token_id, dtype=np.int64)])
        cuts = np.arange(used) // self.sequence_length(i)  # [used], which sequence of the row
        both = np.repeat(np.arange(len(pieces)), lengths) + cuts  # rises by 1 or 2 where either begins anew
        return Sequence(
            input_ids=tokens,
            labels=np.concatenate([tokens[:used], np.full(padding, IGNORE_INDEX, dtype=np.int64)]),
            position_ids=np.concatenate([_restarting(both if packing.reset_positions else cuts), np.arange(padding)]),
            document_ids=np.concatenate(
                [_numbered(both if packing.document_mask else cuts), np.full(padding, PADDING_DOCUMENT)]
            ),
        )


def _begins(groups: np.ndarray) -> np.ndarray:
    """Where a value differs from the one before it, [n] bool."""
    return np.diff(groups, prepend=-1) != 0


def _numbered(groups: np.ndarray) -> np.ndarray:
    """0 0 2 3 3 -> 0 0 1 2 2"""
    return np.cumsum(_begins(groups)) - 1


def _restarting(groups: np.ndarray) -> np.ndarray:
    """0 0 2 3 3 -> 0 1 0 0 1"""
    places = np.arange(len(groups))
    return places - np.maximum.accumulate(np.where(_begins(groups), places, 0))
