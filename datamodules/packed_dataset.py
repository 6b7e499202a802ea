"""The index-addressable data set: row i is a pure function of (stores, configuration, seed, i)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from datamodules.augmentations.base import Augmentation, TrainingSequence
from datamodules.batch import IGNORE_INDEX
from datamodules.packing.plan import EMPTY_ROW, Packing, RunPlan, Segment
from datamodules.tokens.store import TokenStore


class Sequence(NamedTuple):
    """One row before batching; the fields of `Batch`, each [n] with n at most `max_seqlen`: `collate` pads.

    All are int64 but the weights, float32, which are None where every label counts the same.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray
    document_ids: np.ndarray
    source_ids: np.ndarray
    loss_weights: np.ndarray | None = None


LOSS_WEIGHTINGS = {"token": 0.0, "sample": 1.0, "sqrt": 0.5}
"""A label of a document with n labels counts n to the minus this."""


class PackedDataset(Dataset[Sequence]):
    """The rows of a run over token stores.

    Args:
        stores: Source -> its tokens.
        plan: The pieces of documents in each row.
        packing: What the pieces of a row see of one another.
        augmentation: Makes a training sequence of a row's pieces; None takes them as they are.
        seed: Of the augmentation's randomness.
        sequence_lengths: [num_steps], for each step the length of the sequences that its rows are cut into; None cuts
            no row. A length divides `max_seqlen`.
        rows_per_step: Rows of one optimizer step.
        loss_weighting: What the loss of a label counts for, by `LOSS_WEIGHTINGS`.
    """

    def __init__(
        self,
        stores: Mapping[str, TokenStore],
        *,
        plan: RunPlan,
        packing: Packing,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        sequence_lengths: np.ndarray | None = None,
        rows_per_step: int = 1,
        loss_weighting: str = "token",
    ) -> None:
        self.stores = stores
        self.plan = plan
        self.packing = packing
        self.augmentation = augmentation
        self.seed = seed
        self.sequence_lengths = sequence_lengths
        self.rows_per_step = rows_per_step
        self.loss_weighting = loss_weighting
        self._masked = any(store.loss_mask is not None for store in stores.values())

    def __len__(self) -> int:
        return len(self.plan)

    def provenance(self, i: int) -> list[Segment]:
        """Where row i comes from: its pieces of documents."""
        return self.plan.segments(i)

    def sequence_length(self, i: int) -> int:
        """Tokens of the sequences that row i is cut into; the whole row's where it is not."""
        if self.sequence_lengths is None:
            return self.packing.max_seqlen
        return int(self.sequence_lengths[i // self.rows_per_step])

    def num_pushed_out(self, i: int) -> int:
        """Tokens of row i's documents that do not fit any more beside what the augmentation inserts."""
        count = getattr(self.augmentation, "num_pushed_out", None)
        if count is None:
            return 0
        return count(self._pieces(i), max_seqlen=self.packing.max_seqlen, generator=self._generator(i))

    def _pieces(self, i: int) -> list[np.ndarray]:
        return [self.stores[source].slice(document, start, end) for source, document, start, end in self.provenance(i)]

    def _generator(self, i: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, i))

    def __getitem__(self, i: int) -> Sequence:
        """Row i, without padding; `EMPTY_ROW`, and a row that its step does not need, hold nothing."""
        segments = [] if i == EMPTY_ROW else self.provenance(i)
        if not segments:
            return self._weighted([], Sequence(*(np.zeros(0, dtype=np.int64) for _ in range(5))))
        pieces = self._pieces(i)
        if self.augmentation is None:
            made = self._as_they_are(i, pieces)
        else:
            made = self.augmentation(pieces, max_seqlen=self.packing.max_seqlen, generator=self._generator(i))
        labels = made.input_ids
        if not made.loss_mask.all():
            labels = np.where(made.loss_mask, made.input_ids, IGNORE_INDEX)
        sources = self._sources(segments, made)
        return self._weighted(segments, Sequence(made.input_ids, labels, made.position_ids, made.document_ids, sources))

    def _weighted(self, segments: list[Segment], row: Sequence) -> Sequence:
        """The row with the weights of its labels, where they differ."""
        power = LOSS_WEIGHTINGS[self.loss_weighting]
        if power == 0:
            return row
        weights = [max(self.stores[piece.source].num_labels(piece.document), 1) ** -power for piece in segments]
        lengths = [piece.end - piece.start for piece in segments]
        return row._replace(loss_weights=np.repeat(np.array(weights, dtype=np.float32), lengths))

    def _loss_mask(self, segments: list[Segment]) -> np.ndarray:
        """Which tokens of a row's pieces are labels, [n] bool."""
        masks = [self.stores[source].mask_slice(document, start, end) for source, document, start, end in segments]
        return np.concatenate(masks)

    def _as_they_are(self, i: int, pieces: list[np.ndarray]) -> TrainingSequence:
        """The pieces one after the other."""
        lengths = [len(piece) for piece in pieces]
        used = sum(lengths)
        cut = self.sequence_length(i) < used
        both = np.repeat(np.arange(len(pieces)), lengths)
        cuts = np.zeros(used, dtype=np.int64)
        if cut:
            cuts = np.arange(used) // self.sequence_length(i)  # which sequence of the row
            both += cuts  # rises by 1 or 2 where either begins anew
        return TrainingSequence(
            input_ids=np.concatenate(pieces),
            loss_mask=self._loss_mask(self.provenance(i)) if self._masked else np.broadcast_to(np.True_, used),
            document_ids=(_numbered(both) if cut else both) if self.packing.document_mask else cuts,
            position_ids=_restarting(both if self.packing.reset_positions else cuts),
        )

    def _sources(self, segments: list[Segment], made: TrainingSequence) -> np.ndarray:
        """The source of every token of a row, [T] int64."""
        sources = [self.plan.names.index(segment.source) for segment in segments]
        lengths = [segment.end - segment.start for segment in segments]
        if self.augmentation is None:
            return np.repeat(sources, lengths)
        # It may have moved the tokens of several sources about: all count for the source of most of them.
        return np.full(len(made.input_ids), np.bincount(sources, weights=lengths).argmax())


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
