import re

import numpy as np
import pytest

from datamodules.tasks.haystack import MAX_SENTENCE_WORDS, Haystack, sentences

TEXTS = [" ".join(f"w{text}x{i}" + "." * (i % 7 == 6) for i in range(size)) for text, size in enumerate((500, 30, 900))]


def test_a_stretch_is_a_slice_of_a_text_with_so_many_words():
    haystack = Haystack([text.replace(". ", ".\n\n  ") for text in TEXTS])
    for seed in range(50):
        words = haystack.stretch(np.random.default_rng(seed), 40)
        assert len(words) == 40
        assert sum("".join(words) in text for text in haystack.texts) == 1


def test_stretches_are_uniform_over_all_places_of_all_texts():
    rng = np.random.default_rng(0)
    haystack = Haystack(TEXTS)
    firsts = [haystack.stretch(rng, 100)[0].strip() for _ in range(3_000)]
    of_first = np.mean([first.startswith("w0") for first in firsts])
    assert abs(of_first - 401 / (401 + 801)) < 0.04  # places from which 100 words follow
    assert not any(first.startswith("w1") for first in firsts)
    places = [int(re.findall(r"\d+", first)[1]) for first in firsts if first.startswith("w2")]
    assert max(places) <= 800
    assert np.abs(np.histogram(places, bins=4, range=(0, 801))[0] / len(places) - 0.25).max() < 0.05


def test_a_passage_is_as_many_whole_sentences_as_have_room():
    haystack = Haystack(TEXTS)
    for seed in range(50):
        passage = haystack.passage(np.random.default_rng(seed), 40)
        assert 34 <= sum(len(sentence.split()) for sentence in passage) <= 40
        assert all(sentence.endswith(".") or sentence == passage[-1] for sentence in passage)
        assert sum(" ".join(passage) in text for text in TEXTS) == 1


def test_a_sentence_without_room_is_cut():
    (sentence,) = Haystack(TEXTS).passage(np.random.default_rng(0), 3)
    assert len(sentence.split()) == 3
    assert sum(sentence in text for text in TEXTS) == 1


def test_sentences_keep_every_word_and_the_marks_behind_them():
    text = 'He said: "Go!" And (so he did.) Then\nnothing?  "Indeed." ' + "on " * 95
    found = sentences(text)
    assert " ".join(found).split() == text.split()
    assert found[:4] == ['He said: "Go!"', "And (so he did.)", "Then nothing?", '"Indeed."']
    assert [len(sentence.split()) for sentence in found[4:]] == [MAX_SENTENCE_WORDS, MAX_SENTENCE_WORDS, 15]


def test_texts_that_are_too_short_are_said():
    with pytest.raises(
        ValueError, match="a text of 901 words was asked for, but the longest text of the haystack has 900"
    ):
        Haystack(TEXTS).stretch(np.random.default_rng(0), 901)
    with pytest.raises(ValueError, match="the longest text of the haystack has 0"):
        Haystack([]).passage(np.random.default_rng(0), 10)


def test_a_text_of_exactly_the_length_is_taken_whole():
    haystack = Haystack(["One two three. Four five."])
    assert "".join(haystack.stretch(np.random.default_rng(0), 5)) == haystack.texts[0]
    assert haystack.passage(np.random.default_rng(0), 5) == ["One two three.", "Four five."]
