"""The tokenizer's own chat template, in Jinja.

A rendered text does not say which of its characters were whose. So every conversation is rendered twice, once with a
mark in place of each content:

    skeleton   <|im_start|>user\\n⟨0⟩<|im_end|>\\n<|im_start|>assistant\\n⟨1⟩<|im_end|>\\n
    text       <|im_start|>user\\nWhat is 2 + 3?<|im_end|>\\n<|im_start|>assistant\\nIt is 5.<|im_end|>\\n

and the skeleton, filled with the contents (as they are, or without white space at their ends, which many templates
take away), must be the text, character for character. Otherwise the conversation is refused: some templates leave out
the thoughts of earlier answers, and nobody can then say what is a label.

Labels are what stands between `{% generation %}` and `{% endgeneration %}` where the template has these marks, and else
each answer with the control token behind it. The marks are followed in the skeleton only, as transformers joins all
that was rendered so far at each of them.

The text goes to the tokenizer whole, so the ids are those of `apply_chat_template(tokenize=True)`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from datamodules.conversations.conversation import ASSISTANT, Conversation, Message
from datamodules.conversations.jinja_process import JinjaProcess, JinjaText
from datamodules.conversations.template import Piece, Rendered, control_tokens_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
UNTRACEABLE = "the chat template changes what was said, so nobody can tell which of its tokens are labels"


@dataclass(frozen=True)
class TokenizerTemplate:
    """The chat template that comes with the tokenizer.

    Args:
        name: Which one, where the tokenizer has several.
        arguments: What else the template reads, such as `enable_thinking` or `date_string`.
    """

    name: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def describe(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """All that decides the pieces, as plain values."""
        jinja = hashlib.sha256(self._jinja(tokenizer).encode()).hexdigest()
        return {"jinja": jinja, "arguments": self._arguments(tokenizer)}

    def bind(self, tokenizer: PreTrainedTokenizerBase) -> BoundJinja:
        """The template with the ids of the tokenizer.

        Raises:
            ValueError: The tokenizer has no such template, or it writes today's date.
        """
        jinja, arguments = self._jinja(tokenizer), self._arguments(tokenizer)
        written = {
            str(token.content): number
            for number, token in tokenizer.added_tokens_decoder.items()
            if str(token.content) in jinja
        }
        return BoundJinja(
            process=JinjaProcess(jinja, arguments),
            control_tokens={**control_tokens_of(tokenizer), **written},
            has_spans=bool(GENERATION.search(jinja)),
            eos_token_id=tokenizer.eos_token_id,  # type: ignore[arg-type]
        )

    def to_jinja(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The template for other programs: the one of `name`, with `arguments` where they give no others.

        Raises:
            ValueError: The tokenizer has no such template.
        """
        jinja = self._jinja(tokenizer)
        given = ((key, "none" if value is None else json.dumps(value)) for key, value in self.arguments.items())
        return "".join(f"{{%- set {key} = {key} if {key} is defined else {value} %}}" for key, value in given) + jinja

    def _arguments(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        return {**tokenizer.special_tokens_map, **self.arguments}

    def _jinja(self, tokenizer: PreTrainedTokenizerBase) -> str:
        own = tokenizer.chat_template
        if isinstance(own, dict):
            name = self.name or "default"
            if name not in own:
                raise ValueError(
                    f"the tokenizer has no chat template {name!r} but {', '.join(sorted(own))}; set chat_template.name"
                )
            own = own[name]
        if not own:
            raise ValueError(
                "the tokenizer has no chat template; set chat_template to another, such as chatml or plain"
            )
        if "strftime_now" in own and "date_string" not in self.arguments:
            raise ValueError(
                "the tokenizer's chat template writes the day on which it is used; set"
                " chat_template.arguments.date_string, such as '26 Jul 2024'"
            )
        return own


@dataclass(frozen=True)
class BoundJinja:
    """A `TokenizerTemplate` with the ids of one tokenizer."""

    process: JinjaProcess
    control_tokens: Mapping[str, int]
    has_spans: bool
    eos_token_id: int | None
    texts_apart: bool = False

    def render(self, conversations: Sequence[Conversation]) -> list[Rendered | str]:
        """Each conversation's pieces, or why there are none."""
        chats = [conversation.messages for conversation in conversations if conversation.text is None]
        found = iter(self._render(chats, prompt=False))
        return [self._text(one.text) if one.text is not None else next(found) for one in conversations]

    def prompt(self, messages: Sequence[Message]) -> Rendered:
        """What the model reads before it answers.

        Raises:
            ValueError: The template cannot write it.
        """
        (found,) = self._render([messages], prompt=True)
        if isinstance(found, str):
            raise ValueError(found)
        return found

    def _render(self, chats: Sequence[Sequence[Message]], *, prompt: bool) -> Iterator[Rendered | str]:
        marks = [_Marks.for_(chat) for chat in chats]
        blank = [
            [message._replace(content=mark.of(k)) for k, message in enumerate(chat)]
            for mark, chat in zip(marks, chats, strict=True)
        ]
        skeletons = self.process.render(blank, spans=self.has_spans, prompt=prompt)
        texts = self.process.render(chats, prompt=prompt)
        for mark, chat, skeleton, text in zip(marks, chats, skeletons, texts, strict=True):
            if problem := text.error or skeleton.error:
                yield f"the chat template refuses it: {problem}"
                continue
            pieces = _filled(skeleton, text.text, chat, mark)
            if pieces is None:
                yield UNTRACEABLE
            else:
                yield Rendered(pieces if self.has_spans else self._with_labels(pieces, chat), whole=True)

    def _text(self, text: str) -> Rendered | str:
        if self.eos_token_id is None:
            return "a text is learned with EOS behind it, which the tokenizer lacks; set chat_template to another"
        return Rendered([Piece(text, content=True, label=True), Piece(token=self.eos_token_id, label=True)])

    def _with_labels(self, pieces: Sequence[Piece], chat: Sequence[Message]) -> list[Piece]:
        """Each answer is a label, and the control token behind it, with white space between."""
        names = sorted(filter(None, self.control_tokens), key=len, reverse=True)
        end = re.compile(rf"\s*(?:{'|'.join(map(re.escape, names))})") if names else None
        found: list[Piece] = []
        for piece in pieces:
            answer = piece.content and chat[piece.message].role == ASSISTANT
            behind = found[-1] if found and found[-1].content and found[-1].label else None
            match = end.match(piece.text) if end and behind and not piece.content else None
            if match and behind:
                found.append(piece._replace(text=match[0], label=True, message=behind.message))
                piece = piece._replace(text=piece.text[match.end() :])
            if piece.text or piece.content:
                found.append(piece._replace(label=answer))
        return found


class _Marks:
    """What stands for the contents in a skeleton: characters that nobody uses, and that the contents do not hold."""

    def __init__(self, opening: str, closing: str) -> None:
        self.opening, self.closing = opening, closing
        self.pattern = re.compile(f"{opening}([0-9]+){closing}")

    @classmethod
    def for_(cls, chat: Sequence[Message]) -> _Marks:
        for first in count(0xE000, 2):  # Unicode's private use area
            assert first < 0xF8FF, "no character is left"
            if not any(chr(first) in message.content for message in chat):
                return cls(chr(first), chr(first + 1))
        raise AssertionError

    def of(self, number: int) -> str:
        return f"{self.opening}{number}{self.closing}"


def _filled(skeleton: JinjaText, text: str, chat: Sequence[Message], marks: _Marks) -> list[Piece] | None:
    """The pieces of a text, from its skeleton; None where they do not make it up.

    Labels are those of the skeleton's spans, each with the answer in it.
    """
    literals = marks.pattern.split(skeleton.text)
    numbers = [int(number) for number in literals[1::2]]
    if sorted(numbers) != list(range(len(chat))):
        return None  # something was left out or written twice
    pieces: list[Piece] = []
    place = where = 0  # in the text, in the skeleton
    labels = _Labels(skeleton.spans)
    for number, literal in zip([-1, *numbers], literals[0::2], strict=True):
        if number >= 0:
            content = _variant(chat[number].content, text, place, literal)
            if content is None:
                return None
            pieces.append(Piece(content, label=labels.at(where), content=True, message=number))
            place += len(content)
            where += len(marks.of(number))
        if not text.startswith(literal, place):
            return None
        for start, end, label in labels.within(where, where + len(literal)):
            pieces.append(Piece(literal[start - where : end - where], label=label, message=number if label else -1))
        place += len(literal)
        where += len(literal)
    return pieces if place == len(text) else None


def _variant(content: str, text: str, place: int, behind: str) -> str | None:
    """The content as the template wrote it: whole, or without white space at its ends."""
    for variant in dict.fromkeys((content, content.strip(), content.rstrip(), content.lstrip())):
        if text.startswith(variant, place) and text.startswith(behind, place + len(variant)):
            return variant
    return None


class _Labels:
    """Spans of a skeleton that are labels, asked for from left to right."""

    def __init__(self, spans: Sequence[Sequence[int]]) -> None:
        self._spans = sorted((start, end) for start, end in spans if start < end)
        self._next = 0

    def at(self, place: int) -> bool:
        """Whether a place is in one."""
        while self._next < len(self._spans) and self._spans[self._next][1] <= place:
            self._next += 1
        return self._next < len(self._spans) and self._spans[self._next][0] <= place

    def within(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """The parts of start..end that are labels or not."""
        while start < end:
            label = self.at(start)
            edges = self._spans[self._next] if self._next < len(self._spans) else (end, end)
            stop = min(end, edges[1] if label else edges[0])
            yield start, stop, label
            start = stop
