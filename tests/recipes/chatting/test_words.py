from __future__ import annotations

import re
from pathlib import Path

import pytest

from recipes.chatting.words import ChatWords, parse_words


def test_words_become_values() -> None:
    words = ["model=a/b", "file=~/x.txt", "prompt=What = it?", "max_new_tokens=7", "temperature=0.5", "dtype=bf16"]
    assert parse_words(words) == ChatWords(
        model="a/b",
        file=Path("~/x.txt").expanduser(),
        prompt="What = it?",
        max_new_tokens=7,
        temperature=0.5,
        dtype="bf16",
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["checkpoint=x"], "'checkpoint=x' is not understood; the keys are model, file, prompt"),
        (["--model", "x"], "'--model' is not understood"),
        (["model=x"], "give file=<long text>"),
        (["file=x"], "give model=<folder or hub name>"),
        (["model=x", "file=y", "model=z"], "model is given twice"),
        (["model=x", "file=y", "prompt= "], "prompt= has no value"),
        (["model=x", "file=y", "max_new_tokens=many"], "max_new_tokens=many must be a whole number"),
        (["model=x", "file=y", "max_new_tokens=0"], "max_new_tokens=0 must be at least 1"),
        (["model=x", "file=y", "temperature=hot"], "temperature=hot must be a number"),
        (["model=x", "file=y", "temperature=nan"], "temperature=nan must be 0"),
        (["model=x", "file=y", "top_p=2"], "top_p=2.0 must be above 0 and at most 1"),
        (["model=x", "file=y", "seed=-1"], "seed=-1 must be at least 0"),
        (["model=x", "file=y", "dtype=fp8"], "dtype=fp8 must be one of auto, bf16, fp32"),
        (["model=x", "file=y", "context_length=256"], "max_new_tokens=256 leaves nothing of context_length=256"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as fault:
        parse_words(words)
    assert "\n" not in str(fault.value)
