"""Conversations that are longer than the model can read.

    drop             the conversation is left out
    truncate_middle  system  question 1 ……  answer 1  question 2  answer 2     the longest of what users said loses
                                        ^^ cut                                 its middle, and the next longest if
                                                                               that is not enough
    split            system  question 1  answer 1                              as many whole turns as fit, each sample
                     system  question 2  answer 2  question 3  answer 3        with the system message again

Cutting a middle keeps as many tokens at the start as at the end, and the last paragraph whole: that is where the
question stands. Nobody's answer and no system message is cut.

A single turn that does not fit cannot be split between turns. Its question is cut in the middle, down to half of the
context if the answer needs the rest; and an answer that still does not fit goes on in further samples that repeat the
question:

    question  answer 0…k
    question  answer k…n      token k - 1 stands in front, without a label, so every token is learned once

A text that is learned whole is split the same way without a question. Cost: a rendering for each sample and a few more;
linear in the number of turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from datamodules.conversations.conversation import USER, Conversation, Message
from datamodules.conversations.encoding import Encoded, PieceEncoder

MAX_ATTEMPTS = 8
"""Cuts of one content: tokens can be one or two more where its two ends meet."""


class CannotFit(ValueError):
    """Why a conversation cannot be made to fit."""


class Fitted(NamedTuple):
    """What became of a conversation that was too long.

    Attributes:
        samples: Each at most as long as the context.
        num_lost: Tokens that are in none of them.
    """

    samples: list[Encoded]
    num_lost: int


@dataclass(frozen=True)
class Fitter:
    """Makes conversations fit.

    Args:
        context_length: Most tokens of a sample.
        pieces: Counts the tokens of contents.
        encode: Encodes a conversation; raises `CannotFit` where the template cannot write it. The second argument says
            whether its last answer is the last of the whole conversation.
    """

    context_length: int
    pieces: PieceEncoder
    encode: Callable[[Conversation, bool], Encoded]

    def split(self, conversation: Conversation, encoded: Encoded) -> Fitted:
        """Samples of whole turns.

        Raises:
            CannotFit: A question or the system message leaves no room for an answer.
        """
        if conversation.text is not None:
            return Fitted(self._windows(encoded, 0), 0)
        turns = _pairs(conversation.turns)
        if len(conversation.turns) == 2:
            return self._split_turn(conversation, encoded, last=True)
        costs = self._costs(conversation, turns, encoded)
        samples: list[Encoded] = []
        num_lost = sum(costs[len(turns) + 1 :])  # a last question that nobody answers
        first = 0
        while first < len(turns):
            last = first + 1
            total = costs[0] + costs[1 + first]
            while last < len(turns) and total + costs[1 + last] <= self.context_length:
                total += costs[1 + last]
                last += 1
            sample = self._encode_turns(conversation, turns, first, last)
            while len(sample.ids) > self.context_length and last > first + 1:
                last -= 1
                sample = self._encode_turns(conversation, turns, first, last)
            if len(sample.ids) <= self.context_length:
                samples.append(sample)
            else:
                turn = _with_turns(conversation, turns[first:last])
                fitted = self._split_turn(turn, sample, last=last == len(turns))
                samples += fitted.samples
                num_lost += fitted.num_lost
            first = last
        return Fitted(samples, num_lost)

    def truncate_middle(self, conversation: Conversation, encoded: Encoded) -> Fitted:
        """One sample, of which the longest questions lost their middles.

        Raises:
            CannotFit: What must stay is longer than the context.
        """
        if conversation.text is not None:
            tail = self.context_length // 2
            head = self.context_length - tail
            ids, mask = (np.concatenate([values[:head], values[-tail:]]) for values in encoded)
            mask[head] = False  # what stood before it is gone
            return Fitted([Encoded(ids, mask)], len(encoded.ids) - self.context_length)
        made = self._cut_questions(conversation, encoded, self.context_length, last=True)
        return Fitted([made], len(encoded.ids) - len(made.ids))

    def _split_turn(self, turn: Conversation, encoded: Encoded, *, last: bool) -> Fitted:
        length, prompt = len(encoded.ids), _prompt_length(encoded)
        room = max(self.context_length - (length - prompt), self.context_length // 2)
        if prompt > room:
            encoded = self._cut_questions(turn, encoded, length - prompt + room, last=last)
            prompt = _prompt_length(encoded)
        return Fitted(self._windows(encoded, prompt), length - len(encoded.ids))

    def _windows(self, encoded: Encoded, prompt: int) -> list[Encoded]:
        """Samples that repeat the first `prompt` tokens, and of which each goes on where the last one ended."""
        ids, mask = encoded
        room = self.context_length - prompt
        samples: list[Encoded] = []
        start = prompt
        while start < len(ids):
            begin = start - 1 if start > prompt else start
            part = mask[begin : begin + room].copy()
            part[: start - begin] = False
            parts = (ids[:prompt], ids[begin : begin + room]), (np.zeros(prompt, dtype=bool), part)
            samples.append(Encoded(np.concatenate(parts[0]), np.concatenate(parts[1])))
            start = begin + room
        return samples

    def _cut_questions(self, conversation: Conversation, encoded: Encoded, length: int, *, last: bool) -> Encoded:
        """The conversation with the middles of its longest questions cut, at most `length` tokens long."""
        messages = list(conversation.messages)
        asked = [k for k, message in enumerate(messages) if message.role == USER]
        sizes = self.pieces.num_tokens([messages[k].content for k in asked]) if len(asked) > 1 else [0]
        for _, k in sorted(zip(sizes, asked, strict=True), key=lambda pair: (-pair[0], pair[1])):
            middle = _Middle.of(messages[k].content, self.pieces.characters(messages[k].content))
            wanted = 0
            for _ in range(MAX_ATTEMPTS):
                excess = len(encoded.ids) - length
                if excess <= 0:
                    return encoded
                if wanted == middle.most:
                    break
                wanted = min(wanted + excess, middle.most)
                messages[k] = Message(USER, middle.cut(wanted))
                encoded = self.encode(Conversation(tuple(messages)), last)
            if len(encoded.ids) <= length:
                return encoded
        raise CannotFit(
            f"what must stay of it, answers and questions, has {len(encoded.ids)} tokens, more than the {length} that"
            " there is room for"
        )

    def _costs(self, conversation: Conversation, turns: Sequence[Sequence[Message]], encoded: Encoded) -> list[int]:
        """About how many tokens the system message and each turn take."""
        sizes = self.pieces.num_tokens([message.content for message in conversation.messages])
        around = max(0, len(encoded.ids) - sum(sizes)) / len(sizes)
        messages = iter(sizes)
        system = next(messages) + around if conversation.system else 0
        own = [sum(next(messages) + around for _ in turn) for turn in turns]
        return [math.ceil(cost) for cost in (system, *own, *(size + around for size in messages))]

    def _encode_turns(
        self, conversation: Conversation, turns: Sequence[Sequence[Message]], first: int, last: int
    ) -> Encoded:
        return self.encode(_with_turns(conversation, turns[first:last]), last == len(turns))


class _Middle(NamedTuple):
    """A content that can be cut in its middle.

    Attributes:
        content: What was said.
        characters: Of its tokens, [num_tokens, 2].
        question: Tokens at its end that stay.
    """

    content: str
    characters: np.ndarray
    question: int

    @classmethod
    def of(cls, content: str, characters: np.ndarray) -> _Middle:
        start = _question_start(content)
        return cls(content, characters, int((characters[:, 1] > start).sum()))

    @property
    def most(self) -> int:
        """Tokens that can go."""
        return max(0, len(self.characters) - max(self.question, 2))

    def cut(self, num_tokens: int) -> str:
        """The content without so many tokens."""
        kept = len(self.characters) - num_tokens
        tail = max(kept - kept // 2, self.question)
        head = kept - tail
        start = int(self.characters[head - 1, 1]) if head else 0
        end = int(self.characters[len(self.characters) - tail, 0])
        return self.content[:start] + self.content[max(start, end) :]


def _question_start(content: str) -> int:
    """Where the last paragraph, or else the last line, begins; the end where it is half of the content or more."""
    text = content.rstrip()
    for edge in ("\n\n", "\n"):
        start = text.rfind(edge) + len(edge)
        if start > len(edge) - 1 and 2 * start > len(content):
            return start
    return len(content)


def _prompt_length(encoded: Encoded) -> int:
    return int(np.argmax(encoded.mask))


def _pairs(turns: Sequence[Message]) -> list[Sequence[Message]]:
    """Questions with their answers; a question without one is left out."""
    return [turns[k : k + 2] for k in range(0, len(turns) - 1, 2)]


def _with_turns(conversation: Conversation, turns: Sequence[Sequence[Message]]) -> Conversation:
    system = (conversation.system,) if conversation.system else ()
    return Conversation((*system, *(message for turn in turns for message in turn)))
