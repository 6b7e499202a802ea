"""The parts of `benchmarks.readers_agree` that need no other environment."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks.readers.cases import TINY_CELLS
from benchmarks.readers.llama_cpp import Row, Texts, all_sound, common_prefix, perplexity, table
from benchmarks.readers.older_transformers import REFUSED, without_older_keys
from benchmarks.readers.report import Reading, relative_difference, summary
from benchmarks.readers.report import all_sound as readings_are_sound
from benchmarks.readers.report import table as readings_table
from benchmarks.readers_agree import interpreters, main


def test_perplexity_is_exp_of_the_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    logits, tokens = rng.normal(size=(40, 13)).astype(np.float32) * 5, rng.integers(0, 13, 40)
    expected = F.cross_entropy(torch.from_numpy(logits[:-1]), torch.from_numpy(tokens[1:])).exp().item()
    assert perplexity(logits, tokens) == pytest.approx(expected, rel=1e-6)


def test_a_relative_difference_is_of_the_largest_logit_and_never_nan() -> None:
    ours = np.array([[1.0, -4.0], [2.0, 0.0]])
    assert relative_difference(ours, ours + np.array([[0.0, 0.0], [0.0, 0.1]])) == pytest.approx(0.025)
    assert relative_difference(ours, ours * np.nan) == float("inf")


def test_a_common_prefix() -> None:
    assert common_prefix(np.array([1, 2, 3]), np.array([1, 2, 3])) == 3
    assert common_prefix(np.array([1, 2, 3]), np.array([1, 5, 3])) == 1
    assert common_prefix(np.array([1, 2, 3]), np.array([1, 2])) == 2


def test_the_planted_fault_is_what_transformers_5_writes_by_itself() -> None:
    parameters = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    scaling = {"rope_type": "linear", "factor": 2.0}
    older = {"rope_theta": 1e4, "rope_scaling": scaling, "original_max_position_embeddings": 64}
    alone = {"model_type": "llama", "rope_parameters": parameters}
    assert without_older_keys({**alone, **older}) == alone
    phi = {"model_type": "phi3", "rope_parameters": parameters, "original_max_position_embeddings": 64}  # its own
    assert without_older_keys({**phi, "rope_theta": 1e4}) == phi


def test_refusals_are_expected_of_cells_that_are_there() -> None:
    assert len(TINY_CELLS) == 5 * 12 + 11 + 5  # Gemma 3 and Phi-3 take fewer
    assert set(REFUSED) <= {(f"tiny {family}", name) for family, name in TINY_CELLS}
    assert len(REFUSED) == 6


def test_a_reader_that_misreads_or_notices_nothing_is_not_sound() -> None:
    good, misread = Reading("demo", "yarn", 0.0, 0.5), Reading("demo", "linear", 0.3, 0.5)
    plain = Reading("demo", "unchanged", 2e-5, 0.0)
    refused, may = Reading("demo", "llama3", "ValueError: no", 0.5), Reading("demo", "llama3", "no", 0.5, True)
    assert readings_are_sound([good, plain, may])
    assert not readings_are_sound([good, misread])
    assert not readings_are_sound([good, refused])
    assert not readings_are_sound([plain])  # a reader that computes the default whatever it is given
    assert summary([good, misread, refused, plain]) == "2 of 4 agree, 1 are refused; the planted fault shows in 3"
    lines = readings_table("title", "fault", [good, misread, refused]).splitlines()
    assert [line.endswith("DISAGREES") for line in lines[2:5]] == [False, True, True]
    assert lines[5] == "  ValueError: no"


def texts(scale: float = 1.0, *, tokens: int = 4, greedy: tuple[int, ...] = (1, 2)) -> Texts:
    logits = np.random.default_rng(1).normal(size=(tokens, 5)) * scale
    return Texts(np.arange(tokens), logits, np.array(greedy))


@pytest.mark.parametrize(
    ("theirs", "planted", "sound"),
    [
        (texts(), texts(2.0), True),
        (texts(2.0), texts(2.0), False),
        (texts(greedy=(1, 3)), texts(2.0), False),
        (texts(tokens=4)._replace(tokens=np.array([0, 1, 3, 3])), texts(2.0), False),
        (texts(), texts(), False),
    ],
)
def test_llama_cpp_has_to_agree_in_tokens_logits_and_greedy_output(theirs: Texts, planted: Texts, sound: bool) -> None:
    row = Row("yarn", texts(), theirs, planted)
    assert all_sound([row]) is sound
    assert ("DISAGREES" in table("title", [row])) is not row.sound


@pytest.mark.parametrize("words", [[], ["vllm=/bin/sh"], ["transformers=/nowhere/python"]])
def test_a_wrong_word_is_a_sentence(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_reader_is_named_with_its_interpreter() -> None:
    assert interpreters([f"llama_cpp={sys.executable}"]) == {"llama_cpp": sys.executable}
