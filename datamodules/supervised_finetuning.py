"""The data of supervised fine-tuning: conversations, of which the answers are labels."""

from __future__ import annotations

import numpy as np

from datamodules.base import PackedDataModule
from datamodules.packing.concat_chunk import ConcatChunk
from datamodules.packing.plan import RunPlan
from datamodules.tokens.store import TokenStore


class SupervisedFinetuningDataModule(PackedDataModule):
    """Conversations in rows; see `PackedDataModule`.

    The stores are made with a `ConversationPolicy` as `token_policy`, which renders conversations and says which tokens
    are labels. A step of `samples_per_step` conversations holds the same ones in every layout, so its gradient is that
    of the conversations one by one, for every loss weighting and any number of ranks.

    Raises:
        ValueError: Something would take conversations apart or move their labels.
    """

    def _refuse_what_cannot_be(self) -> None:
        super()._refuse_what_cannot_be()
        if self.augmentation is not None:
            raise ValueError(
                "an augmentation makes sequences of text and knows nothing of answers; set augmentation=none"
            )
        whole = [f"data.samples_per_step={self.samples_per_step}"] if self.samples_per_step is not None else []
        whole += [f"data.loss_weighting={self.loss_weighting}"] if self.loss_weighting != "token" else []
        if isinstance(self.packing, ConcatChunk) and whole:
            raise ValueError(
                f"packing=concat_chunk cuts conversations at the edges of rows, which {' and '.join(whole)} cannot"
                " take; set packing=best_fit with packing.document_mask=true and packing.reset_positions=true"
            )

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        assert self.rows is not None
        if self.rows.cut and (self.rows.context_lengths < self.packing.max_seqlen).any():
            raise ValueError(
                "length_schedule.mechanism=cut would part answers from what they answer; set it to window, or"
                " length_schedule=constant"
            )
        self._say(self._notes_of_rows(self.rows.plan))

    def _notes_of_rows(self, plan: RunPlan) -> list[str]:
        """What rows do to conversations, where that is not what most people want."""
        notes = []
        if num_cut := int(np.count_nonzero(plan.starts)):
            notes.append(
                f"{num_cut:,} rows begin in the middle of a conversation, whose answers do not see its beginning; set"
                " packing=best_fit and data.token_policy.context_length=${packing.max_seqlen} to keep them whole"
            )
        if not self.packing.document_mask and np.diff(plan.offsets).max(initial=0) > 1:
            notes.append(
                "conversations that share a row see one another; set packing.document_mask=true and"
                " packing.reset_positions=true to train as if each stood alone"
            )
        return notes

    def prepare_store(self, name: str) -> TokenStore:
        """The store of one source, with the mask of its labels.

        Raises:
            ValueError: It holds plain text.
        """
        store = super().prepare_store(name)
        if store.loss_mask is None:
            raise ValueError(
                f"source {name} holds plain text, of which no token is an answer; set corpus.sources.{name} to"
                " conversations, or stage=continued_pretraining"
            )
        return store
