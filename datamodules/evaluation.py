"""What the long-context evaluations read: windows that share their tail, and needles at every length and depth.

Both cut real held-out text inside one document, and both pair what they compare: windows of all lengths end at the same
tokens, and all lengths of a needle get the same question, so that a difference between two lengths is the context.
Cost: O(tokens returned); nothing but numpy. The alternative for perplexity, a window that slides over whole
documents (as in YaRN, https://arxiv.org/abs/2309.00071), scores more tokens, at one forward for every stride.
"""

# D documents, W windows, S samples, A answer tokens

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from datamodules.tasks.recall import RecallFormat, load_words


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is needed here."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


def tail_windows(
    tokens: np.ndarray,
    offsets: np.ndarray,
    *,
    lengths: Sequence[int],
    num_windows: int,
    tail_tokens: int,
    seed: int,
) -> dict[int, np.ndarray]:
    """Windows that end at the same tail for every length, so that the tail's loss changes with the context alone.

        length 16   . . . . . . . . . . . . t t t t
        length  8                   . . . . t t t t     the same last `tail_tokens`

    Args:
        tokens: [sum of document lengths], the held-out documents one after the other.
        offsets: [D + 1], where each begins; the last entry is the end.
        lengths: Window lengths in tokens.
        num_windows: W, spread evenly over the documents that hold the longest length.
        tail_tokens: How many final tokens are scored; every one needs a token before it.
        seed: Places the windows.

    Returns:
        length -> [W, length] int64. Row w is the same place in the text for every length.

    Raises:
        ValueError: A length does not exceed the tail, or the documents do not hold so many windows.
    """
    if not lengths or min(lengths) <= tail_tokens:
        raise ValueError(f"lengths={list(lengths)} must all be above tail_tokens={tail_tokens}; lower tail_tokens")
    ends = window_ends(offsets, max_length=max(lengths), num_windows=num_windows, seed=seed)
    return {length: np.stack([tokens[end - length : end] for end in ends]).astype(np.int64) for length in lengths}


def window_ends(offsets: np.ndarray, *, max_length: int, num_windows: int, seed: int) -> np.ndarray:
    """Distinct window ends, spread evenly over the long-enough documents and, jittered, over each one's length.

    A document that has room for fewer windows than its share gives what it has, and the others take the rest.

    Args:
        offsets: [D + 1].
        max_length: Each window of this many tokens lies inside one document.
        num_windows: W.
        seed: Order of the documents, and the jitter.

    Returns:
        [W] int64, exclusive ends.

    Raises:
        ValueError: The documents do not hold `num_windows` different windows of `max_length`.
    """
    starts, stops = np.asarray(offsets[:-1], dtype=np.int64), np.asarray(offsets[1:], dtype=np.int64)
    room = np.maximum(stops - starts - max_length + 1, 0)  # [D] how many places a window has
    if num_windows < 1 or room.sum() < num_windows:
        longest = int((stops - starts).max(initial=0))
        raise ValueError(
            f"{num_windows} windows of {max_length} tokens inside one document were asked for, and the held-out "
            f"documents hold {room.sum()} (the longest has {longest} tokens); lower the evaluation's lengths or its "
            "number of windows, or name longer held-out documents"
        )
    rng = np.random.default_rng((seed, max_length))
    order = rng.permutation(np.flatnonzero(room))
    counts = np.zeros_like(room)
    while (missing := num_windows - int(counts.sum())) > 0:
        counts[order[counts[order] < room[order]][:missing]] += 1
    ends = []
    for document in np.flatnonzero(counts):
        strata = np.arange(counts[document] + 1) * room[document] // counts[document]
        ends.append(starts[document] + max_length + rng.integers(strata[:-1], strata[1:]))
    return np.concatenate(ends)


class NeedleRows(NamedTuple):
    input_ids: np.ndarray  # [S, length] int64, ends in the answer
    answers: np.ndarray  # [S, A] int64


class NeedleGrid:
    """One fact hidden in real text, for every context length and depth, and asked for at the end.

        row       haystack[:cut]  statement  haystack[cut:]  question  answer        exactly `length` tokens
        cut       = depth * haystack tokens: 0 is the start of the row, 1 right before the question

    Statement, question and answer are tokenised each for itself and joined as ids, so that the needle's tokens do not
    depend on what stands beside it. Keys and values are words whose answer has the tokenizer's most common number of
    tokens, so that rows stack. Sample s reads the same text at every length and depth (a shorter row keeps its end),
    and at a given depth the same fact at every length.

    Args:
        tokenizer: Anything with transformers' `encode(text, add_special_tokens=False)`.
        haystack_tokens: [sum of document lengths], held-out documents one after the other.
        haystack_offsets: [D + 1].
        lengths: Context lengths in tokens, answer included.
        depths: Places of the needle, 0..1.
        num_samples: S, rows in each cell.
        seed: Draws text and facts.
        format: The wording of statement, question and answer.

    Raises:
        ValueError: A depth is outside 0..1, a length has no room for the needle, no document holds the longest length,
            or fewer than two words tokenise alike.

    Reference:
        The test is G. Kamradt's "Needle In A Haystack" (2023), single needle, with facts of one word as in RULER's NIAH
        (https://arxiv.org/abs/2404.06654, sec. 3). It departs in scoring: teacher-forced, so base models can take it.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        haystack_tokens: np.ndarray,
        haystack_offsets: np.ndarray,
        lengths: Sequence[int],
        depths: Sequence[float],
        num_samples: int,
        seed: int,
        format: RecallFormat = RecallFormat(),  # noqa: A002, B008  (the field's word; frozen)
    ) -> None:
        if not lengths or not depths or not all(0 <= depth <= 1 for depth in depths):
            raise ValueError(f"lengths={list(lengths)} and depths={list(depths)}: need one or more, depths within 0..1")
        self.lengths, self.depths = tuple(lengths), tuple(depths)
        self.num_samples = num_samples
        self.seed = seed
        self.format = format
        self._tokenizer = tokenizer
        answers = {word: self._encode(format.reply(word)) for word in load_words()}
        (self.answer_tokens, _), *_ = Counter(map(len, answers.values())).most_common(1)
        self.words = [word for word, answer in answers.items() if len(answer) == self.answer_tokens]
        if len(self.words) < 2 or not self.answer_tokens:
            raise ValueError(
                f"{len(self.words)} words have answers of {self.answer_tokens} tokens; use a tokenizer of English"
            )
        ends = window_ends(haystack_offsets, max_length=max(lengths), num_windows=num_samples, seed=seed)
        self._texts = [haystack_tokens[end - max(lengths) : end] for end in ends]
        self.rows(min(lengths), self.depths[0])  # no room for the needle shows here, not in the middle of an evaluation

    def rows(self, length: int, depth: float) -> NeedleRows:
        """The rows of one cell."""
        samples = [self._sample(length, depth, sample) for sample in range(self.num_samples)]
        return NeedleRows(np.stack([row for row, _ in samples]), np.stack([answer for _, answer in samples]))

    def fact(self, depth: float, sample: int) -> tuple[str, str]:
        """Key and value of a sample, which are the same at every length."""
        rng = np.random.default_rng((self.seed, round(depth * 10_000), sample))
        key, value = rng.choice(len(self.words), 2, replace=False)
        return self.words[key], self.words[value]

    def _sample(self, length: int, depth: float, sample: int) -> tuple[np.ndarray, np.ndarray]:
        key, value = self.fact(depth, sample)
        needle, question = self._encode(self.format.state(key, value)), self._encode(self.format.ask(key))
        answer = self._encode(self.format.reply(value))
        filler = length - len(needle) - len(question) - len(answer)
        if filler < 0:
            raise ValueError(
                f"length={length} has no room for needle, question and answer; raise the evaluation's lengths"
            )
        text = self._texts[sample]
        haystack = text[len(text) - filler :]
        cut = round(depth * filler)
        row = np.concatenate([haystack[:cut], needle, haystack[cut:], question, answer]).astype(np.int64)
        return row, np.array(answer, dtype=np.int64)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)
