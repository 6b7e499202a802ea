"""Held-out questions before and after training, through the front door and piece by piece."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.tasks.exercises import is_held_out
from recipes.answering import Questions
from recipes.build import build, build_tokenizer
from recipes.cli import run
from recipes.compose import compose
from recipes.evaluating import base_model
from recipes.train import train
from tests.recipes.words import replaced


@pytest.fixture
def words(tiny: list[str], texts: Path) -> list[str]:
    """Words that fine-tune the tiny model on synthetic conversations, and ask it."""
    kept = [word for word in tiny if not word.startswith(("corpus", "recipe", "evaluation.lengths"))]
    return [
        *kept,
        "recipe=demo/sft",
        f"corpus.sources.classics.path={texts}/train.jsonl",
        f"corpus.heldout.path={texts}/heldout.jsonl",
        "corpus.phases=null",
        *(f"corpus.sources.{name}.num_conversations=40" for name in ("long", "short")),
        # Made-up words have no sentences.
        "corpus.sources.long.tasks={document_facts: 0.0, which_document: 0.0}",
        "evaluation.answers.corpus.tasks={document_facts: 0, which_document: 0}",
        "corpus.sources.long.max_length=500",
        "corpus.validation.num_conversations=8",
        "evaluation.lengths=[256,512]",
        "evaluation.answers.num_samples=3",
        "evaluation.answers.num_shown=2",
    ]


@pytest.fixture
def questions(words: list[str]) -> tuple[Questions, Any]:
    config = compose([*words, "precision=fp32"]).config
    return Questions(config, build_tokenizer(config)), config


def test_training_ends_with_answers_before_and_after(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words, train) == 0
    printed = capsys.readouterr().out
    (folder,) = (path for path in (tmp_path / "outputs/demo/sft").iterdir() if not path.is_symlink())
    record = json.loads((folder / "answers.json").read_text())
    assert [variant["name"] for variant in record["variants"]] == ["guessing", "base as it is", "after training"]
    for variant in record["variants"][1:]:
        assert f"key_values, {variant['name']}" in printed
        assert set(variant["accuracy"]["key_values"]) == {"256", "512"}
        assert len(variant["answers"]) == len(record["questions"]) == 2
    assert all(question["expected"] in printed for question in record["questions"])
    assert (folder / "figures/answers.png").exists()


def test_questions_fill_their_length_and_are_never_longer(questions: tuple[Questions, Any]) -> None:
    asked = questions[0].asked
    assert len(asked) == 2 * 3
    for one in asked:
        assert 0.85 * one.length < len(one.prompt) + len(one.answer) + 1 <= one.length
        (exchange,) = one.exercise.exchanges
        assert is_held_out(exchange.fact)
    assert len({one.exercise.text for one in asked}) == 6


def test_prompt_and_answer_are_the_tokens_that_training_reads(questions: tuple[Questions, Any]) -> None:
    asker, config = questions
    tokenizer = build_tokenizer(config)
    for one in asker.asked:
        (exchange,) = one.exercise.exchanges
        said = f"User:\n{one.exercise.text}\n\n{exchange.question}\nAssistant:\n{exchange.answer}"
        assert tokenizer.decode([*one.prompt, *one.answer]) == said
        assert tokenizer.decode(one.answer) == exchange.answer
        policy = build(config.data.token_policy)
        assert policy.describe(tokenizer)["template"] == build(config.chat_template).describe(tokenizer)


def test_an_answer_is_right_exactly_if_greedy_decoding_writes_it(questions: tuple[Questions, Any]) -> None:
    asker, config = questions
    model = base_model(config)
    one = asker.asked[-1]

    def continued(*answer: int) -> list[int]:
        """Four tokens that begin like that and go on with the most likely ones, each from a forward of its own."""
        written = list(answer)
        while len(written) < 4:
            ids = torch.tensor([[*one.prompt.tolist(), *written]])
            positions = torch.arange(ids.shape[1])[None]
            with torch.inference_mode():
                logits = model(input_ids=ids, position_ids=positions, document_ids=torch.zeros_like(ids)).logits
            written.append(int(logits[0, -1].argmax()))
        return written

    greedy = continued()
    assert asker._is_right(model, one._replace(answer=np.array(greedy)))
    for place in range(4):  # only the token at this place is not the most likely one after those before it
        other = continued(*greedy[:place], (greedy[place] + 1) % 512)
        assert not asker._is_right(model, one._replace(answer=np.array(other)))


def test_questions_that_training_may_have_are_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(replaced(words, "evaluation.answers.corpus.held_out=false"), train) == 2
    assert "evaluation.answers.corpus has held_out=False" in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()
