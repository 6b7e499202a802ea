"""How a text, a question and what was said before become the tokens of one prompt.

    chat template    user: {text} \\n\\n {question 1}   assistant: {answer 1}   user: {question 2}   assistant:
    base model       {text} \\n {begun sentence}                  or   {text} \\n\\n Question: {question} \\n Answer:

The text stands first, so that the next prompt begins as the last one did and nothing of it is read twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from datamodules.conversations.conversation import ASSISTANT, USER, Conversation, Message
from datamodules.conversations.encoding import PieceEncoder
from datamodules.conversations.template import BoundTemplate, ChatTemplate

NEWLINES = "\n"


class Turn(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


class PromptForm(Protocol):
    """From text and turns to tokens."""

    name: str
    stop_ids: tuple[int, ...]

    def encode(self, text: str, turns: Sequence[Turn], question: str) -> list[int]:
        """The prompt; the answer to `question` comes next."""
        ...

    def characters(self, text: str) -> np.ndarray:
        """Where each token of a text begins and ends, [num_tokens, 2] int64, in characters."""
        ...

    def stop_strings(self, question: str) -> tuple[str, ...]:
        """Texts that end the answer to a question."""
        ...


class BaseModelForm:
    """For a model without a chat template: it goes on with the text.

    A question, which ends in a question mark, is asked as one; anything else is the beginning of a line that the model
    completes. Names of control tokens inside the text stay text.
    """

    name = "none"
    stop_ids: tuple[int, ...] = ()

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        start = tokenizer.encode("", add_special_tokens=True)
        self._start = [token for token in start if token == tokenizer.bos_token_id]

    def encode(self, text: str, turns: Sequence[Turn], question: str) -> list[int]:
        asked = [*((turn.question, turn.answer) for turn in turns), (question, "")]
        return [*self._start, *self._ids(text.rstrip(NEWLINES) + "".join(_asked(*one) for one in asked))]

    def characters(self, text: str) -> np.ndarray:
        if not self._tokenizer.is_fast:  # says nothing about characters: as if all tokens were of one length
            edges = np.linspace(0, len(text), len(self._ids(text)) + 1).astype(np.int64)
            return np.stack([edges[:-1], edges[1:]], axis=1)
        found = self._tokenizer(text, return_offsets_mapping=True, **_AS_TEXT)
        return np.array(found["offset_mapping"], dtype=np.int64).reshape(-1, 2)

    def stop_strings(self, question: str) -> tuple[str, ...]:
        return ("\n\n", "\nQuestion:") if is_question(question) else ("\n",)

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, **_AS_TEXT)["input_ids"]


class TemplateForm:
    """For a model that was trained on conversations: the same tokens as in training.

    Args:
        tokenizer: The model's.
        template: The tokenizer's own, or one of conf/chat_template.
        name: What it is called.

    Raises:
        ValueError: The tokenizer lacks what the template takes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, *, name: str) -> None:
        self.name = name
        self._bound = template.bind(tokenizer)
        self._encoder = PieceEncoder(tokenizer, self._bound)
        self.stop_ids, self._stop_strings = _ends_of_answers(self._bound, self._encoder)

    def encode(self, text: str, turns: Sequence[Turn], question: str) -> list[int]:
        messages: list[Message] = []
        for turn in turns:
            messages += [Message(USER, turn.question), Message(ASSISTANT, turn.answer)]
        messages.append(Message(USER, question))
        messages[0] = Message(USER, f"{text.rstrip(NEWLINES)}\n\n{messages[0].content}")
        try:
            rendered = self._bound.prompt(messages)
        except ValueError as error:
            raise self._refused(error) from error
        (encoded,) = self._encoder.encode([rendered])
        if isinstance(encoded, str):
            raise self._refused(encoded)
        return encoded.ids.tolist()

    def characters(self, text: str) -> np.ndarray:
        return self._encoder.characters(text)

    def stop_strings(self, question: str) -> tuple[str, ...]:
        return self._stop_strings

    def _refused(self, reason: object) -> ValueError:
        return ValueError(f"chat_template={self.name} cannot write this prompt ({reason}); set chat_template=none")


def is_question(prompt: str) -> bool:
    """Whether a prompt is one: it ends in a question mark of any script."""
    return prompt.rstrip().endswith(("?", "\uff1f", "\u061f", "\u037e"))


_AS_TEXT: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
"""No token is added and none comes out of its name; and a long text is no reason for a warning, as it is cut here."""


def _asked(question: str, answer: str) -> str:
    return f"\n\nQuestion: {question}\nAnswer:{answer}" if is_question(question) else f"\n{question}{answer}"


def _ends_of_answers(bound: BoundTemplate, encoder: PieceEncoder) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """What ends an answer: the control token that training has as its last label, or else the text that follows."""
    turn = (Message(USER, "a"), Message(ASSISTANT, "b"))
    (rendered,) = bound.render([Conversation((*turn, *turn))])
    (encoded,) = (rendered,) if isinstance(rendered, str) else encoder.encode([rendered])
    if isinstance(rendered, str) or isinstance(encoded, str):
        raise ValueError(f"the chat template cannot write a conversation ({encoded}); set chat_template=none")
    last = int(encoded.ids[encoded.mask][-1])
    if last in {*bound.control_tokens.values()}:
        return (last,), ()
    answer, question = (
        next(k for k, piece in enumerate(rendered.pieces) if piece.content and piece.message == message)
        for message in (1, 2)
    )
    between = "".join(piece.text for piece in rendered.pieces[answer + 1 : question]).rstrip()
    return (), (between,) if between else ()
