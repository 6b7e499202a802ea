"""What of a long text a prompt has room for: its begin and its end, with the middle cut out.

    text      [............................................]     question   answer
    prompt    [..........]            [..........]               question   . . . .      = context_length
               begin, exact    cut     end, exact                 whole      kept free

The text is cut as characters, at the edges of its tokens, and the prompt is encoded anew: it is what the tokenizer
makes of the shorter text, and its length is counted and not estimated. Cost: two or three encodings of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# n tokens of the text


class Cut(NamedTuple):
    """What is missing of a text.

    Attributes:
        start: First character that is missing.
        end: First character that is there again.
        num_tokens: Tokens that are missing.
        first_token: Number of the first of them in the text, from 1.
        text_tokens: Tokens of the whole text.
    """

    start: int
    end: int
    num_tokens: int
    first_token: int
    text_tokens: int

    def of(self, text: str) -> str:
        """The text without its middle."""
        return text[: self.start] + text[self.end :]


class Fitted(NamedTuple):
    """A prompt that leaves room for its answer, and what was cut out of the text for it."""

    token_ids: list[int]
    cut: Cut | None


def fit(
    text: str,
    encode: Callable[[str], list[int]],
    characters: Callable[[str], np.ndarray],
    *,
    room: int,
) -> Fitted:
    """The prompt, with as much of the text as there is room for.

    Args:
        text: The whole.
        encode: From a text to the whole prompt.
        characters: From a text to where each of its tokens begins and ends, [n, 2].
        room: Tokens that the prompt may have.

    Raises:
        ValueError: Not even an empty text leaves enough room.
    """
    token_ids = encode(text)
    if len(token_ids) <= room:
        return Fitted(token_ids, None)
    without = len(encode(""))
    if without > room:
        raise ValueError(
            f"the question takes {without} tokens, and there is room for {room}; ask in fewer words, or lower"
            " max_new_tokens"
        )
    places = characters(text)
    num_cut = min(len(token_ids) - room, len(places))
    while True:
        cut = middle(places, num_cut, length=len(text))
        token_ids = encode(cut.of(text))
        if len(token_ids) <= room:
            return Fitted(token_ids, cut)
        num_cut = min(num_cut + len(token_ids) - room, len(places))  # a seam can make a token or two


def middle(places: np.ndarray, num_tokens: int, *, length: int) -> Cut:
    """The cut of so many tokens that leaves as much in front of it as behind, or one more in front.

    Args:
        places: [n, 2], where each token begins and ends.
        num_tokens: At most n.
        length: Of the text, in characters.
    """
    kept = len(places) - num_tokens
    head, tail = kept - kept // 2, kept // 2
    start = int(places[head - 1, 1]) if head else 0
    end = int(places[len(places) - tail, 0]) if tail else length
    return Cut(start, max(start, end), num_tokens, head + 1, len(places))


def cut_in_words(cut: Cut, text: str) -> str:
    """What is missing, for a reader: tokens, and lines where there are some."""
    last = cut.first_token + cut.num_tokens - 1
    first_line, last_line = (text.count("\n", 0, place) + 1 for place in (cut.start, cut.end))
    lines = f" (lines {first_line} to {last_line})" if last_line > first_line else ""
    return (
        f"{cut.num_tokens} of the text's {cut.text_tokens} tokens are cut out of its middle, {cut.first_token} to"
        f" {last}{lines}; its begin and its end are read"
    )
