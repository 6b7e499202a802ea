"""Answers of the model in training, as text: the loss says how likely the reference is, these say what is said.

At each validation a few prompts are answered greedily, on rank 0 alone, and written beside their references to
TensorBoard and the log. Cost: one forward of each prompt and one of a single token for each token of an answer. Nothing
that training depends on is touched, so a run is the same to the bit with and without it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from transformers import PreTrainedTokenizerBase

from datamodules.batch import IGNORE_INDEX, PADDING_DOCUMENT, Batch
from lightning_modules.evaluation.generation import Decoding, generate

# B rows, T tokens


class AnswerSample(NamedTuple):
    """A prompt, what should come next, and which tokens end that beside EOS."""

    input_ids: tuple[int, ...]
    reference: str
    stop_ids: tuple[int, ...] = ()


class SampleAnswers(Callback):
    """Writes answers to a few prompts at every validation.

    Args:
        tokenizer: The model's.
        samples: What to ask; None takes the last answers of the first conversations that are validated.
        num_samples: How many are taken then.
        max_new_tokens: Longest answer.
        tail_characters: How much of the end of a prompt is shown.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        samples: Sequence[AnswerSample] | None = None,
        num_samples: int = 3,
        max_new_tokens: int = 64,
        tail_characters: int = 400,
    ) -> None:
        self.tokenizer: Any = tokenizer
        self.samples = list(samples or ())
        self.num_samples = 0 if samples is not None else num_samples
        self.tail_characters = tail_characters
        self.max_new_tokens = max_new_tokens
        self._said = False

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.is_global_zero and len(self.samples) < self.num_samples:
            self.samples += answer_samples(batch, self.tokenizer)
            del self.samples[self.num_samples :]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        if isinstance(trainer.strategy, ModelParallelStrategy):
            if not self._said:
                logging.getLogger(__name__).info("no answers are sampled: each rank holds a part of the weights only")
            self._said = True
            return
        model: Any = pl_module.causal_lm
        for number, sample in enumerate(self.samples, 1):
            ends = {*sample.stop_ids, self.tokenizer.eos_token_id} - {None}
            decoding = Decoding(max_new_tokens=self.max_new_tokens, stop_ids=tuple(ends))
            with trainer.precision_plugin.val_step_context():
                answer = generate(model, self.tokenizer, sample.input_ids, decoding=decoding)
            self._write(trainer, number, sample, answer.text)

    def _write(self, trainer: Trainer, number: int, sample: AnswerSample, answer: str) -> None:
        shown = self.tokenizer.decode(sample.input_ids)[-self.tail_characters :]
        parts = {"prompt": f"… {shown}", "reference": sample.reference, "answer": answer}
        step = trainer.global_step
        lines = "\n".join(f"  {name}: {text.strip()!r}" for name, text in parts.items())
        logging.getLogger(__name__).info("step %d, answer %d of %d\n%s", step, number, len(self.samples), lines)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                markdown = "\n\n".join(f"**{name}**\n\n{_as_code(text)}" for name, text in parts.items())
                logger.experiment.add_text(f"answers/{number}", markdown, step)


def answer_samples(batch: Batch, tokenizer: Any) -> Iterator[AnswerSample]:
    """The last answer of each conversation of a batch with what stands in front of it, in order.

        input_ids   q q a a q q a a | q q a a          labels     . . a a . . a a | . . a a
        samples     (q q a a q q, "a a")   (q q, "a a")

    A text that is learned from its first token on asks nothing, and gives none. A control token that is the last label
    is what the template ends answers with.
    """
    control = {*tokenizer.all_special_ids}
    rows = zip(*(batch[name].cpu() for name in ("input_ids", "labels", "document_ids")), strict=True)
    for input_ids, labels, document_ids in rows:
        for document in dict.fromkeys(document_ids.tolist()):
            places = (document_ids == document).nonzero().flatten()
            is_label = labels[places] != IGNORE_INDEX
            if document == PADDING_DOCUMENT or not is_label.any():
                continue
            end = int(is_label.nonzero()[-1]) + 1
            others = (~is_label[:end]).nonzero()
            if not len(others):
                continue
            start = int(others[-1]) + 1
            ids = input_ids[places].tolist()
            reference = tokenizer.decode(ids[start:end], skip_special_tokens=True)
            yield AnswerSample(tuple(ids[:start]), reference, tuple({ids[end - 1]} & control))


def _as_code(text: str) -> str:
    """Markdown that shows a text as it is, whatever it holds."""
    return "\n".join(f"    {line}" for line in (text.splitlines() or [""]))
