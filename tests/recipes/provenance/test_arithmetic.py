"""What a `# computed:` comment may compute."""

from __future__ import annotations

import math

import pytest

from recipes.provenance.arithmetic import equal, results

KEYS = {"context_length": 32768, "data.tokens_per_step": 4194304}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10e9 // 4194304", 2384),
        ("10e9 // data.tokens_per_step", 2384),
        ("round(1.5e9 / 4_194_304)", 358),
        ("ceil(7 / 2) + floor(7 / 2)", 7),
        ("-(2 - 5) ** 2", -9),
        ("10000 * (200000 / 4096) ** (128 / 126)", 10000 * (200000 / 4096) ** (128 / 126)),
        ("round(30 / 80, 3)", 0.375),
        ("128 * context_length", 2**22),
    ],
)
def test_arithmetic_is_that_of_numbers(text: str, expected: float) -> None:
    (found,) = results(text, KEYS)
    assert found == expected


def test_several_arithmetics_give_several_values() -> None:
    assert results("30 / 80, 50 / 80", {}) == [0.375, 0.625]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is no arithmetic"),
        ("10e9 tokens / 4194304", "is no arithmetic; numbers, + - "),
        ("__import__('os')", "is not understood"),
        ("round.__class__", "is no number of this file"),
        ("(1).real", "is no number of this file"),
        ("[1, 2][0]", "is not understood"),
        ("'a' * 3", "is not understood"),
        ("True", "is not understood"),
        ("2 % 3", "is not understood"),
        ("1 / 0", "cannot be computed: division by zero"),
        ("9 ** 9 ** 9 ** 9", "cannot be computed: the power is too large"),
        ("(-8) ** 0.5", "cannot be computed: the root of a negative number"),
        ("round(1, 2, 3)", "'round' takes one number and a whole number of digits"),
        ("floor()", "'floor' takes one number"),
        ("learning_rate", "'learning_rate' is no number of this file"),
    ],
)
def test_what_is_not_arithmetic_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        results(text, KEYS)
    assert sentence in str(caught.value)


def test_equal_is_equality_of_numbers_up_to_rounding() -> None:
    assert equal(0.3, 0.1 + 0.2)
    assert equal(2384, 2384.0)
    assert not equal(2384, 2384.1)
    assert not equal(1, math.nan)
    assert not equal(True, 1)
    assert not equal("1", 1)
