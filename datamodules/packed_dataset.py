"""The index-addressable data set: sequence i is a pure function of (stores, configuration, seed, i)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from datamodules.batch import IGNORE_INDEX, PADDING_DOCUMENT
from datamodules.mixture import Mixture
from datamodules.packing.concat_chunk import ConcatChunk
from datamodules.packing.plan import PackingPlan, Segment
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
    """

    def __init__(
        self,
        stores: Mapping[str, TokenStore],
        *,
        mixture: Mixture,
        packing: ConcatChunk,
        seed: int,
        pad_token_id: int = 0,
    ) -> None:
        self.stores = stores
        self.mixture = mixture
        self.packing = packing
        self.pad_token_id = pad_token_id
        self.plans: dict[str, PackingPlan] = {
            name: packing.plan(lengths=stores[name].lengths, seed=seed + 7919 * order)
            for order, name in enumerate(mixture.sources)
        }

    def __len__(self) -> int:
        return self.mixture.num_sequences

    def provenance(self, i: int) -> tuple[str, list[Segment]]:
        """Where sequence i comes from: its source and its pieces of documents."""
        source, j = self.mixture.locate(i)
        return source, self.plans[source].segments(j)

    def __getitem__(self, i: int) -> Sequence:
        source, segments = self.provenance(i)
        store, packing = self.stores[source], self.packing
        pieces = [store.slice(*segment) for segment in segments]
        lengths = [len(piece) for piece in pieces]
        used = sum(lengths)
        padding = packing.max_seqlen - used
        tokens = np.concatenate([*pieces, np.full(padding, self.pad_token_id, dtype=np.int64)])
        documents = np.repeat(np.arange(len(pieces)), lengths) if packing.document_mask else np.zeros(used, np.int64)
        positions = np.concatenate([np.arange(n) for n in lengths]) if packing.reset_positions else np.arange(used)
        return Sequence(
            input_ids=tokens,
            labels=np.concatenate([tokens[:used], np.full(padding, IGNORE_INDEX, dtype=np.int64)]),
            position_ids=np.concatenate([positions, np.arange(padding)]).astype(np.int64),
            document_ids=np.concatenate([documents, np.full(padding, PADDING_DOCUMENT)]).astype(np.int64),
        )
