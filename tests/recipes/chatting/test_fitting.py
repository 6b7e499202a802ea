from __future__ import annotations

import numpy as np
import pytest

from recipes.chatting.fitting import Cut, cut_in_words, fit, middle

QUESTION = [-1, -2, -3]


def by_character(text: str) -> np.ndarray:
    edges = np.arange(len(text) + 1)
    return np.stack([edges[:-1], edges[1:]], axis=1)


def prompt(text: str) -> list[int]:
    return [*map(ord, text), *QUESTION]


@pytest.mark.parametrize("length", [*range(1, 12), 100])
@pytest.mark.parametrize("room", [3, 4, 5, 8, 9])
def test_first_and_last_parts_are_exact_and_the_question_is_whole(length: int, room: int) -> None:
    text = "".join(chr(0x100 + k) for k in range(length))
    token_ids, cut = fit(text, prompt, by_character, room=room)
    assert token_ids[-3:] == QUESTION
    left = room - 3
    if length <= left:
        assert (token_ids, cut) == (prompt(text), None)
        return
    assert cut is not None
    assert len(token_ids) == room  # nothing more than needed is cut
    head, tail = (left + 1) // 2, left // 2
    kept = text[:head] + text[length - tail :]
    assert token_ids == prompt(kept)
    assert cut == Cut(head, length - tail, length - left, head + 1, length)
    assert cut.of(text) == kept


def test_a_seam_that_makes_tokens_is_cut_further() -> None:
    """Joined halves that the tokenizer reads as more tokens than both had."""

    def encode(text: str) -> list[int]:
        return [*prompt(text), *([7] * (text not in whole) * 2)]

    whole = "abcdefghijklmnopqrstuvwxyz"
    token_ids, cut = fit(whole, encode, by_character, room=13)
    assert cut is not None
    assert len(token_ids) == 13
    assert cut.num_tokens == 26 - 8


def test_a_token_of_half_a_character_cuts_none_in_two() -> None:
    places = np.array([[0, 1], [1, 2], [1, 2], [2, 3], [2, 3], [3, 4]])  # two characters of two tokens each
    text = "aéöz"
    for num_tokens in range(7):
        cut = middle(places, num_tokens, length=4)
        assert cut.start <= cut.end
        kept = cut.of(text)
        assert text.startswith(kept[: cut.start])
        assert text.endswith(kept[cut.start :])


def test_question_without_room_is_said() -> None:
    with pytest.raises(ValueError, match="the question takes 3 tokens, and there is room for 2"):
        fit("abc", prompt, by_character, room=2)


def test_cut_is_said_in_tokens_and_lines() -> None:
    text = "ab\ncd\nef\ngh"
    assert cut_in_words(middle(by_character(text), 5, length=len(text)), text) == (
        "5 of the text's 11 tokens are cut out of its middle, 4 to 8 (lines 2 to 3); its begin and its end are read"
    )
