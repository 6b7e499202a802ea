"""The data of supervised fine-tuning: conversations, of which the answers are labels."""

from __future__ import annotations

from datamodules.base import PackedDataModule
from datamodules.packing.concat_chunk import ConcatChunk
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
        if isinstance(self.packing, ConcatChunk) and (self.samples_per_step is not None or self._weighs_samples):
            raise ValueError(
                "packing=concat_chunk cuts conversations at the edges of rows, which data.samples_per_step and"
                f" data.loss_weighting={self.loss_weighting} cannot take; set packing=best_fit"
            )

    @property
    def _weighs_samples(self) -> bool:
        return self.loss_weighting != "token"

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        assert self.rows is not None
        if self.rows.cut and (self.rows.context_lengths < self.packing.max_seqlen).any():
            raise ValueError(
                "length_schedule.mechanism=cut would part answers from what they answer; set it to window, or"
                " length_schedule=constant"
            )

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
