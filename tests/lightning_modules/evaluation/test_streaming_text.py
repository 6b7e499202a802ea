from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lightning_modules.evaluation.streaming_text import StreamingText, overlap

DEMO = Path(__file__).parents[3] / "lightning_modules" / "models" / "demo"
TEXTS = ["It was a dark night.\n\nAll slept.", "naïve 向量 🙂🙃 é", "a\u200bb 👩‍👩‍👧 end", " led by spaces  "]


def letters(ids: list[int]) -> str:
    return "".join(map(chr, ids))


def streamed(text: str, *stops: str) -> tuple[str, list[str], bool]:
    pieces: list[str] = []
    stream = StreamingText(letters, stop_strings=stops, on_text=pieces.append)
    for character in text:
        if stream.add(ord(character)):
            return stream.text, pieces, True
    stream.finish()
    return stream.text, pieces, False


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_joined_the_text(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    pieces: list[str] = []
    stream = StreamingText(lambda ids: str(tokenizer.decode(ids)), on_text=pieces.append)
    ids = tokenizer(text)["input_ids"]
    assert len(ids) > len(pieces)
    for token in ids:
        assert not stream.add(token)
        assert "\ufffd" not in "".join(pieces)
    stream.finish()
    assert "".join(pieces) == stream.text == text


def test_half_a_character_at_the_end_is_given_out_as_what_it_is() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    ids = tokenizer("a 🙂")["input_ids"][:-1]
    stream = StreamingText(lambda ids: str(tokenizer.decode(ids)))
    for token in ids:
        stream.add(token)
    assert stream.text == "a "
    stream.finish()
    assert stream.text == tokenizer.decode(ids)


def test_nothing_of_a_stop_string_is_given_out() -> None:
    assert streamed("abc</s>d", "</s>") == ("abc", ["a", "b", "c"], True)
    assert streamed("a<<b", "</s>")[:2] == ("a<<b", ["a", "<", "<b"])  # held until it cannot be one
    assert streamed("ab</", "</s>") == ("ab</", ["a", "b", "</"], False)


def test_first_stop_string_wins_for_all_short_texts() -> None:
    stops = ("ab", "bca")
    for text in map("".join, itertools.product("abc", repeat=6)):
        places = [place for stop in stops if (place := text.find(stop)) >= 0]
        # `bca` can begin before `ab` and be complete after it: `ab` ends the text as soon as it is there
        complete = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
        expected = text[: min(complete)[1]] if complete else text
        found, pieces, stopped = streamed(text, *stops)
        assert (found, stopped) == (expected, bool(places))
        assert "".join(pieces) == found


def test_stop_strings_count_once_something_was_said() -> None:
    assert streamed("\n \nyes\nno", "\n")[0] == "\n \nyes"
    assert streamed("\n\n", "\n") == ("\n\n", ["\n", "\n"], False)
    with pytest.raises(ValueError, match="a stop string is empty"):
        StreamingText(letters, stop_strings=("a", ""))


def test_overlap_is_the_longest() -> None:
    assert overlap("xaab", "aabaac") == 3
    assert overlap("xaabaa", "aabaac") == 5
    assert overlap("abc", "abc") == 0  # complete, not begun
    assert overlap("", "abc") == 0
