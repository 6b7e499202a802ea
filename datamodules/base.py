"""What the data of continued pre-training and supervised fine-tuning share: corpora, a mixture, rows, whole steps."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
from torch.utils.data import DataLoader

from datamodules.augmentations.base import Augmentation
from datamodules.corpora.base import Corpus
from datamodules.ledger import Ledger, ledger, pushed_out
from datamodules.length_schedules.rows import Rows, RowSchedule
from datamodules.length_schedules.shapes import constant
from datamodules.loader_workers import leave_sigterm_to_the_trainer
from datamodules.mixture import Mixture, Phase
from datamodules.packed_dataset import PackedDataset
from datamodules.packing.plan import Packing
from datamodules.packing.run import RunRequest, plan_run, steps_to_the_end
from datamodules.packing.stream import Sampling
from datamodules.prepare.engine import Engine
from datamodules.refusals import refuse_what_cannot_be
from datamodules.row_planning import DocumentLengths, RowPlanner, validation_note
from datamodules.step_batches import RankRows, StepSampler, collate, step_collator
from datamodules.tokens.store import TokenStore
from datamodules.tokens.tokenise import TokenPolicy, prepare_store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


VALIDATION_SEED = 0
"""Draws the rows of validation: the same for every seed of a run, so that their losses can be compared."""


class PackedDataModule(pl.LightningDataModule):
    """Sequences for training, addressable by index.

    Args:
        sources: Name -> corpus to train on.
        validation: Corpus that validation reads; None validates on nothing.
        mixture: Source -> share of the tokens; None weighs sources by their size.
        phases: Other mixtures for the beginning of the run, one after the other: `{"tokens": …, "mixture": {…}}`.
        mix_at: `sequence`: each row is of one source; `document`: documents of all sources share rows.
        sampling: Source -> `upsample`, `downsample` and `max_epochs`; see `Sampling`.
        at_exhaustion: What happens when a source has been read `max_epochs` times: `error` or `renormalise`.
        packing: How documents fill a row.
        augmentation: Makes a training sequence of the documents of a row; validation goes without.
        length_schedule: How sequences change in length with the step; None trains on whole rows. Validation always
            reads whole rows.
        tokens_per_step: Tokens of one optimizer step, over all micro-batches and ranks. The contract with the papers.
            None where a step is so many samples.
        samples_per_step: Documents, such as conversations, of one optimizer step, in whatever number of rows the
            packing gives them: a step then holds the same for every packing. None where a step is so many tokens.
        micro_batch_size: Rows of one forward pass.
        max_steps: Optimizer steps of the run; None where `epochs` says how long it is.
        epochs: Every source is read so many times, and the run ends; the last step may hold less than the others.
        mix_by: What the shares of `mixture` are of: `tokens`, or `samples`.
        loss_weighting: What the loss of a label counts for: `token`: each label the same; `sample`: each document the
            same; `sqrt`: a document as much as the root of its number of labels.
        validation_sequences: Rows of validation, the same for every seed, or samples of it where a step is so many
            samples; fewer where its corpus has fewer.
        token_policy: What stands around a document.
        cache_dir: Where token stores are kept.
        num_workers: Loader processes; any number gives the same data.
        balance_window_steps: Rows are exchanged between the steps of windows of so many steps, so that each step can be
            shared out evenly over any number of ranks; 0 leaves every row in its step.
        quadratic_cost: What attention costs beside the linear layers (`packing.balance.quadratic_cost`); rows of a step
            are shared out over ranks by it.
        seed: Orders documents and sequences.
    """

    def __init__(
        self,
        *,
        sources: Mapping[str, Corpus],
        packing: Packing,
        tokens_per_step: int | None,
        micro_batch_size: int,
        max_steps: int | None,
        cache_dir: str,
        seed: int,
        mixture: Mapping[str, float] | None = None,
        phases: Sequence[Mapping[str, Any]] | None = None,
        validation: Corpus | None = None,
        validation_sequences: int = 8,
        token_policy: TokenPolicy | None = None,
        length_schedule: RowSchedule | None = None,
        num_workers: int = 0,
        mix_at: str = "sequence",
        sampling: Mapping[str, Mapping[str, Any]] | None = None,
        at_exhaustion: str = "error",
        augmentation: Augmentation | None = None,
        balance_window_steps: int = 0,
        quadratic_cost: float = 0.0,
        samples_per_step: int | None = None,
        epochs: int | None = None,
        mix_by: str = "tokens",
        loss_weighting: str = "token",
    ) -> None:
        super().__init__()
        self.sources = dict(sources)
        self.validation = validation
        self.ratios = dict(mixture) if mixture is not None else None
        self.phases = [
            Phase(num_tokens=round(phase["tokens"]), ratios=dict(phase["mixture"])) for phase in phases or ()
        ]
        self.mix_at = mix_at
        self.sampling = {name: Sampling(**rules, name=name) for name, rules in (sampling or {}).items()}
        self.at_exhaustion = at_exhaustion
        self.augmentation = augmentation
        self.balance_window_steps = balance_window_steps
        self.quadratic_cost = quadratic_cost
        self.packing = packing
        self.length_schedule = length_schedule or constant(max_seqlen=packing.max_seqlen)
        self.tokens_per_step = tokens_per_step
        self.samples_per_step = samples_per_step
        self.epochs = epochs
        self.mix_by = mix_by
        self.loss_weighting = loss_weighting
        self.micro_batch_size = micro_batch_size
        self.max_steps = max_steps
        self.validation_sequences = validation_sequences
        self.token_policy = token_policy or TokenPolicy()
        self.cache_dir = Path(cache_dir)
        self.num_workers = num_workers
        self.seed = seed
        self.consumed = 0
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.engine: Engine | None = None  # what makes token stores; None makes them here
        self.unread: Sequence[str] = ()  # sources that the mixture names and gives nothing
        self.rows: Rows | None = None
        self.request: RunRequest | None = None
        self.data: PackedDataset | None = None
        self.validation_data: PackedDataset | None = None
        self._refuse_what_cannot_be()

    def _refuse_what_cannot_be(self) -> None:
        """Raises where arguments do not go together."""
        refuse_what_cannot_be(self)

    @property
    def sequences_per_step(self) -> int:
        """Rows of one optimizer step, over all micro-batches and ranks; some may be empty.

        Where a step is so many samples, it is known after `setup`.
        """
        if self.tokens_per_step is not None:
            return self.tokens_per_step // self.packing.max_seqlen
        assert self.rows is not None, "how many rows the samples of a step fill is known after setup"
        return len(self.rows.plan) // self.num_steps

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run; where `epochs` says how long it is, known after `prepare_data`."""
        assert self.max_steps is not None, "how many steps the epochs take is known after prepare_data"
        return self.max_steps

    @property
    def source_names(self) -> list[str]:
        """The sources, in the order of `source_ids`."""
        mixtures = [self.ratios or dict.fromkeys(self.sources), *(phase.ratios for phase in self.phases)]
        return list(dict.fromkeys(name for ratios in mixtures for name in ratios))

    def prepare_store(self, name: str) -> TokenStore:
        """Open, and make if needed, the token store of one source or of `validation`."""
        if self.tokenizer is None:
            raise RuntimeError("set the data module's tokenizer before it is used")
        corpus = self.validation if name == "validation" else self.sources[name]
        assert corpus is not None
        options = {"policy": self.token_policy, "cache_dir": self.cache_dir, "name": name, "engine": self.engine}
        return prepare_store(corpus, self.tokenizer, **options)

    def prepare_data(self) -> None:
        """Tokenise what is not tokenised yet and plan the rows of the run; Lightning calls it on one process.

        Raises:
            ValueError: A text cannot be read, or the sources do not suffice for the run.
        """
        stores = {name: self.prepare_store(name) for name in self.sources}
        if self.validation is not None:
            self.prepare_store("validation")
        if self.max_steps is None:
            self.max_steps = self._steps_of_epochs(stores)
        self._planner.rows(self._request(stores), stores)

    def _request(self, stores: Mapping[str, TokenStore]) -> RunRequest:
        """What rows the run asks for."""
        per_step = self.samples_per_step or self.sequences_per_step
        request = RunRequest(
            mixture=Mixture(self._shares(stores), phases=self.phases),
            lengths=DocumentLengths(stores),
            packing=self.packing,
            num_rows=self.num_steps * per_step,
            rows_per_step=per_step,
            seed=self.seed,
            mix_at=self.mix_at,
            at_exhaustion="renormalise" if self.epochs is not None else self.at_exhaustion,
            sampling=self._sampling(),
            by_samples=self.samples_per_step is not None,
            mix_by=self.mix_by if self.samples_per_step is not None else "tokens",
            may_end=self.epochs is not None,
        )
        return self._mixed_to_the_end(request) if self.epochs is not None and self.sampling else request

    def _mixed_to_the_end(self, request: RunRequest) -> RunRequest:
        """With shares of what is read of each source, where rules read some of them more or less than others."""
        by_samples, read = request.mix_by == "samples", {}
        for name, stream in zip(request.names, map(request.stream, range(len(request.names))), strict=True):
            read[name] = float(len(stream.first(1 << 62)) if by_samples else stream.available or 0)
        return replace(request, mixture=Mixture(read))

    def _shares(self, stores: Mapping[str, TokenStore]) -> dict[str, float]:
        """The mixture in what the plan counts: samples or tokens."""
        if self.ratios is None:
            by_samples = self.mix_by == "samples" and self.samples_per_step is not None
            return {name: float(len(store) if by_samples else store.num_tokens) for name, store in stores.items()}
        if self.mix_by == "samples" and self.samples_per_step is None:
            # Rows are dealt by their tokens: so many of a source that it gives its share of samples on average.
            return {name: share * stores[name].num_tokens / len(stores[name]) for name, share in self.ratios.items()}
        return self.ratios

    def _sampling(self) -> dict[str, Sampling]:
        if self.epochs is None:
            return self.sampling
        rules = {name: self.sampling.get(name, Sampling(name=name)) for name in self.sources}
        return {name: replace(rule, max_epochs=rule.max_epochs or self.epochs) for name, rule in rules.items()}

    def _steps_of_epochs(self, stores: Mapping[str, TokenStore]) -> int:
        """Steps that it takes to read every source `epochs` times."""
        self.max_steps = 1  # for a request, of which nothing but the sources is read
        return steps_to_the_end(self._request(stores))

    def setup(self, stage: str | None = None) -> None:
        stores = {name: self.prepare_store(name) for name in self.sources}
        self.request = self._request(stores)
        self.rows = self._planner.rows(self.request, stores)
        self.__dict__.pop("_tokens_after_step", None)  # of an earlier setup
        if (
            self.augmentation is not None
            and self.rows.cut
            and (self.rows.context_lengths < self.packing.max_seqlen).any()
        ):
            raise ValueError(
                "an augmentation makes whole rows, and this length_schedule cuts them; set augmentation=none or"
                " length_schedule=constant"
            )
        self._say_notes(self.rows)
        self.data = PackedDataset(
            stores,
            plan=self.rows.plan,
            packing=self.packing,
            augmentation=self.augmentation,
            seed=self.seed,
            sequence_lengths=self.rows.context_lengths if self.rows.cut else None,
            rows_per_step=self.sequences_per_step,
            loss_weighting=self.loss_weighting,
        )
        if self.validation is not None and self.validation_sequences:
            self.validation_data = self._validation_data()
            plan = self.validation_data.plan
            read = len(plan) if self.samples_per_step is None else len(plan.lengths)
            self._say(validation_note(read, asked=self.validation_sequences))

    @property
    def _planner(self) -> RowPlanner:
        return RowPlanner(
            packing=self.packing,
            length_schedule=self.length_schedule,
            cache_dir=self.cache_dir,
            balance_window_steps=self.balance_window_steps,
            quadratic_cost=self.quadratic_cost,
            one_document=self.augmentation is not None,
        )

    def _say_notes(self, rows: Rows) -> None:
        notes = list(rows.notes)
        if self.ratios is not None and not np.isclose(total := sum(self.ratios.values()), 1):
            notes.append(f"corpus.mixture sums to {total:g}, not 1; its ratios are divided by that")
        notes += [f"{name} has no share of the run (corpus.mixture.{name}=0) and is not read" for name in self.unread]
        self._say(notes)

    def _say(self, notes: Sequence[str]) -> None:
        for note in notes if self._rank()[0] == 0 else ():
            print(f"note: {note}", file=sys.stderr, flush=True)
            logging.getLogger(__name__).info(note)

    def _validation_data(self) -> PackedDataset:
        """The first rows of the validation corpus in its own packing, or its first samples; read once."""
        store = self.prepare_store("validation")
        request = RunRequest(
            mixture=Mixture({"validation": 1.0}),
            lengths={"validation": store.lengths},
            packing=self.packing,
            num_rows=self.validation_sequences,
            rows_per_step=1 if self.samples_per_step is None else self.validation_sequences,
            seed=VALIDATION_SEED,
            sampling={"validation": Sampling(max_epochs=1, name="validation")},
            by_samples=self.samples_per_step is not None,
            may_end=self.samples_per_step is not None,
        )
        return PackedDataset({"validation": store}, plan=plan_run(request, may_end=True), packing=self.packing)

    def ledger(self) -> Ledger:
        """What the run reads of each source; known after `setup`."""
        assert self.rows is not None
        assert self.request is not None
        assert self.data is not None
        return ledger(self.rows.plan, self.request)._replace(pushed_out=pushed_out(self.data))

    def context_length(self, step: int) -> int:
        """Tokens of the longest sequence at a step, counted from 0; known after `setup`."""
        assert self.rows is not None
        return int(self.rows.context_lengths[step])

    def attention_window(self, step: int) -> int | None:
        """Tokens of the fragments of a row that attention stays within at a step; None for the whole row."""
        assert self.rows is not None
        length = self.context_length(step)
        return length if self.rows.window and length < self.packing.max_seqlen else None

    def tokens_read(self, step: int) -> int:
        """Tokens of all ranks up to the end of a step, padding not among them; known after `setup`."""
        return int(self._tokens_after_step[step])

    @cached_property
    def _tokens_after_step(self) -> np.ndarray:
        assert self.rows is not None
        return self.rows.plan.row_tokens.reshape(-1, self.sequences_per_step).sum(axis=1).cumsum()

    def train_dataloader(self) -> DataLoader[Any]:
        """Yields list[Batch], this rank's micro-batches of one optimizer step."""
        assert self.data is not None
        rank, world_size = self._rank()
        sampler = StepSampler(
            num_steps=self.num_steps,
            sequences_per_step=self.sequences_per_step,
            consumed=lambda: self.consumed,
            rank=rank,
            world_size=world_size,
            share=partial(self._planner.share, self.data.plan, world_size=world_size),
            may_be_uneven=self.samples_per_step is not None or self.epochs is not None,
        )
        return DataLoader(
            self.data,
            batch_sampler=sampler,
            collate_fn=step_collator(self.micro_batch_size, self.packing.max_seqlen),
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
        collator = partial(collate, max_seqlen=self.packing.max_seqlen)
        return DataLoader(rows, batch_size=self.micro_batch_size, collate_fn=collator)

    def _rank(self) -> tuple[int, int]:
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)

    def state_dict(self) -> dict[str, Any]:
        consumed = self.consumed if self.trainer is None else self.trainer.global_step * self.sequences_per_step
        return {"sequences_consumed": consumed, "plan": self._plan_name()}

    def _plan_name(self) -> str | None:
        """Names the rows of the run: it changes with the texts and with whatever decides their order."""
        folder = None if self.rows is None else self.rows.plan.folder
        return None if folder is None else folder.name

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        consumed = state_dict["sequences_consumed"]
        if None not in (made := state_dict.get("plan"), own := self._plan_name()) and made != own:
            raise ValueError(
                "the checkpoint was made on other rows: the texts, or the order of corpus.mixture, have changed since;"
                " restore them, or start anew with resume=never"
            )
        if consumed % self.sequences_per_step:
            raise ValueError(
                f"the checkpoint has consumed {consumed} sequences, no whole number of steps of"
                f" {self.sequences_per_step}; resume with its own data.tokens_per_step and packing.max_seqlen"
            )
        self.consumed = consumed
