from itertools import pairwise

import numpy as np
import pytest

from datamodules.tasks.facts import Facts
from datamodules.tasks.haystack import Haystack, sentences
from datamodules.tasks.multi_document import (
    DOCUMENT_QUESTIONS,
    QUOTED_WORDS,
    DocumentQuestion,
    MultiDocument,
    number,
)
from tests.datamodules.tasks.conversation_solver import STATED, documents

TEXTS = [
    " ".join(" ".join(f"w{text}s{s}x{i}" for i in range(3 + s * 5 % 23)) + "." for s in range(120)) for text in range(6)
]


def make_task(kind: DocumentQuestion, **changes) -> MultiDocument:
    options = {"haystack": Haystack(TEXTS), "facts": Facts(), "kind": kind, "max_questions": 4} | changes
    return MultiDocument(**options)


@pytest.mark.parametrize("kind", DOCUMENT_QUESTIONS)
def test_documents_are_passages_of_the_texts_under_their_numbers(kind: DocumentQuestion):
    numbers = set()
    for seed in range(30):
        exercise = make_task(kind).exercise(np.random.default_rng(seed), 700)
        found = documents(exercise.text)
        assert list(found) == list(range(1, len(found) + 1))
        for body in found.values():
            assert sum(" ".join(STATED.sub("", body).split()) in text for text in TEXTS) == 1
        numbers.add(len(found))
    assert min(numbers) == 2
    assert max(numbers) >= 8


def test_choices_are_what_one_would_guess_among():
    for seed in range(20):
        exercise = make_task("which_document").exercise(np.random.default_rng(seed), 700)
        assert {exchange.num_choices for exchange in exercise.exchanges} == {len(documents(exercise.text))}
        exercise = make_task("document_facts").exercise(np.random.default_rng(seed), 700)
        for exchange in exercise.exchanges:
            key = exchange.fact.split()[0]
            values = {value for stated, value in STATED.findall(exercise.text) if stated == key}
            assert exchange.num_choices == len(values)


@pytest.mark.parametrize("kind", ["what_follows", "which_document"])
def test_quoted_sentences_are_whole_and_occur_once(kind: DocumentQuestion):
    whole = {sentence for text in TEXTS for sentence in sentences(text)}
    following = {pair for text in TEXTS for pair in pairwise(sentences(text))}
    for seed in range(30):
        exercise = make_task(kind).exercise(np.random.default_rng(seed), 700)
        quoted = [exchange.fact for exchange in exercise.exchanges]
        assert len(set(quoted)) == len(quoted) == 4
        for exchange in exercise.exchanges:
            assert exercise.text.count(exchange.fact) == 1
            assert exchange.fact in whole
            assert len(exchange.fact.split()) in QUOTED_WORDS
            assert kind == "which_document" or (exchange.fact, exchange.answer) in following


def test_a_sentence_with_a_copy_is_not_quoted():
    text = " ".join(["one two three four five.", "six seven eight nine ten."] * 40)
    task = make_task("which_document", haystack=Haystack([text]))
    with pytest.raises(ValueError, match="without a copy"):
        task.exercise(np.random.default_rng(0), 200)


def test_facts_take_document_and_key_together():
    """Most keys that are asked for are stated in several documents, with different values."""
    ambiguous = []
    for seed in range(30):
        exercise = make_task("document_facts").exercise(np.random.default_rng(seed), 700)
        for exchange in exercise.exchanges:
            key = exchange.fact.split()[0]
            ambiguous.append(len({value for stated, value in STATED.findall(exercise.text) if stated == key}) > 1)
    assert np.mean(ambiguous) > 0.8


def test_number_says_where_each_sentence_stands():
    text, found = number([["A b.", "C d."], ["E f."]])
    assert text == "Document 1\nA b. C d.\n\nDocument 2\nE f."
    assert [(sentence.document, text[sentence.start :][:4]) for sentence in found] == [
        (0, "A b."),
        (0, "C d."),
        (1, "E f."),
    ]
