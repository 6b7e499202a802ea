"""The data of continued pre-training: prepared corpora, a mixture, packed sequences, whole steps."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from datamodules.corpora.base import Corpus
from datamodules.length_schedules.rows import Rows, RowSchedule
from datamodules.length_schedules.shapes import constant
from datamodules.loader_workers import leave_sigterm_to_the_trainer
from datamodules.mixture import Mixture, Phase
from datamodules.packed_dataset import PackedDataset
from datamodules.packing.concat_chunk import ConcatChunk
from datamodules.step_batches import RankRows, StepSampler, collate, step_collator
from datamodules.tokens.store import TokenStore
from datamodules.tokens.tokenise import TokenPolicy, prepare_store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ContinuedPretrainingDataModule(pl.LightningDataModule):
    """Sequences for continued pre-training, addressable by index.

    Args:
        sources: Name -> corpus to train on.
        validation: Corpus that validation reads; None validates on nothing.
        mixture: Source -> share of the tokens; None weighs sources by their size.
        phases: Other mixtures for the beginning of the run, one after the other: `{"tokens": …, "mixture": {…}}`.
        packing: How documents fill a row.
        length_schedule: How sequences change in length with the step; None trains on whole rows. Validation always
            reads whole rows.
        tokens_per_step: Tokens of one optimizer step, over all micro-batches and ranks. The contract with the papers.
        micro_batch_size: Rows of one forward pass.
        max_steps: Optimizer steps of the run.
        validation_sequences: Rows of validation, the first of the validation corpus in its own packing.
        token_policy: What stands around a document.
        cache_dir: Where token stores are kept.
        num_workers: Loader processes; any number gives the same data.
        seed: Orders documents and sequences.
    """

    def __init__(
        self,
        *,
        sources: Mapping[str, Corpus],
        packing: ConcatChunk,
        tokens_per_step: int,
        micro_batch_size: int,
        max_steps: int,
        cache_dir: str,
        seed: int,
        mixture: Mapping[str, float] | None = None,
        phases: Sequence[Mapping[str, Any]] | None = None,
        validation: Corpus | None = None,
        validation_sequences: int = 8,
        token_policy: TokenPolicy | None = None,
        length_schedule: RowSchedule | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.sources = dict(sources)
        self.validation = validation
        self.ratios = dict(mixture) if mixture is not None else None
        self.phases = [
            Phase(num_sequences=round(phase["tokens"] / packing.max_seqlen), ratios=dict(phase["mixture"]))
            for phase in phases or ()
        ]
        self.packing = packing
        self.length_schedule = length_schedule or constant(max_seqlen=packing.max_seqlen)
        self.tokens_per_step = tokens_per_step
        self.micro_batch_size = micro_batch_size
        self.max_steps = max_steps
        self.validation_sequences = validation_sequences
        self.token_policy = token_policy or TokenPolicy()
        self.cache_dir = Path(cache_dir)
        self.num_workers = num_workers
        self.seed = seed
        self.consumed = 0
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.rows: Rows | None = None
        self.data: PackedDataset | None = None
        self.validation_data: PackedDataset | None = None
        if tokens_per_step % packing.max_seqlen:
            raise ValueError(
                f"tokens_per_step={tokens_per_step} is not a multiple of max_seqlen={packing.max_seqlen};"
                " set data.tokens_per_step or packing.max_seqlen"
            )
        mixed = {name for ratios in (self.ratios or {}, *(phase.ratios for phase in self.phases)) for name in ratios}
        if unknown := mixed - set(self.sources):
            raise ValueError(f"corpus.mixture names {sorted(unknown)}, but corpus.sources are {sorted(self.sources)}")
        if self.phases and not self.length_schedule.keeps_phases:
            raise ValueError(
                "corpus.phases would be undone by the order of length_schedule; set corpus.phases=null or another"
                " length_schedule"
            )
        if "validation" in self.sources:
            raise ValueError("a source cannot be called 'validation', which is corpus.validation; rename the source")

    @property
    def sequences_per_step(self) -> int:
        """Rows of one optimizer step, over all micro-batches and ranks."""
        return self.tokens_per_step // self.packing.max_seqlen

    def prepare_store(self, name: str) -> TokenStore:
        """Open, and make if needed, the token store of one source or of `validation`."""
        if self.tokenizer is None:
            raise RuntimeError("set the data module's tokenizer before it is used")
        corpus = self.validation if name == "validation" else self.sources[name]
        assert corpus is not None
        options = {"policy": self.token_policy, "cache_dir": self.cache_dir, "name": name}
        return prepare_store(corpus, self.tokenizer, **options)

    def prepare_data(self) -> None:
        """Tokenise what is not tokenised yet; Lightning calls it on one process."""
        for name in [*self.sources, *(["validation"] if self.validation else [])]:
            self.prepare_store(name)

    def setup(self, stage: str | None = None) -> None:
        stores = {name: self.prepare_store(name) for name in self.sources}
        ratios = self.ratios or {name: store.num_tokens for name, store in stores.items()}
        mixture = Mixture(
            dict(ratios), num_sequences=self.max_steps * self.sequences_per_step, seed=self.seed, phases=self.phases
        )
        self.rows = self.length_schedule.rows(
            mixture,
            lengths={name: store.lengths for name, store in stores.items()},
            packing=self.packing,
            seed=self.seed,
            sequences_per_step=self.sequences_per_step,
        )
        if self._rank()[0] == 0:
            for note in self.rows.notes:
                print(f"note: {note}", file=sys.stderr, flush=True)
                logging.getLogger(__name__).info(note)
        self.data = PackedDataset(
            stores,
            mixture=self.rows.mixture,
            packing=self.packing,
            seed=self.seed,
            plans=self.rows.plans,
            sequence_lengths=self.rows.context_lengths if self.rows.cut else None,
            sequences_per_step=self.sequences_per_step,
        )
        if self.validation is not None and self.validation_sequences:
            store = self.prepare_store("validation")
            available = max(1, store.num_tokens // self.packing.max_seqlen)
            count = min(self.validation_sequences, available)
            alone = Mixture({"validation": 1.0}, num_sequences=count, seed=self.seed)
            self.validation_data = PackedDataset(
                {"validation": store}, mixture=alone, packing=self.packing, seed=self.seed
            )

    def context_length(self, step: int) -> int:
        """Tokens of the longest sequence at a step, counted from 0; known after `setup`."""
        assert self.rows is not None
        return int(self.rows.context_lengths[step])

    def attention_window(self, step: int) -> int | None:
        """Tokens of the fragments of a row that attention stays within at a step; None for the whole row."""
        assert self.rows is not None
        length = self.context_length(step)
        return length if self.rows.window and length < self.packing.max_seqlen else None

    def train_dataloader(self) -> DataLoader[Any]:
        """Yields list[Batch], this rank's micro-batches of one optimizer step."""
        assert self.data is not None
        rank, world_size = self._rank()
        sampler = StepSampler(
            num_steps=self.max_steps,
            sequences_per_step=self.sequences_per_step,
            consumed=lambda: self.consumed,
            rank=rank,
            world_size=world_size,
        )
        return DataLoader(
            self.data,
            batch_sampler=sampler,
            collate_fn=step_collator(self.micro_batch_size),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=leave_sigterm_to_the_trainer,
        )

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Yields Batch, as many on every rank."""
        if self.validation_data is None:
            return []
        rank, world_size = self._rank()
        rows = RankRows(self.validation_data, rank=rank, world_size=world_size)
        return DataLoader(rows, batch_size=self.micro_batch_size, collate_fn=collate)

    def _rank(self) -> tuple[int, int]:
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)

    def state_dict(self) -> dict[str, int]:
        if self.trainer is None:
            return {"sequences_consumed": self.consumed}
        return {"sequences_consumed": self.trainer.global_step * self.sequences_per_step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        consumed = state_dict["sequences_consumed"]
        if consumed % self.sequences_per_step:
            raise ValueError(
                f"the checkpoint has consumed {consumed} sequences, no whole number of steps of"
                f" {self.sequences_per_step}; resume with its own data.tokens_per_step and packing.max_seqlen"
            )
        self.consumed = consumed
