"""Asking a model held-out questions about long texts, before training and after it.

Accuracy is exact match, teacher-forced: an answer is right if each of its tokens is the most likely one after the right
ones before it, which is when greedy decoding writes it. The end of the answer does not count, so a base model that
never ends a turn is not wrong for that. Cost: one forward a question, without logits of the prompt.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from datamodules.conversations.encoding import PieceEncoder
from datamodules.corpora.instructions import InstructionCorpus
from datamodules.tasks.exercises import Exercise
from lightning_modules.attention.layout import DocumentLayout
from lightning_modules.evaluation.generation import Decoding, generate
from lightning_modules.evaluation.scoring import evaluating, score
from recipes.build import COMPUTE_DTYPES, build, build_tokenizer
from recipes.evaluating import BASE, TRAINED, base_model, trained_model
from recipes.reporting.answers import (
    Shown,
    VariantAnswers,
    answers_table,
    answers_text,
    plot_answers,
    write_answers,
)
from recipes.run_folder import RunFolder

SMALLER, FULL, MAX_TRIES = 0.97, 0.9, 8
"""An exercise is made again, a little smaller than its tokens say it should be, until it fits and is nearly full."""

MAX_NEW_TOKENS = 64

GUESSING = "guessing"


class Asked(NamedTuple):
    """A question in tokens."""

    task: str
    length: int  # context length that it was made for
    prompt: np.ndarray  # [P] int64, up to where the assistant begins
    answer: np.ndarray  # [A] int64, without the token that ends it
    exercise: Exercise

    @property
    def num_tokens(self) -> int:
        """Of prompt and answer, with the token that ends it."""
        return len(self.prompt) + len(self.answer) + 1

    def shown(self) -> Shown:
        """As it is printed."""
        (exchange,) = self.exercise.exchanges
        return Shown(self.task, len(self.prompt), exchange.depth, exchange.question, exchange.answer)


class Questions:
    """Held-out questions of every task and length, made once and put to several models.

    Args:
        config: The recipe; its `evaluation.answers` says what is asked.
        tokenizer: The model's.

    Raises:
        ValueError: The corpus gives exercises that training may have, or more questions than one.
    """

    def __init__(self, config: DictConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self.settings = config.evaluation.answers
        self.corpus: InstructionCorpus = build(self.settings.corpus)
        if not self.corpus.held_out or self.corpus.max_questions > 1:
            raise ValueError(
                f"evaluation.answers.corpus has held_out={self.corpus.held_out} and"
                f" max_questions={self.corpus.max_questions}; set held_out=true and max_questions=1"
            )
        self.tokenizer = tokenizer
        self.dtype = None if config.precision == "fp32" else COMPUTE_DTYPES[config.precision]
        self.device = torch.device(
            "cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu"
        )
        self._template = build(config.chat_template).bind(tokenizer)
        self._encoder = PieceEncoder(tokenizer, self._template)
        self._control = set(self._template.control_tokens.values())
        self.asked = [
            self._fitting(task, length, sample)
            for task in self.corpus.asked_tasks
            for length in self.settings.lengths
            for sample in range(self.settings.num_samples)
        ]
        self.shown = self._some()

    def answers(self, model: PreTrainedModel, name: str) -> VariantAnswers:
        """What a model makes of the questions."""
        print(f"asking: {name} …", file=sys.stderr, flush=True)
        model.to(self.device)  # type: ignore[arg-type]
        right: dict[str, dict[int, list[bool]]] = {task: {} for task in self.corpus.asked_tasks}
        with evaluating(model):
            for asked in self.asked:
                right[asked.task].setdefault(asked.length, []).append(self._is_right(model, asked))
        accuracy = {task: {n: float(np.mean(found)) for n, found in of.items()} for task, of in right.items()}
        return VariantAnswers(name, accuracy, [self._written(model, asked) for asked in self.shown])

    def guessed(self) -> VariantAnswers:
        """What guessing among the answers of the same kind in the text gets right, where those have been counted."""
        accuracy: dict[str, dict[int, float]] = {}
        for task in self.corpus.asked_tasks:
            for length in self.settings.lengths:
                of = [one.exercise.exchanges[0] for one in self.asked if (one.task, one.length) == (task, length)]
                if all(exchange.num_choices for exchange in of):
                    share = float(np.mean([1 / (exchange.num_choices or 1) for exchange in of]))
                    accuracy.setdefault(task, {})[length] = share
        return VariantAnswers(GUESSING, accuracy)

    def _is_right(self, model: PreTrainedModel, asked: Asked) -> bool:
        row = torch.from_numpy(np.concatenate([asked.prompt, asked.answer]))[None].to(self.device)  # [1, T]
        tail = score(model, row, len(asked.answer), dtype=self.dtype, attention_kwargs=_attention_facts)
        return bool(tail.correct.all())

    def _written(self, model: PreTrainedModel, asked: Asked) -> str:
        decoding = Decoding(max_new_tokens=MAX_NEW_TOKENS, stop_ids=tuple(self._control))
        return generate(model, self.tokenizer, asked.prompt.tolist(), decoding=decoding).text.strip()

    def _fitting(self, task: str, length: int, sample: int) -> Asked:
        """The question of a sample, in a text that is not longer than the length and seldom much shorter."""
        words, best = length / self.corpus.tokens_per_word, None
        for _ in range(MAX_TRIES):
            rng = np.random.default_rng((self.settings.seed, length, sample, *task.encode()))
            asked = self._in_tokens(self.corpus.of_words(task, words, rng), length)
            if asked.num_tokens <= length and (best is None or asked.num_tokens > best.num_tokens):
                best = asked
            if best is not None and best.num_tokens >= FULL * length:
                break
            words = min(words * SMALLER * length / asked.num_tokens, length)
        if best is None:
            raise ValueError(f"evaluation.answers.lengths has {length}, which has no room for {task}; raise it")
        return best

    def _in_tokens(self, exercise: Exercise, length: int) -> Asked:
        (rendered,) = self._template.render([exercise.conversation])
        encoded = rendered if isinstance(rendered, str) else self._encoder.encode([rendered])[0]
        if isinstance(encoded, str):
            raise ValueError(f"chat_template cannot write a question of evaluation.answers: {encoded}")
        ids, first = encoded.ids.astype(np.int64), int(np.argmax(encoded.mask))
        last = max(place for place in np.flatnonzero(encoded.mask) if int(ids[place]) not in self._control)
        return Asked(exercise.task, length, ids[:first], ids[first : last + 1], exercise)

    def _some(self) -> list[Asked]:
        """A few questions, the tasks by turns, from the longest length downwards."""
        by_task = {
            task: sorted((one for one in self.asked if one.task == task), key=lambda one: -one.length)
            for task in self.corpus.asked_tasks
        }
        turns = [found[turn] for turn in range(self.settings.num_samples) for found in by_task.values()]
        return turns[: self.settings.num_shown]


def questions_of(config: DictConfig) -> Questions | None:
    """The questions of a recipe; None where it asks none, as without `evaluation=answers`."""
    if config.stage != "supervised_finetuning" or config.evaluation.answers.corpus is None:
        return None
    return Questions(config, build_tokenizer(config))


def answer_report(config: DictConfig, run: RunFolder, questions: Questions) -> str:
    """Ask the base and the trained model, write `answers.json` and a picture into the run's folder.

    Returns:
        The table, and some questions with both answers.
    """
    assert run.checkpoint is not None
    variants = [
        questions.answers(base_model(config), BASE),
        questions.answers(trained_model(config, run.checkpoint), TRAINED),
    ]
    shown = [asked.shown() for asked in questions.shown]
    measured = [questions.guessed(), *variants]
    write_answers(shown, measured, run.path / "answers.json")
    run.figures.mkdir(exist_ok=True)
    plot_answers(measured, trained_length=config.model.original_context_length, path=run.figures / "answers.png")
    return f"{answers_table(measured)}\n{answers_text(shown, variants)}"


def _attention_facts(document_ids: torch.Tensor) -> dict[str, Any]:
    return {"document_ids": document_ids, "document_layout": DocumentLayout.from_document_ids(document_ids)}
