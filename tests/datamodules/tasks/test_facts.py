import re

import numpy as np
import pytest

from datamodules.tasks.exercises import is_held_out
from datamodules.tasks.facts import Facts, Pair
from datamodules.tasks.recall import load_words


@pytest.mark.parametrize("held_out", [False, True])
def test_pairs_of_words_are_all_those_of_their_side(held_out: bool):
    facts = Facts(held_out=held_out)
    rng = np.random.default_rng(0)
    drawn = {facts.pair(rng, key) for _ in range(1_500) for key in ("sun", "gold")}
    expected = {Pair(key, value) for key in ("sun", "gold") for value in load_words()}
    assert drawn == {pair for pair in expected if is_held_out(f"{pair.key} {pair.value}") == held_out}


@pytest.mark.parametrize(("kind", "most"), [("words", 128), ("numbers", 128 * 127)])
def test_there_are_as_many_different_keys_as_is_said(kind, most: int):
    facts = Facts(kind=kind)
    keys = facts.keys(np.random.default_rng(0), facts.most)
    assert len(set(keys)) == len(keys) == most
    assert {word for key in keys for word in key.split()} == set(load_words())
    assert all(len(set(key.split())) == len(key.split()) for key in keys)


@pytest.mark.parametrize("held_out", [False, True])
def test_numbers_have_six_digits_and_their_side(held_out: bool):
    facts = Facts(kind="numbers", held_out=held_out)
    rng = np.random.default_rng(0)
    for key in facts.keys(rng, 50):
        pair = facts.pair(rng, key)
        assert re.fullmatch(r"[1-9]\d{5}", pair.value)
        assert is_held_out(f"{key} {pair.value}") == held_out


def test_wording():
    pair = Pair("sun", "ship")
    assert Facts().state(pair) == "The pair is sun ship."
    asked = Facts().ask(pair, depth=0.5, num_choices=3)
    assert asked == ("Which word is paired with sun?", "ship", "sun ship", 0.5, 3)
    asked = Facts(wording="line").ask(pair, depth=0.0)
    assert (asked.question, asked.answer) == ("What completes this line?\nThe pair is sun", "The pair is sun ship.")
    asked = Facts().ask(pair, depth=0.0, where="In Document 2, ")
    assert asked.question == "In Document 2, which word is paired with sun?"
    asked = Facts(kind="numbers").ask(Pair("sun gate", "123456"), depth=0.0)
    assert (asked.question, asked.answer) == ("Which number is paired with sun gate?", "123456")
